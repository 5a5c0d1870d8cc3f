"""What a command may do, as plain frozen data. Nothing here touches the machine or knows of bubblewrap."""

from pybwrap.policy.profile import Access, Enforcement, FilesystemEntry, Network, PermissionProfile
from pybwrap.policy.sandbox_policy import PolicyType, SandboxPolicy

__all__ = [
    "Access",
    "Enforcement",
    "FilesystemEntry",
    "Network",
    "PermissionProfile",
    "PolicyType",
    "SandboxPolicy",
]
