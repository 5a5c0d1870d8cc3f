"""The launch specification, read back with the structures that csrc/spec.h declares."""

from __future__ import annotations

import ctypes
import os
import pathlib
import re
from typing import Any

import pytest

from pybwrap.errors import PolicyError
from pybwrap.plan.landlock import LandlockRule, LandlockRuleset
from pybwrap.plan.operation import Operation, OperationKind
from pybwrap.plan.sandbox import Engine, NetworkMode, SandboxPlan
from pybwrap.plan.spec import Claim, Command, pack_spec

HEADER = (pathlib.Path(__file__).parents[2] / "csrc" / "spec.h").read_text()
SECTIONS = re.findall(r"SPEC_\w+", re.sub(r"/\*.*?\*/", "", HEADER.split("enum spec_section {")[1].split("}")[0]))
FLAGS = {name: 1 << int(bit) for name, bit in re.findall(r"(SPEC_\w+) = 1 << (\d+)", HEADER)}
C_TYPES: dict[str, Any] = {"uint32_t": ctypes.c_uint32, "int32_t": ctypes.c_int32, "uint64_t": ctypes.c_uint64}


def c_structure(name: str) -> type[ctypes.Structure]:
    """A structure as the compiler lays it out, from its declaration."""
    body = re.sub(r"/\*.*?\*/", "", HEADER.split(f"struct {name} {{")[1].split("};")[0], flags=re.DOTALL)
    fields: list[tuple[str, Any]] = []
    for kind, field, array in re.findall(r"((?:struct )?\w+) (\w+)(\[SPEC_SECTION_COUNT\])?;", body):
        c_type = C_TYPES.get(kind) or c_structure(kind.removeprefix("struct "))
        fields.append((field, c_type * SECTIONS.index("SPEC_SECTION_COUNT") if array else c_type))
    assert len(fields) == body.count(";")
    return type(name, (ctypes.Structure,), {"_fields_": fields})


class Spec:
    """A packed block, taken apart."""

    def __init__(self, block: bytes) -> None:
        self.block = block
        self.header: Any = c_structure("spec_header").from_buffer_copy(block)

    def section(self, name: str) -> Any:  # noqa: ANN401 - a structure made at run time
        return self.header.sections[SECTIONS.index(f"SPEC_{name}")]

    def content(self, name: str) -> bytes:
        section = self.section(name)
        return self.block[section.offset : section.offset + section.size]

    def strings(self, name: str) -> list[bytes]:
        content = self.content(name)
        assert not content or content.endswith(b"\0")
        strings = content.split(b"\0")[:-1]
        assert len(strings) == self.section(name).count
        return strings

    def structures(self, name: str, kind: str) -> list[Any]:
        structure = c_structure(kind)
        count = self.section(name).count
        assert self.section(name).size == count * ctypes.sizeof(structure)
        return list((structure * count).from_buffer_copy(self.content(name))) if count else []

    def string(self, offset: int) -> bytes:
        return self.content("STRINGS")[offset:].partition(b"\0")[0]


LANDLOCK = LandlockRuleset(6, 0x1FFF, 3, (LandlockRule("/", 13), LandlockRule("/caf\udce9", 0x1FFF)))
OPERATIONS = (
    Operation(OperationKind.READ_ONLY_BIND, "/", "r", "/"),
    Operation(OperationKind.BIND, "/caf\udce9", "r", "/caf\udce9"),
    Operation(OperationKind.PIN_SYMLINK, "/l\udcff", "r"),
    Operation(OperationKind.PIN_SYMLINK, "/m", "r"),
)
SANDBOX = SandboxPlan(Engine.BUBBLEWRAP, OPERATIONS, None, NetworkMode.ISOLATED, None, LANDLOCK, fresh_proc=True)
STAGE = SandboxPlan(Engine.STAGE, (), None, NetworkMode.FULL, None, None)
COMMAND = Command("/bin/sh", ("sh", "-c", "", "\udcfe"), "/work", {"PATH": "/bin", "BYTES": "\udcfd", "EMPTY": ""})
CLAIMS = (
    Claim("/w/.git", True, 7, "/r/1"),
    Claim("/w/.c\udce9", False, 8, "/r/2"),
)


def pack(plan: SandboxPlan = SANDBOX, command: Command = COMMAND, **more: Any) -> Spec:  # noqa: ANN401 - passed on
    return Spec(pack_spec(plan, command, **more))


FULL = pack(
    command=COMMAND._replace(inherited_fds=(5, 9), resource_limits=((7, 64, 2**64 - 1),)),
    seccomp_filter=bytes(range(24)),
    setup_socket=3,
    exit_socket=4,
    owner_pidfd=6,
    claims=CLAIMS,
)


def test_the_header_says_what_the_block_is_and_how_long() -> None:
    (magic,) = re.findall(r"SPEC_MAGIC (0x\w+)u", HEADER)
    assert FULL.header.magic == int(magic, 16)
    assert FULL.header.size == len(FULL.block)


def test_the_header_carries_the_descriptors_and_the_landlock_masks() -> None:
    header = FULL.header
    assert (header.setup_socket, header.exit_socket, header.owner_pidfd) == (3, 4, 6)
    assert (header.landlock_filesystem, header.landlock_scoped) == (0x1FFF, 3)


def test_descriptors_that_are_not_given_are_minus_one_and_no_landlock_is_zero() -> None:
    header = pack(STAGE).header
    assert (header.setup_socket, header.exit_socket, header.owner_pidfd) == (-1, -1, -1)
    assert (header.landlock_filesystem, header.landlock_scoped) == (0, 0)


@pytest.mark.parametrize("spec", [FULL, pack(), pack(STAGE)])
def test_every_section_is_aligned_lies_in_the_block_and_overlaps_no_other(spec: Spec) -> None:
    end = ctypes.sizeof(c_structure("spec_header"))
    for section in spec.header.sections:
        assert section.offset % 8 == 0
        assert section.offset >= end
        end = section.offset + section.size
    assert end <= len(spec.block)


def test_strings_come_in_their_order_with_every_byte() -> None:
    assert FULL.strings("COMMAND") == [b"/bin/sh", b"sh", b"-c", b"", b"\xfe"]
    assert FULL.strings("ENVIRONMENT") == [b"PATH=/bin", b"BYTES=\xfd", b"EMPTY="]
    assert FULL.strings("PINNED_SYMLINKS") == [b"/l\xff", b"/m"]


def test_bubblewraps_arguments_are_the_plans_with_the_name_of_the_command_alone() -> None:
    # What else the command has counts against bubblewrap's limit, and the stage takes it from the specification.
    arguments = [os.fsdecode(word) for word in FULL.strings("BUBBLEWRAP_ARGUMENTS")]
    assert arguments == SANDBOX.command_line(("sh",), "/work")
    assert "/caf\udce9" in arguments


def test_bubblewrap_changes_the_directory_and_without_it_the_stage_does() -> None:
    assert FULL.strings("WORKING_DIRECTORY") == []
    assert pack(STAGE).strings("WORKING_DIRECTORY") == [b"/work"]
    assert pack(STAGE).strings("BUBBLEWRAP_ARGUMENTS") == []


def test_the_filter_is_counted_in_instructions() -> None:
    assert FULL.content("SECCOMP_FILTER") == bytes(range(24))
    assert FULL.section("SECCOMP_FILTER").count == 3


def test_landlock_rules_point_to_their_paths() -> None:
    rules = FULL.structures("LANDLOCK_RULES", "spec_landlock_rule")
    assert [(FULL.string(rule.path), rule.access) for rule in rules] == [(b"/", 13), (b"/caf\xe9", 0x1FFF)]


def test_resource_limits_keep_all_their_bits() -> None:
    (limit,) = FULL.structures("RESOURCE_LIMITS", "spec_resource_limit")
    assert (limit.resource, limit.soft, limit.hard) == (7, 64, 2**64 - 1)


def test_inherited_descriptors_are_listed() -> None:
    assert list((ctypes.c_int32 * 2).from_buffer_copy(FULL.content("INHERITED_FDS"))) == [5, 9]
    assert FULL.section("INHERITED_FDS").count == 2


def test_placeholders_say_how_they_are_recognised_and_whose_lock_keeps_them() -> None:
    found = FULL.structures("PLACEHOLDERS", "spec_placeholder")
    assert [(FULL.string(p.path), p.kind, p.lock_fd, FULL.string(p.registry_path)) for p in found] == [
        (b"/w/.git", 1, 7, b"/r/1"),
        (b"/w/.c\xe9", 0, 8, b"/r/2"),
    ]


def flags(spec: Spec) -> set[str]:
    assert spec.header.flags & ~sum(FLAGS.values()) == 0
    return {name for name, bit in FLAGS.items() if spec.header.flags & bit}


def test_a_sandbox_drops_everything() -> None:
    expected = {"SPEC_BUBBLEWRAP", "SPEC_REFUSE_CAPABILITIES", "SPEC_NO_NEW_PRIVS", "SPEC_PROCESS_GROUP"}
    assert flags(pack()) == expected


def test_a_command_without_restrictions_keeps_its_privileges() -> None:
    assert flags(pack(STAGE)) == {"SPEC_PROCESS_GROUP"}
    assert flags(pack(STAGE, process_group=False)) == set()


def test_a_stage_with_restrictions_gains_no_privileges_and_drops_or_refuses_capabilities() -> None:
    restricted = STAGE._replace(landlock=LANDLOCK)
    assert flags(pack(restricted, process_group=False)) == {"SPEC_NO_NEW_PRIVS", "SPEC_DROP_CAPABILITIES"}
    bare = {"SPEC_NO_NEW_PRIVS", "SPEC_REFUSE_CAPABILITIES"}
    assert flags(pack(restricted, process_group=False, refuse_capabilities=True)) == bare


def with_arguments(count: int) -> SandboxPlan:
    """A plan whose bubblewrap command line has *count* words."""
    spare = count - len(SANDBOX._replace(operations=()).command_line(("sh",), "/work"))
    covers = spare * 2 % 3  # a bind has three words and a tmpfs two
    operations = [Operation(OperationKind.TMPFS, "/t", "r")] * covers
    operations += [Operation(OperationKind.BIND, "/b", "r", "/")] * ((spare - 2 * covers) // 3)
    return SANDBOX._replace(operations=tuple(operations))


def test_as_many_arguments_as_bubblewrap_takes_are_packed_and_one_more_is_a_policy_error() -> None:
    with_arguments(9000).check_argument_count()
    assert pack(with_arguments(9000)).section("BUBBLEWRAP_ARGUMENTS").count == 9000
    with pytest.raises(PolicyError, match="needs 9001 arguments of bubblewrap, which takes 9000; grant a directory"):
        with_arguments(9001).check_argument_count()


def test_the_arguments_of_the_command_do_not_count_against_bubblewraps_limit() -> None:
    many = COMMAND._replace(argv=("sh", *["x"] * 20_000))
    assert pack(command=many).section("COMMAND").count == 20_002


@pytest.mark.parametrize(
    "command",
    [
        COMMAND._replace(argv=("sh", "a\0b")),
        COMMAND._replace(executable="/bin/s\0h"),
        COMMAND._replace(environment={"A": "x\0B=y"}),
        COMMAND._replace(cwd="/w\0"),
    ],
    ids=["argument", "executable", "environment", "directory"],
)
def test_a_nul_cannot_split_one_string_into_two(command: Command) -> None:
    with pytest.raises(ValueError, match=r"(?i)nul"):
        pack(STAGE, command)
