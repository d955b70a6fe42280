"""Atomic writes, broken JSON, full devices, and stable hashes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sims.errors import UserError
from sims.files import atomic_path, digest, digest_file, read_json, remove_leftovers, write_atomic, write_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_write_creates_folders_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.bin"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["b.bin"]


def test_a_failed_write_keeps_the_old_file_and_removes_the_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_atomic(path, b"old")
    with pytest.raises(RuntimeError, match="stop"), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        assert temporary.suffix == ".json" and temporary.name.startswith(".")
        raise RuntimeError("stop")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), RuntimeError("I/O error: No space left on device (os error 28)")]
)
def test_a_full_device_is_a_sentence(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "x.bin"
    with pytest.raises(UserError) as caught, atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert str(caught.value) == (
        f"no space left on the device while writing {path}: free some space and run the same command again"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_full_device_while_syncing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no space left on the device"):
        write_json(tmp_path / "x.json", {})


def test_other_errors_pass_through(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        write_atomic(tmp_path / "file" / "x", b"")


def test_leftovers_of_killed_processes_are_removed_unless_recent(tmp_path: Path) -> None:
    leftover = tmp_path / ".part-0.tmp-12ab.parquet"
    leftover.write_bytes(b"")
    (tmp_path / "part-0.parquet").write_bytes(b"")
    assert remove_leftovers(tmp_path) == []
    os.utime(leftover, (0, 0))
    assert remove_leftovers(tmp_path) == [leftover]
    assert [p.name for p in tmp_path.iterdir()] == ["part-0.parquet"]


def test_json_round_trip(tmp_path: Path) -> None:
    obj = {"ü": [1, None, 0.1, os.fsdecode(b"bad name \xff")]}
    write_json(tmp_path / "x.json", obj)
    assert read_json(tmp_path / "x.json") == obj
    assert digest(obj) == digest(read_json(tmp_path / "x.json"))


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b""])
def test_broken_json_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json is not valid JSON"):
        read_json(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x\.json"):
        read_json(tmp_path / "x.json")
    with pytest.raises(UserError, match="cannot read"):
        read_json(tmp_path)
    with pytest.raises(UserError, match=r"no file .*x: check the path"):
        digest_file(tmp_path / "x")


def test_digest_is_pinned() -> None:
    """Content addresses outlive a version: this value must never change."""
    expected = "c032696470abfd34e0d82192e43e8813b7706b61"
    assert digest(b"ab", "c", {"b": 1, "a": [True, None]}) == digest(b"ab", "c", {"a": (True, None), "b": 1})
    assert digest(b"ab", "c", {"b": 1, "a": [True, None]})[:40] == expected


@settings(max_examples=30, deadline=None)
@given(JSON)
def test_digest_tells_parts_kinds_and_order_apart(obj: object) -> None:
    assert digest(obj) == digest(obj)
    assert len({digest(obj), digest(obj, obj), digest([obj]), digest(str(obj).encode())}) == 4


def test_digest_boundaries_and_files(tmp_path: Path) -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest("a") != digest(b"a")
    (tmp_path / "x").write_bytes(b"abc")
    assert digest_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
