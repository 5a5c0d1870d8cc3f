#!/usr/bin/env python3
"""How long `true` takes in a sandbox, from the policy to its exit status, here and with the peers that are installed.

    python bench/launch.py [--runs N] [--json FILE] [--peers DIR]

The policy is workspace-write with an isolated network. docs/benchmarks.md says how to read the table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from harness import Row, Target, measure, print_table, timed, timed_command, write_json

import pybwrap
from pybwrap.cli.execution import plan_here
from pybwrap.launch.process import launch
from pybwrap.launch.seccomp_filter import compile_filter
from pybwrap.plan.spec import Command
from pybwrap.policy.profile import DEFAULT_PROTECTED_NAMES

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bwrap_src"))
from obtain import PIN, obtain  # noqa: E402 - found through the line above

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from harness import Sample

    from pybwrap.plan.sandbox import SandboxPlan

PLAIN = "plain bubblewrap"
PYTHON = "python -c pass"
CODEX = "codex sandbox"
COMMAND = "true"


def main() -> int:
    """Measure and print; the exit status is 1 if a row of this project's own could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, metavar="N", help="per row; default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to FILE too")
    parser.add_argument(
        "--peers",
        type=Path,
        default=Path.home() / ".cache" / "pybwrap-peers",
        metavar="DIR",
        help="where npm and pip have put the peers (node_modules, venv); default: %(default)s",
    )
    options = parser.parse_args()
    title = f"`{COMMAND}` under workspace-write with an isolated network"
    with ExitStack() as stack:
        # Not in /tmp: several peers make that writable, and codex refuses a home there.
        cache = Path.home() / ".cache"
        cache.mkdir(exist_ok=True)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pybwrap-bench-", dir=cache)))
        workspace = scratch / "workspace"
        for name in DEFAULT_PROTECTED_NAMES:
            (workspace / name).mkdir(parents=True)
        os.chdir(workspace)
        own = [*own_rows(scratch, workspace)]
        results = measure([*own, *peer_rows(stack, scratch, workspace, options.peers)], options.runs)
    print_table(title, results, baseline=PLAIN)
    if options.json is not None:
        write_json(options.json, title, results)
    return int(any(row.name in results.missing for row in own))


def own_rows(scratch: Path, workspace: Path) -> Iterator[Row]:
    """The floor, plain bubblewrap and this project."""
    policy = pybwrap.SandboxPolicy.workspace_write(exclude_slash_tmp=True, exclude_tmpdir_env_var=True)
    plan = planned(policy, workspace)
    if plan.filesystem is None or plan.filesystem.placeholders:
        raise SystemExit("the workspace has all protected names, and the plan has placeholders nevertheless")
    library_target = Target(f"<= 1.1 x {PLAIN}", lambda found: 1.1 * found[PLAIN].p50 if PLAIN in found else None)

    yield Row("subprocess.run", timed_command([COMMAND], cwd=workspace))
    yield Row(PLAIN, with_bubblewrap(build_plain(scratch), plan, workspace))
    yield Row("pybwrap.run", timed(lambda: run(policy)), (library_target,))
    yield Row("launch of a plan made once", timed(lambda: run_planned(plan, workspace)), (library_target,))
    usual = pybwrap.SandboxPolicy.workspace_write()
    yield Row("pybwrap.run, /tmp writable too", timed(lambda: run(usual)))
    # What is installed has its bytecode beside it.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    yield Row(PYTHON, timed_command([sys.executable, "-c", "pass"], cwd=workspace, environment=environment))
    document = {"type": "workspace-write", "exclude_slash_tmp": True, "exclude_tmpdir_env_var": True}
    yield Row(
        "python -m pybwrap",
        timed_command(
            [
                *(sys.executable, "-m", "pybwrap", "--sandbox-policy-cwd", str(workspace)),
                *("--sandbox-policy", json.dumps(document), "--", COMMAND),
            ],
            cwd=workspace,
            environment=environment,
        ),
        (
            Target(f"<= {PYTHON} + 25 ms", lambda found: found[PYTHON].p50 + 25 if PYTHON in found else None),
            Target(f"<= {CODEX}", lambda found: found[CODEX].p50 if CODEX in found else None),
        ),
    )


def planned(policy: pybwrap.SandboxPolicy, workspace: Path) -> SandboxPlan:
    """What the library decides for *policy*, from scratch."""
    return plan_here(policy.to_profile(), str(workspace))


def run(policy: pybwrap.SandboxPolicy) -> None:
    """Everything from the policy to the result, in the working directory."""
    pybwrap.run([COMMAND], policy=policy, env=os.environ, check=True)


def run_planned(plan: SandboxPlan, workspace: Path) -> None:
    """What is below that, for a plan that was made before."""
    command = Command(COMMAND, (COMMAND,), str(workspace), os.environ)
    ended = launch(plan, command).wait()
    if ended is None or ended.wait_status != 0:
        raise RuntimeError(f"{COMMAND} ended with {ended}")


def build_plain(scratch: Path) -> Path:
    """Compile upstream's files as they are: no seam, nothing of csrc/ but what stands in for libcap."""
    target = scratch / "bwrap"
    source = obtain(scratch / "bubblewrap")
    subprocess.run(
        [
            *("cc", "-O2", "-static", "-std=gnu11", "-D_GNU_SOURCE", f'-DPYBWRAP_BUBBLEWRAP_VERSION="{PIN.version}"'),
            *(f"-I{ROOT / 'csrc' / 'compat'}", "-o", str(target)),
            *map(str, sorted(source.glob("*.c"))),
            str(ROOT / "csrc" / "capability_names.c"),
        ],
        check=True,
    )
    return target


def with_bubblewrap(executable: Path | str, plan: SandboxPlan, workspace: Path) -> Sample:
    """A bubblewrap executable with the mounts, namespaces and seccomp filter of *plan*."""
    filter_fd = os.memfd_create("filter", 0)
    if plan.seccomp is not None:
        os.write(filter_fd, compile_filter(plan.seccomp))
    options = ["--seccomp", str(filter_fd), *plan.bubblewrap_options(str(workspace))]
    return timed_command(
        [str(executable), *options, "--", COMMAND],
        cwd=workspace,
        pass_fds=(filter_fd,),
        before=lambda: os.lseek(filter_fd, 0, os.SEEK_SET),
    )


# --- Peers ------------------------------------------------------------------------------------------------------------


def peer_rows(stack: ExitStack, scratch: Path, workspace: Path, peers: Path) -> Iterator[Row]:
    """Each peer with the policy of its own that comes nearest."""
    yield system_bubblewrap(workspace)
    yield from codex(scratch, workspace, peers)
    yield from srt(stack, scratch, workspace, peers)
    yield sandlock(stack, workspace, peers)


def system_bubblewrap(workspace: Path) -> Row:
    """Debian's bubblewrap with the same mounts, namespaces and filter."""
    found = shutil.which("bwrap")
    if found is None:
        return Row("system bwrap", missing="not installed: apt-get install bubblewrap")
    version = subprocess.run([found, "--version"], check=True, capture_output=True, text=True).stdout.split()[-1]
    policy = pybwrap.SandboxPolicy.workspace_write(exclude_slash_tmp=True, exclude_tmpdir_env_var=True)
    return Row(f"system bwrap {version}", with_bubblewrap(found, planned(policy, workspace), workspace))


def codex(scratch: Path, workspace: Path, peers: Path) -> Iterator[Row]:
    """The native executable, without the node program that npm starts it with; and its inner helper alone."""
    helper_name = "codex-linux-sandbox"
    natives = sorted(peers.glob("node_modules/@openai/*/vendor/*/bin/codex"))
    found = str(natives[0]) if natives else shutil.which("codex")
    if found is None:
        why = f"not in {peers} and not on PATH: npm install @openai/codex"
        yield from (Row(CODEX, missing=why), Row(helper_name, missing=why))
        return
    home = scratch / "codex-home"
    home.mkdir()
    environment = {**os.environ, "CODEX_HOME": str(home)}
    yield Row(
        CODEX,
        timed_command(
            [
                *(found, "sandbox", "-c", 'sandbox_mode="workspace-write"'),
                *("-c", "sandbox_workspace_write.exclude_slash_tmp=true"),
                *("-c", "sandbox_workspace_write.exclude_tmpdir_env_var=true", "--", COMMAND),
            ],
            cwd=workspace,
            environment=environment,
        ),
    )
    helper = scratch / helper_name  # it goes by the name that it is called by
    helper.symlink_to(found)
    entries = [
        {"path": {"type": "special", "value": {"kind": "root"}}, "access": "read"},
        {"path": {"type": "path", "path": str(workspace)}, "access": "write"},
        *(
            {"path": {"type": "path", "path": str(workspace / name)}, "access": "read"}
            for name in DEFAULT_PROTECTED_NAMES
        ),
    ]
    profile = {
        "type": "managed",
        "file_system": {"type": "restricted", "entries": entries},
        "network": "restricted",
    }
    yield Row(
        helper_name,
        timed_command(
            [
                *(str(helper), "--sandbox-policy-cwd", str(workspace), "--command-cwd", str(workspace)),
                *("--permission-profile", json.dumps(profile), "--", COMMAND),
            ],
            cwd=workspace,
            environment=environment,
        ),
    )


_SRT_WORKER = """\
const { SandboxManager } = await import(process.argv[1]);
const { spawn } = await import("node:child_process");
const { createInterface } = await import("node:readline");
await SandboxManager.initialize(JSON.parse(process.argv[2]));
for await (const line of createInterface({ input: process.stdin })) {
  const start = process.hrtime.bigint();
  const wrapped = await SandboxManager.wrapWithSandbox(process.argv[3]);
  const status = await new Promise((resolve) => {
    spawn("/bin/sh", ["-c", wrapped], { stdio: ["ignore", "ignore", "inherit"] }).on("exit", resolve);
  });
  console.log(status === 0 ? String(process.hrtime.bigint() - start) : `exited with status ${status}`);
}
await SandboxManager.reset();
process.exit(0);
"""


def srt(stack: ExitStack, scratch: Path, workspace: Path, peers: Path) -> Iterator[Row]:
    """Its command, and its library in a node process that lives on."""
    command, library = "srt (command)", "srt (library)"
    package = peers / "node_modules" / "@anthropic-ai" / "sandbox-runtime"
    executable, node = peers / "node_modules" / ".bin" / "srt", shutil.which("node")
    if not executable.exists() or node is None:
        why = f"not in {peers}, or no node: npm install @anthropic-ai/sandbox-runtime"
        yield from (Row(command, missing=why), Row(library, missing=why))
        return
    config = {
        "network": {"allowedDomains": [], "deniedDomains": []},
        "filesystem": {"denyRead": [], "allowWrite": [str(workspace)], "denyWrite": []},
    }
    settings = scratch / "srt.json"
    settings.write_text(json.dumps(config))
    yield Row(command, timed_command([str(executable), "-s", str(settings), COMMAND], cwd=workspace))
    module = (package / "dist" / "index.js").as_uri()
    yield Row(
        library,
        worker(
            stack,
            [node, "--input-type=module", "-e", _SRT_WORKER, module, json.dumps(config), COMMAND],
            cwd=workspace,
        ),
    )


_SANDLOCK_WORKER = """\
import sys, time
from sandlock import Sandbox
sandbox = Sandbox(fs_readable=["/"], fs_writable=[sys.argv[1], "/dev"])
for line in sys.stdin:
    start = time.perf_counter_ns()
    result = sandbox.run([sys.argv[2]])
    print(time.perf_counter_ns() - start if result.success else result, flush=True)
"""


def sandlock(stack: ExitStack, workspace: Path, peers: Path) -> Row:
    """Its library in the Python that it is installed in. It makes no namespaces, and keeps no name read-only."""
    name, python = "sandlock (library)", peers / "venv" / "bin" / "python"
    probe = [str(python), "-c", "import sandlock"]
    if not python.exists() or subprocess.run(probe, check=False, capture_output=True).returncode != 0:
        return Row(name, missing=f"not in {python.parent.parent}: pip install sandlock")
    return Row(name, worker(stack, [str(python), "-c", _SANDLOCK_WORKER, str(workspace), COMMAND], cwd=workspace))


def worker(stack: ExitStack, command: Sequence[str], *, cwd: Path) -> Sample:
    """A process that does the thing once for each line it is sent, and answers with the nanoseconds."""
    process = stack.enter_context(
        subprocess.Popen(command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    )
    if process.stdin is None or process.stdout is None:
        raise AssertionError
    stack.callback(process.stdin.close)
    write, read = process.stdin.write, process.stdout.readline

    def sample() -> int:
        write("go\n")
        answer = read().strip()
        if not answer.isdigit():
            raise RuntimeError(answer or "the worker has ended")
        return int(answer)

    return sample


if __name__ == "__main__":
    sys.exit(main())
