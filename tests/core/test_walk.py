"""The order of a walk over a data directory, and what it is good for: two walks are merged without holding either."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.source import SourceDirectory, SourceFile
from pgwal.backup.walk import EntryKind, EntryStatus, walk, with_prior_sizes
from pgwal.errors import ChecksumMismatch

# Names that sort differently as parts of a path and within the whole of it.
NAMES = st.sampled_from(["a", "a.1", "a-b", "aa", "b", "é", "\udce9", "10", "9", "Z"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TREES = st.sets(PATHS, max_size=25).map(
    lambda paths: {p: n for n, p in enumerate(sorted(paths)) if not any(o.startswith(p + "/") for o in paths)}
)
TAIL = ["global/pg_control", "backup_label"]


class Tree:
    """Files by their paths, with their sizes, as a directory reader."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self._sizes = sizes

    def names(self, directory: str) -> list[str]:
        prefix = f"{directory}/" if directory else ""
        found = {path[len(prefix) :].split("/")[0] for path in self._sizes if path.startswith(prefix)}
        return random.Random(len(found)).sample(sorted(found), len(found))

    def statuses(self, directory: str, names: Sequence[str]) -> Iterator[EntryStatus | None]:
        for name in names:
            size = self._sizes.get(f"{directory}/{name}" if directory else name)
            yield EntryStatus(EntryKind.DIRECTORY if size is None else EntryKind.FILE, size or 0, 0.0)


def listing(sizes: dict[str, int]) -> list[SourceDirectory | SourceFile]:
    return list(walk(Tree(sizes), 18, lambda _: None))


def entry_files(sizes: dict[str, int]) -> list[BackupFile]:
    """Return the files as a backup of the tree notes them."""
    listed = [(item.path, item.size_bytes) for item in listing(sizes) if isinstance(item, SourceFile)]
    return [BackupFile(path, size, size, 0o600, 0, "0" * 32) for path, size in [*listed, *((p, 1) for p in TAIL)]]


@settings(deadline=None)
@given(now=TREES, before=TREES)
def test_each_file_gets_its_size_in_the_prior_backup(now: dict[str, int], before: dict[str, int]) -> None:
    absent: list[BackupFile] = []
    found = list(with_prior_sizes(listing(now), entry_files(before), absent.append))
    assert {file.path for file in absent} == {*before, *TAIL} - set(now)
    assert [item for item, _ in found] == listing(now)
    assert found == [(item, before.get(item.path) if isinstance(item, SourceFile) else None) for item, _ in found]


@settings(deadline=None)
@given(now=TREES, seed=st.integers(0, 1000))
def test_out_of_order_a_file_is_taken_for_new_at_worst(now: dict[str, int], seed: int) -> None:
    files = entry_files(now)
    random.Random(seed).shuffle(files)
    for item, size_bytes in with_prior_sizes(listing(now), files):
        assert size_bytes is None or size_bytes == now[item.path]


def test_other_tablespaces_are_left_out_with_their_links() -> None:
    version = "PG_18_202506291"
    files = {f"pg_tblspc/{oid}/{version}/5/{number}": 1 for oid in (16400, 16401) for number in (1, 2)}
    tree = Tree({**files, "pg_tblspc/own": 1, "zz/16401": 1})
    skipped: list[str] = []
    listed = {item.path for item in walk(tree, 18, skipped.append, (), {16400, 5})}
    assert listed & set(files) == {path for path in files if "16400" in path}
    assert "pg_tblspc/16401" not in listed
    assert {"pg_tblspc/16400", "zz/16401"} <= listed
    # What is no tablespace there may be a link to anything.
    assert "pg_tblspc/own" not in listed
    assert skipped == ["pg_tblspc/own"]


@pytest.mark.parametrize("place", ["side", "own/side", "PG_18_202506291"])
def test_a_tablespace_is_listed_where_its_link_is_alone(place: str) -> None:
    version = "PG_18_202506291"
    files = {f"{where}/{version}/5/1": 1 for where in (place, "pg_tblspc/16400")}
    listed = {item.path for item in walk(Tree(files), 18, pytest.fail)}
    assert [path for path in listed if path.endswith("/5/1")] == [f"pg_tblspc/16400/{version}/5/1"]


def test_the_prior_backup_is_read_to_its_end() -> None:
    def damaged() -> Iterator[BackupFile]:
        yield from entry_files({"a": 1, "z": 2})
        raise ChecksumMismatch("only here it shows")

    with pytest.raises(ChecksumMismatch):
        list(with_prior_sizes(listing({"a": 1}), damaged()))
