"""The command line of codex-linux-sandbox: `python -m pybwrap --sandbox-policy-cwd DIR --sandbox-policy JSON ...`.

Parsed by hand: the flags are few, everything from the command on is the command's, and this is the path whose
start-up time counts.
"""

from __future__ import annotations

import os
import sys

from pybwrap.cli.execution import execute, plan_here
from pybwrap.errors import PolicyError
from pybwrap.launch import host
from pybwrap.plan.sandbox import NetworkMode, plan_landlock
from pybwrap.policy.decode import permission_profile_from_json, sandbox_policy_from_json
from pybwrap.policy.profile import Enforcement, Network, PermissionProfile

__all__ = ["main"]

HELP = """\
usage: python -m pybwrap --sandbox-policy-cwd DIR --sandbox-policy JSON [OPTION...] [--] COMMAND [ARG...]

  --sandbox-policy-cwd DIR   the directory that the policy is resolved against
  --sandbox-policy JSON      {"type": "read-only"}, {"type": "workspace-write", "writable_roots": [],
                             "network_access": false, "exclude_tmpdir_env_var": false, "exclude_slash_tmp": false},
                             {"type": "external-sandbox", "network_access": "restricted"},
                             {"type": "danger-full-access"}
  --permission-profile JSON  the general form of the policy, instead of --sandbox-policy
  --use-bwrap-sandbox        with bubblewrap; the default
  --use-legacy-landlock      with Landlock and seccomp only, without namespaces
  --no-proc                  a PID namespace without a fresh /proc

Exit status: the command's own; 128+N if signal N ended it; 127 not found; 126 not executable; 125 the sandbox could
not be set up; 2 a usage or policy error.
"""

_VALUES = ("--sandbox-policy-cwd", "--sandbox-policy", "--permission-profile")
_SWITCHES = (
    "--use-bwrap-sandbox",
    "--use-legacy-landlock",
    "--apply-seccomp-then-exec",
    "--allow-network-for-proxy",
    "--no-proc",
)
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy", "ws_proxy", "wss_proxy")


def main(arguments: list[str]) -> int:
    """Runs the command under the policy and returns its exit status. Raises `PybwrapError`."""
    if arguments[0] == "--help-helper":
        sys.stdout.write(HELP)
        return 0
    values, switches, argv = _parse(arguments)
    if not argv:
        raise PolicyError("no command was given; put it after the options: -- COMMAND [ARG...]")
    profile = _profile(values)
    if not values.get("--sandbox-policy-cwd"):
        raise PolicyError("--sandbox-policy-cwd DIR is required: the directory that the policy is resolved against")
    cwd = values["--sandbox-policy-cwd"]
    proxy_only = "--allow-network-for-proxy" in switches

    if "--apply-seccomp-then-exec" in switches:
        if "--use-legacy-landlock" in switches:
            raise PolicyError("--apply-seccomp-then-exec cannot be combined with --use-legacy-landlock")
        return _inner_stage(profile, cwd, argv, proxy_only=proxy_only)
    if proxy_only and not any(_is_proxy_variable(name) for name in os.environ):
        raise PolicyError("--allow-network-for-proxy needs a proxy to allow: set HTTP_PROXY or one of its kin")
    if "--use-legacy-landlock" in switches:
        plan = plan_landlock(
            profile, policy_cwd=cwd, environment=os.environ, landlock_abi=host.landlock_abi(), proxy_only=proxy_only
        )
    else:
        plan = plan_here(profile, cwd, proxy_only=proxy_only, fresh_proc="--no-proc" not in switches)
    return execute(plan, argv)


def _is_proxy_variable(name: str) -> bool:
    return name.lower() in _PROXY_VARIABLES and bool(os.environ[name])


def _parse(arguments: list[str]) -> tuple[dict[str, str], set[str], list[str]]:
    """Options with values, switches, and the command: everything from the first word that is no option, or `--`."""
    values: dict[str, str] = {}
    switches: set[str] = set()
    index = 0
    while index < len(arguments):
        word = arguments[index]
        if word == "--":
            return values, switches, arguments[index + 1 :]
        if not word.startswith("-"):
            break
        name, has_value, value = word.partition("=")
        if name in switches or name in values:
            raise PolicyError(f"{name} is given twice")
        if name in _SWITCHES and not has_value:
            switches.add(name)
        elif name in _VALUES:
            if not has_value:
                index += 1
                if index == len(arguments):
                    raise PolicyError(f"{name} needs a value")
                value = arguments[index]
            values[name] = value
        else:
            raise PolicyError(f"unknown option {word!r}; python -m pybwrap --help-helper lists them")
        index += 1
    return values, switches, arguments[index:]


def _profile(values: dict[str, str]) -> PermissionProfile:
    if "--sandbox-policy" in values and "--permission-profile" in values:
        raise PolicyError("--sandbox-policy and --permission-profile cannot both be given")
    if "--permission-profile" in values:
        return permission_profile_from_json(values["--permission-profile"])
    if "--sandbox-policy" in values:
        return sandbox_policy_from_json(values["--sandbox-policy"]).to_profile()
    raise PolicyError('--sandbox-policy JSON is required, for example --sandbox-policy \'{"type":"read-only"}\'')


def _inner_stage(profile: PermissionProfile, cwd: str, argv: list[str], *, proxy_only: bool) -> int:
    """The last stage alone, for somebody who has built the namespaces: no_new_privs, the filter, the command."""
    network_only = PermissionProfile(None, profile.network, enforcement=profile.enforcement)
    plan = plan_landlock(network_only, policy_cwd=cwd, environment={}, landlock_abi=0, proxy_only=proxy_only)
    if plan.network is NetworkMode.FULL and profile.filesystem is not None:
        from pybwrap.plan.seccomp import SeccompMode

        plan = plan._replace(seccomp=SeccompMode.VSOCK_ONLY)
    must_be_bare = profile.enforcement is not Enforcement.DISABLED or profile.network is not Network.ENABLED
    return execute(plan, argv, refuse_capabilities=must_be_bare)
