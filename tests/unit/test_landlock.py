"""Landlock rulesets by the ABI version of the kernel (landlock(7))."""

from __future__ import annotations

import pytest

from pybwrap.plan.landlock import LandlockRule, legacy_ruleset, second_layer

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
SCOPES = 3
"""Abstract UNIX sockets and signals."""

HANDLED = {
    1: 0x1FFF,
    2: 0x1FFF | REFER,
    3: 0x1FFF | REFER | TRUNCATE,
    4: 0x1FFF | REFER | TRUNCATE,
    5: 0x1FFF | REFER | TRUNCATE | IOCTL_DEV,
    6: 0x1FFF | REFER | TRUNCATE | IOCTL_DEV,
    7: 0x1FFF | REFER | TRUNCATE | IOCTL_DEV,
}
WRITABLE = (("/d", True), ("/f", False))


@pytest.mark.parametrize("abi", HANDLED)
def test_the_legacy_ruleset_handles_every_right_of_the_abi_and_none_it_does_not_know(abi: int) -> None:
    assert legacy_ruleset(abi, ()).filesystem == HANDLED[abi]


@pytest.mark.parametrize("abi", HANDLED)
def test_the_legacy_ruleset_reads_everything_and_writes_what_is_named(abi: int) -> None:
    handled = HANDLED[abi]
    assert legacy_ruleset(abi, WRITABLE).rules == (
        LandlockRule("/", READ),
        LandlockRule("/dev/null", EXECUTE | READ_FILE | WRITE_FILE),
        LandlockRule("/d", handled),
        LandlockRule("/f", handled & ON_FILES),
    )


@pytest.mark.parametrize("abi", [2, 3, 4, 5, 6, 7])
def test_the_second_layer_leaves_the_sandboxs_own_dev_and_proc_as_they_are(abi: int) -> None:
    handled = HANDLED[abi]
    ruleset = second_layer(abi, WRITABLE, allow_nested_sandboxes=False)
    assert ruleset is not None
    assert (ruleset.abi, ruleset.filesystem) == (abi, handled)
    assert ruleset.rules == (
        LandlockRule("/", READ),
        LandlockRule("/dev", handled),
        LandlockRule("/proc", handled),
        LandlockRule("/d", handled),
        LandlockRule("/f", handled & ON_FILES),
    )


@pytest.mark.parametrize("abi", [2, 7])
def test_a_rule_on_a_file_grants_no_right_that_only_directories_have(abi: int) -> None:
    # The kernel refuses the whole rule otherwise (EINVAL).
    ruleset = second_layer(abi, (("/f", False),), allow_nested_sandboxes=False)
    assert ruleset is not None
    (rule,) = (rule for rule in ruleset.rules if rule.path == "/f")
    assert rule.access & ~ON_FILES == 0
    assert rule.access & WRITE_FILE


@pytest.mark.parametrize("abi", [0, 1])
@pytest.mark.parametrize("nested", [False, True])
def test_a_kernel_that_would_forbid_moving_files_adds_no_layer(abi: int, nested: bool) -> None:  # noqa: FBT001
    assert second_layer(abi, WRITABLE, allow_nested_sandboxes=nested) is None


@pytest.mark.parametrize("abi", [2, 3, 4, 5])
def test_without_scopes_nested_sandboxes_leave_nothing_to_offer(abi: int) -> None:
    assert second_layer(abi, WRITABLE, allow_nested_sandboxes=True) is None


@pytest.mark.parametrize("abi", [6, 7])
def test_nested_sandboxes_get_the_scopes_only_for_they_must_mount(abi: int) -> None:
    ruleset = second_layer(abi, WRITABLE, allow_nested_sandboxes=True)
    assert ruleset is not None
    assert (ruleset.filesystem, ruleset.scoped, ruleset.rules) == (0, SCOPES, ())


@pytest.mark.parametrize("abi", HANDLED)
def test_signals_and_abstract_sockets_are_scoped_as_soon_as_the_kernel_can(abi: int) -> None:
    expected = SCOPES if abi >= 6 else 0
    assert legacy_ruleset(abi, ()).scoped == expected
    layer = second_layer(abi, (), allow_nested_sandboxes=False)
    assert layer is None or layer.scoped == expected
