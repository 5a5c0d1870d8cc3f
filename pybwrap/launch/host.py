"""What the running kernel offers, asked once."""

from __future__ import annotations

from functools import cache

from pybwrap._native import lib

__all__ = ["landlock_abi"]


@cache
def landlock_abi() -> int:
    """The ABI version of Landlock (landlock(7)); 0 when the kernel has none."""
    return lib.landlock_abi()
