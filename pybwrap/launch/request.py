"""From what a caller asks for to a command and a plan, and from the plan to what was enforced."""

from __future__ import annotations

import errno
import os
from stat import S_ISDIR
from typing import TYPE_CHECKING

from pybwrap.errors import PolicyError, SetupError, UnsupportedHostError
from pybwrap.launch import host, proc_fallback, registry
from pybwrap.launch.process import ExecError, SandboxedProcess, launch
from pybwrap.launch.result import Enforced
from pybwrap.plan.sandbox import Engine, NetworkMode, SandboxPlan, plan_landlock, plan_sandbox
from pybwrap.plan.spec import Command
from pybwrap.policy.sandbox_policy import SandboxPolicy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pybwrap.launch.limits import Limits
    from pybwrap.plan.filesystem import PrivateLayer
    from pybwrap.policy import PermissionProfile

    Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
    Arguments = Path | Sequence[Path]

__all__ = ["FALLBACKS", "REQUIREMENTS", "command_for", "core_environment", "start"]

REQUIREMENTS = ("userns", "netns", "seccomp", "landlock", "fresh_proc", "cgroup")
"""The layers that a caller may insist on."""

FALLBACKS = ("landlock",)
"""What a caller may allow instead of a sandbox with namespaces, where none can be made."""

_NAMESPACE_STEPS = ("namespaces", "identity", "network")
"""The steps of a setup that fail where this machine does not let the user make namespaces."""

CORE_ENVIRONMENT = ("PATH", "SHELL", "TMPDIR", "TEMP", "TMP", "HOME", "LANG", "LOGNAME", "USER", "TERM", "TZ")
"""What a command gets of this process's environment when `env` is not given, and every `LC_*`. No secrets."""


def core_environment() -> dict[str, str]:
    """The part of this process's environment that a command needs and that holds no secrets."""
    return {name: value for name, value in os.environ.items() if name in CORE_ENVIRONMENT or name.startswith("LC_")}


def command_for(
    args: Arguments,
    executable: Path | None,
    cwd: Path | None,
    env: Mapping[str, str] | None,
    pass_fds: Iterable[int],
    limits: Limits,
    *,
    shell: bool,
    terminal: bool,
) -> Command:
    """The command that `Popen`'s parameters describe. Raises what subprocess raises for them."""
    if isinstance(args, (str, bytes, os.PathLike)):
        if shell and isinstance(args, os.PathLike):
            raise TypeError("path-like args is not allowed when shell is true")
        argv = [os.fsdecode(args)]
    else:
        argv = [os.fsdecode(word) for word in args]
    if shell:
        argv = ["/bin/sh" if executable is None else os.fsdecode(executable), "-c", *argv]
    if not argv:
        raise ValueError("args must not be empty")
    directory = _directory(os.getcwd() if cwd is None else os.fsdecode(cwd))
    inherited = {int(fd) for fd in pass_fds}
    if min(inherited, default=0) < 0:
        raise ValueError("pass_fds: a file descriptor cannot be negative")
    environment = core_environment() if env is None else {os.fsdecode(k): os.fsdecode(v) for k, v in env.items()}
    for name in environment:
        if not name or "=" in name:
            raise ValueError("illegal environment variable name")
    environment["PWD"] = directory
    if any("\0" in text for text in (*argv, directory, *environment, *environment.values())):
        raise ValueError("embedded null byte")
    return Command(
        argv[0] if executable is None else os.fsdecode(executable),
        tuple(argv),
        directory,
        environment,
        tuple(sorted(fd for fd in inherited if fd > 2)),  # noqa: PLR2004 - the standard streams go in anyway
        limits.resource_limits(),
        limits.wall_time,
        terminal,
    )


def _directory(given: str) -> str:
    """The absolute path of a working directory. Raises what chdir(2) would."""
    number = 0
    try:
        if not S_ISDIR(os.stat(given).st_mode):
            number = errno.ENOTDIR
        elif not os.access(given, os.X_OK):
            number = errno.EACCES
    except OSError as error:
        number = error.errno or errno.ENOENT
    if number:
        raise OSError(number, os.strerror(number), given)
    return os.path.abspath(given)


def start(
    policy: SandboxPolicy | PermissionProfile,
    command: Command,
    streams: tuple[int, int, int],
    *,
    require: frozenset[str],
    fallback: frozenset[str],
    allow_nested_sandboxes: bool,
    private_layer: PrivateLayer | None,
) -> tuple[SandboxedProcess, Enforced]:
    """Plans, checks and launches; returns the process and what stands between it and the machine.

    Raises what `launch` raises, with `OSError` of the kind that subprocess has for a command that cannot be executed;
    `UnsupportedHostError` when a layer in *require* cannot be had, `PolicyError` for a name that is none.
    """
    for what, given, known in (("require", require, REQUIREMENTS), ("fallback", fallback, FALLBACKS)):
        if not given <= frozenset(known):
            raise PolicyError(f"{what}: expected some of {', '.join(known)}; got {', '.join(sorted(given))}")
    profile = policy.to_profile() if isinstance(policy, SandboxPolicy) else policy
    plan = plan_sandbox(
        profile,
        policy_cwd=command.cwd,
        environment=command.environment,
        landlock_abi=host.landlock_abi(),
        allow_nested_sandboxes=allow_nested_sandboxes,
        hidden_paths=(registry.directory(),),
        private_layer=private_layer,
    )
    _check_requirements(plan, require)
    try:
        try:
            process = launch(plan, command, streams=streams, require_fresh_proc="fresh_proc" in require)
            return process, _enforced(process.plan, None)
        except SetupError as error:
            if "landlock" not in fallback or private_layer is not None or error.step not in _NAMESPACE_STEPS:
                raise
            plan = plan_landlock(
                profile,
                policy_cwd=command.cwd,
                environment=command.environment,
                landlock_abi=host.landlock_abi(),
            )
            _check_requirements(plan, require)
            return launch(plan, command, streams=streams), _enforced(plan, error)
    except ExecError as error:
        number = error.errno or errno.ENOENT
        raise OSError(number, os.strerror(number), command.executable) from None


def _check_requirements(plan: SandboxPlan, required: frozenset[str]) -> None:
    """Raises `UnsupportedHostError` when a required layer is not part of the plan."""
    present = {
        "userns": plan.engine is Engine.BUBBLEWRAP,
        "netns": plan.engine is Engine.BUBBLEWRAP and plan.network is not NetworkMode.FULL,
        "seccomp": plan.seccomp is not None,
        "landlock": plan.landlock is not None,
        "fresh_proc": plan.fresh_proc,
        "cgroup": False,
    }
    missing = sorted(layer for layer in required if not present[layer])
    if missing:
        raise UnsupportedHostError(f"required but not to be had with this policy on this machine: {', '.join(missing)}")


def _enforced(plan: SandboxPlan, fallen_back: SetupError | None) -> Enforced:
    """What *plan* amounts to; *fallen_back* is why it is not the one that was asked for, if it is not."""
    namespaces: tuple[str, ...] = ()
    degradations = []
    if plan.engine is Engine.BUBBLEWRAP:
        namespaces = ("user", "mount", "pid", "ipc", "uts")
        if os.path.exists("/proc/self/ns/cgroup"):
            namespaces += ("cgroup",)
        if plan.network is not NetworkMode.FULL:
            namespaces += ("net",)
        if not plan.fresh_proc:
            degradations.append(f"/proc is the machine's own: {proc_fallback.reason() or 'as asked for'}")
        if plan.filesystem is not None and plan.landlock is None:
            degradations.append("no Landlock layer: the kernel has none, or too old a one")
    if fallen_back is not None:
        degradations += [
            f"no namespaces: {fallen_back}",
            "protected names below writable paths can be written: Landlock cannot express them",
        ]
    return Enforced(
        plan.engine.value,
        namespaces,
        plan.network.value,
        None if plan.seccomp is None else plan.seccomp.value,
        0 if plan.landlock is None else plan.landlock.abi,
        "fresh" if plan.fresh_proc else "host",
        None,
        tuple(degradations),
    )
