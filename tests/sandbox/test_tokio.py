"""A program on tokio, built from what Debian packages: the runtime wakes its threads over socket pairs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import clean_environment

if TYPE_CHECKING:
    from tests.conftest import RunPolicy

CARGO = Path("/usr/bin/cargo")  # Debian's: it fits the crates that Debian has
CRATES = Path("/usr/share/cargo/registry")

MANIFEST = """
[package]
name = "runtime"
version = "0.1.0"
edition = "2021"

[dependencies]
tokio = { version = "1", features = ["io-util", "macros", "net", "process", "rt-multi-thread", "signal", "time"] }
"""

PROGRAM = """
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::signal::unix::{signal, SignalKind};

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut here, mut there) = UnixStream::pair()?;
    let echo = tokio::spawn(async move {
        let mut buffer = [0u8; 4];
        there.read_exact(&mut buffer).await?;
        there.write_all(&buffer).await
    });
    here.write_all(b"ping").await?;
    let mut buffer = [0u8; 4];
    here.read_exact(&mut buffer).await?;
    echo.await??;

    let mut usr1 = signal(SignalKind::user_defined1())?;
    let pid = std::process::id().to_string();
    let output = Command::new("sh").args(["-c", "kill -USR1 $0; echo child", &pid]).output().await?;
    tokio::time::timeout(Duration::from_secs(10), usr1.recv()).await?;
    print!("{} {}", String::from_utf8_lossy(&buffer), String::from_utf8_lossy(&output.stdout));
    Ok(())
}
"""


@pytest.fixture
def program(workspace: Path) -> Path:
    if not CARGO.exists() or not list(CRATES.glob("tokio-1*")):
        pytest.skip("tokio is not installed: apt-get install cargo librust-tokio-dev")
    (workspace / "src").mkdir()
    (workspace / "src/main.rs").write_text(PROGRAM)
    (workspace / "Cargo.toml").write_text(MANIFEST)
    (workspace / ".cargo").mkdir()
    (workspace / ".cargo/config.toml").write_text(
        f'[source.crates-io]\nreplace-with = "debian"\n[source.debian]\ndirectory = "{CRATES}"\n'
    )
    environment = clean_environment(
        CARGO_HOME=str(workspace / "home"), PATH="/usr/bin:/bin", RUSTFLAGS=None, RUSTC=None, RUSTC_WRAPPER=None
    )
    subprocess.run([CARGO, "build", "--quiet", "--offline"], cwd=workspace, env=environment, check=True, timeout=300)
    shutil.copy(workspace / "target/debug/runtime", workspace / "runtime")
    return workspace / "runtime"


@pytest.mark.timeout(400)
def test_tokio_runs_without_a_network(program: Path, run_policy: RunPolicy) -> None:
    done = run_policy({"type": "read-only"}, [program])
    assert (done.returncode, done.stdout, done.stderr) == (0, "ping child\n", "")
