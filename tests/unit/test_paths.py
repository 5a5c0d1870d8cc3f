"""Reading paths: where they lead, what is missing, and which symlinks decide it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pybwrap.errors import PolicyError
from pybwrap.plan.paths import ResolvedPath, ancestors, components, is_below, resolve
from pybwrap.plan.placeholder import DIRECTORY_MODE, TARGET
from tests.unit.conftest import run_unprivileged


def test_a_plain_path_leads_to_itself(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)) == ResolvedPath(str(tmp_path), None, ())


def test_the_root_directory_leads_to_itself() -> None:
    assert resolve("/") == resolve("///") == resolve("/..") == ResolvedPath("/", None, ())


def test_empty_and_dot_components_mean_nothing(tmp_path: Path) -> None:
    assert resolve(f"/{tmp_path}//./") == ResolvedPath(str(tmp_path), None, ())


@pytest.mark.parametrize("target", ["real", "./real", "{here}/real", "../{name}/real"])
def test_a_symlink_is_followed_and_named_by_its_own_path(tmp_path: Path, target: str) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").touch()
    (tmp_path / "link").symlink_to(target.format(here=tmp_path, name=tmp_path.name))
    expected = ResolvedPath(f"{tmp_path}/real/file", None, (f"{tmp_path}/link",))
    assert resolve(f"{tmp_path}/link/file") == expected


def test_each_symlink_of_a_chain_is_named_in_the_order_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "third").symlink_to("real")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/second").symlink_to("../third")
    (tmp_path / "first").symlink_to(tmp_path / "sub/second")
    resolved = resolve(f"{tmp_path}/first")
    assert resolved == ResolvedPath(
        f"{tmp_path}/real", None, (f"{tmp_path}/first", f"{tmp_path}/sub/second", f"{tmp_path}/third")
    )


def test_a_link_below_a_linked_directory_is_named_by_its_canonical_path(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/inner").symlink_to("/")
    (tmp_path / "link").symlink_to("real")
    assert resolve(f"{tmp_path}/link/inner").links == (f"{tmp_path}/link", f"{tmp_path}/real/inner")


def test_dot_dot_after_a_symlink_leaves_its_target_not_the_link(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    assert resolve(f"{tmp_path}/link/..").real == f"{tmp_path}/a"


def test_the_first_missing_component_is_named(tmp_path: Path) -> None:
    resolved = resolve(f"{tmp_path}/gone/below/it")
    assert resolved == ResolvedPath(f"{tmp_path}/gone/below/it", f"{tmp_path}/gone", ())


def test_the_target_of_a_dangling_symlink_is_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("gone")
    resolved = resolve(f"{tmp_path}/link/x")
    assert resolved == ResolvedPath(f"{tmp_path}/gone/x", f"{tmp_path}/gone", (f"{tmp_path}/link",))


def test_below_a_file_everything_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert resolve(f"{tmp_path}/file/x/y").missing == f"{tmp_path}/file/x"


def test_dot_dot_out_of_what_is_missing_leads_to_what_is_there(tmp_path: Path) -> None:
    # A rule on such a path must hold for what its words name: it would else deny what it never mounts over.
    (tmp_path / "secret").touch()
    assert resolve(f"{tmp_path}/gone/../secret") == ResolvedPath(f"{tmp_path}/secret", None, ())
    assert resolve(f"{tmp_path}/gone/a/../../secret") == ResolvedPath(f"{tmp_path}/secret", None, ())


def test_dot_dot_within_what_is_missing_stays_missing(tmp_path: Path) -> None:
    resolved = resolve(f"{tmp_path}/gone/a/../b")
    assert resolved == ResolvedPath(f"{tmp_path}/gone/b", f"{tmp_path}/gone", ())


@pytest.mark.parametrize("links", [{"a": "a"}, {"a": "b", "b": "a"}, {"a": "b/x", "b": "a/x"}])
def test_a_loop_of_symlinks_is_a_policy_error_that_names_the_path(tmp_path: Path, links: dict[str, str]) -> None:
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    with pytest.raises(PolicyError, match="too many symlinks") as caught:
        resolve(f"{tmp_path}/a/x")
    assert f"{tmp_path}/a/x" in str(caught.value)


@pytest.mark.parametrize("length", [40, 41])
def test_as_many_symlinks_are_followed_as_the_kernel_follows(tmp_path: Path, length: int) -> None:
    (tmp_path / "0").touch()
    for number in range(1, length + 1):
        (tmp_path / str(number)).symlink_to(str(number - 1))
    if length == 40:
        assert resolve(f"{tmp_path}/40").real == os.path.realpath(f"{tmp_path}/40", strict=True)
    else:
        with pytest.raises(OSError, match="symbolic links"):
            (tmp_path / "41").stat()
        with pytest.raises(PolicyError, match="too many symlinks"):
            resolve(f"{tmp_path}/41")


def test_a_directory_that_may_not_be_looked_into_is_a_policy_error(workspace: Path) -> None:
    def as_nobody() -> None:
        with pytest.raises(PolicyError, match="Permission denied") as caught:
            resolve(f"{workspace}/closed/x")
        assert f"cannot look at '{workspace}/closed/x'" in str(caught.value)

    (workspace / "closed").mkdir(mode=0)
    run_unprivileged(as_nobody)


def test_a_name_longer_than_any_file_can_have_is_a_policy_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="too long"):
        resolve(f"{tmp_path}/{'x' * 256}")


def test_names_that_are_not_utf_8_keep_their_bytes(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9"
    (tmp_path / "caf\udce9").mkdir()
    (tmp_path / "link").symlink_to("caf\udce9")
    assert os.fsencode(resolve(f"{tmp_path}/link/x").real) == raw + b"/x"


def test_a_placeholder_directory_counts_as_missing_though_it_stands(tmp_path: Path) -> None:
    stands = f"{tmp_path}/stands"
    Path(stands).mkdir(DIRECTORY_MODE)
    assert resolve(f"{stands}/below") == ResolvedPath(f"{stands}/below", stands, ())


def test_a_placeholder_symlink_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(TARGET)
    link = f"{tmp_path}/link"
    assert resolve(link) == ResolvedPath(link, link, ())


def test_a_placeholder_is_recognised_through_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "stands").mkdir(DIRECTORY_MODE)
    (tmp_path / "link").symlink_to("stands")
    assert resolve(f"{tmp_path}/link").missing == f"{tmp_path}/stands"


@pytest.mark.parametrize("mode", [0o755, 0o1777, 0o1775, 0o2755, 0o3755])
def test_no_other_mode_makes_an_empty_directory_a_placeholder(tmp_path: Path, mode: int) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty").chmod(mode)
    assert resolve(f"{tmp_path}/empty").missing is None


def test_a_path_is_below_a_directory_only_at_a_component_boundary() -> None:
    assert is_below("/a/b", "/a")
    assert is_below("/a", "/")
    assert not is_below("/ab", "/a")
    assert not is_below("/a", "/a")
    assert not is_below("/", "/")


def test_ancestors_come_nearest_first_and_end_with_the_root() -> None:
    assert ancestors("/a/b/c") == ["/a/b", "/a", "/"]
    assert ancestors("/") == []


def test_the_root_directory_has_no_components() -> None:
    assert [components(path) for path in ("/", "/a", "/a/b")] == [0, 1, 2]
