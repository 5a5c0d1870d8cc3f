"""From a profile to an exit status: what the commands that run something share."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from pybwrap.cli import CANNOT_EXECUTE, NOT_FOUND, SETUP_FAILED, report
from pybwrap.errors import PolicyError
from pybwrap.launch import host, proc_fallback, registry
from pybwrap.launch.process import ExecError, become, block_relayed_signals, launch
from pybwrap.plan.sandbox import Engine, SandboxPlan, plan_sandbox
from pybwrap.plan.spec import Command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pybwrap.policy.profile import PermissionProfile

__all__ = ["execute", "plan_here"]


def plan_here(
    profile: PermissionProfile,
    policy_cwd: str,
    *,
    proxy_only: bool = False,
    fresh_proc: bool = True,
    allow_nested_sandboxes: bool = False,
) -> SandboxPlan:
    """Plans *profile* for this machine and this process's environment."""
    return plan_sandbox(
        profile,
        policy_cwd=policy_cwd,
        environment=os.environ,
        landlock_abi=host.landlock_abi(),
        proxy_only=proxy_only,
        fresh_proc=fresh_proc,
        allow_nested_sandboxes=allow_nested_sandboxes,
        hidden_paths=(registry.directory(),),
    )


def execute(plan: SandboxPlan, argv: Sequence[str], *, refuse_capabilities: bool = False) -> int:
    """Runs *argv* under *plan* with this process's streams and environment, and returns the exit status.

    Without namespaces this process becomes the command and does not return.
    """
    command = _command(argv)
    try:
        if plan.engine is Engine.STAGE:
            become(plan, command, refuse_capabilities=refuse_capabilities)
        # From here on a signal is the command's, which may have a handler for it.
        block_relayed_signals()
        process = launch(plan, command)
    except ExecError as error:
        return _report_exec_error(error)
    if plan.fresh_proc and not process.plan.fresh_proc:
        report(f"going on without a fresh /proc: {proc_fallback.reason()}", 0)
    ended = process.wait_relaying_signals()
    if ended.wait_status is None:
        return report("the sandbox was killed from outside before its command ended", SETUP_FAILED)
    code = os.waitstatus_to_exitcode(ended.wait_status)
    return code if code >= 0 else 128 - code


def _command(argv: Sequence[str]) -> Command:
    if not argv[0]:
        raise PolicyError("the command is empty")
    try:
        cwd = os.getcwd()
    except OSError as error:
        raise PolicyError(
            f"the current directory cannot be used ({error.strerror}); change to one that exists"
        ) from None
    environment = dict(os.environ)
    # The logical name of the directory is kept if it still is one.
    if not _is_same_directory(environment.get("PWD", ""), cwd):
        environment["PWD"] = cwd
    return Command(argv[0], tuple(argv), cwd, environment)


def _is_same_directory(first: str, second: str) -> bool:
    try:
        return first.startswith("/") and os.path.samefile(first, second)
    except OSError:
        return False


def _report_exec_error(error: ExecError) -> int:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        hint = "" if "/" in str(error.filename) else " on PATH"
        return report(f"{error.filename}: command not found{hint}", NOT_FOUND)
    hint = "; a script must begin with #! and its interpreter" if error.errno == errno.ENOEXEC else ""
    return report(f"{error.filename}: cannot be executed: {error.strerror}{hint}", CANNOT_EXECUTE)
