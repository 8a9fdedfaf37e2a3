"""A copy while an expire of its source rewrites and removes packs: what counts there is whole, wherever they meet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from threading import Event, Lock, Thread

import pytest
from keeping.growing_chain import GrowingChain, tiny_frames
from keeping.stored_repository import build_wal
from keeping.test_rewriting import ALL, RULES, assert_whole, move_again, packs, tables, worn_chain, worn_packs
from repository.places import memory
from repository.test_crashes import Site
from seeds import new_seed
from support.fate import Fate
from support.faulty_store import FaultyPlace

from pgwal.backup.pack_use import WornPack
from pgwal.engine.copy_repository import CopyRequest, copy_repository
from pgwal.engine.expire import ExpireRequest, expire
from pgwal.engine.initialise import initialise
from pgwal.engine.merge import MergeRequest, merge_backup
from pgwal.errors import RepositoryLocked
from pgwal.repository import pack_rewriting
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import DEFAULT_PACKED_FORMAT, PLAIN_FORMAT, StorageFormat

IS_EXHAUSTIVE = "PGWAL_LARGE_TESTS" in os.environ
FEW = 6


class Meeting(Fate):
    """Has something happen before the operations of given numbers, reads included."""

    def __init__(self, acts: Mapping[int, Callable[[], None]]) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._acts = acts
        self._lock = Lock()

    def meet(self, operation: str, name: str) -> None:
        with self._lock:
            act = self._acts.get(len(self.seen))
            self.seen.append(f"{operation} {name}")
        if act is not None:
            act()


def some(operations: Sequence[str], *also: str) -> set[int]:
    """Return numbers of operations: all, or some of those on packs and tables and some of the others.

    Of those that begin with each of some words, one is among them.
    """
    numbers, random = range(len(operations)), Random(new_seed())
    if IS_EXHAUSTIVE:
        return set(numbers)
    of_packs = {n for n in numbers if "packs/" in operations[n] or "moved_frames" in operations[n]}
    found = {random.choice([n for n in numbers if operations[n].startswith(words)]) for words in also}
    for each in (of_packs, set(numbers) - of_packs):
        found |= set(random.sample(sorted(each), min(len(each), FEW)))
    return found


@pytest.fixture(autouse=True)
def small_packs() -> Iterator[None]:
    with tiny_frames():
        yield


@pytest.fixture(params=["local", "cloud_memory"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return Site(request.param, tmp_path)


@pytest.fixture
def chain(site: Site) -> GrowingChain:
    """Worn packs, and backups of which an expire removes some."""
    chain = worn_chain(site.origin)
    merge_backup(MergeRequest(chain.place))
    chain.incremental()
    build_wal(chain.repository, len(chain.contents))
    assert worn_packs(chain.place)
    return chain


def target(tmp_path: Path, storage_format: StorageFormat) -> Place:
    place = memory(tmp_path)
    initialise(place, storage_format)
    return place


def copied_whole(chain: GrowingChain, tmp_path: Path, source: Place, to: Place) -> None:
    """Check that all of the source comes with another copy, and is what was backed up."""
    assert copy_repository(CopyRequest(source, to)).problems == []
    assert set(Repository.open(source).catalogue.ids()) <= set(Repository.open(to).catalogue.ids())
    assert_whole(chain, tmp_path, to)


def test_who_copies_at_any_operation_of_an_expire(chain: GrowingChain, site: Site, tmp_path: Path) -> None:
    """Nothing is copied while backups are removed; what is rewritten is, wherever it is then."""
    whole = Meeting({})
    expire(ExpireRequest(FaultyPlace(site.copy(), whole), RULES, max_rewrite_bytes=ALL))
    refused, copied = dict[int, str](), list[int]()
    retires = "rename backups" if site.origin.directory else "delete backups"
    for number in some(whole.seen, retires, "put moved_frames"):
        place, to = site.copy(), target(tmp_path, DEFAULT_PACKED_FORMAT)

        def copy(number: int = number, place: Place = place, to: Place = to) -> None:
            try:
                assert copy_repository(CopyRequest(place, to)).problems == []
                copied.append(number)
                assert_whole(chain, tmp_path, to)
            except RepositoryLocked as error:
                refused[number] = f"{error} {error.hint}"
                assert packs(to) == {}

        report = expire(ExpireRequest(FaultyPlace(place, Meeting({number: copy})), RULES, max_rewrite_bytes=ALL))
        assert report.rewritten
        copied_whole(chain, tmp_path, place, to)
    assert refused
    assert all(each.endswith(" is being removed Wait until that has ended.") for each in refused.values())
    assert copied
    assert not IS_EXHAUSTIVE or max(refused) < max(copied)


@pytest.mark.parametrize("to_format", [DEFAULT_PACKED_FORMAT, PLAIN_FORMAT], ids=["packed", "plain"])
def test_what_is_rewritten_at_any_operation_of_a_copy_comes_all_the_same(
    chain: GrowingChain,
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    to_format: StorageFormat,
) -> None:
    """And once more when that has been moved on."""

    def copied(number: int | None) -> list[str]:
        place, to = site.copy(), target(tmp_path, to_format)
        with monkeypatch.context() as patched:
            rewriting = Rewriting(place, patched)
            acts = {} if number is None else {number: rewriting.go_on, number + 4: rewriting.go_further}
            meeting = Meeting(acts)
            report = copy_repository(CopyRequest(FaultyPlace(place, meeting), to, jobs=1))
            rewriting.go_on()
        assert report.problems == [], meeting.seen[number or 0]
        assert_whole(chain, tmp_path, to)
        copied_whole(chain, tmp_path, place, to)
        return meeting.seen

    for number in some(copied(None)):
        copied(number)


class Rewriting:
    """An expire that stands still where it begins to rewrite packs, in a thread."""

    def __init__(self, place: Place, patched: pytest.MonkeyPatch) -> None:
        self._place = place
        self._begun, self._may_go_on = Event(), Event()
        self._rewrite = pack_rewriting.rewrite_packs
        self._thread = Thread(target=self._expire, daemon=True)
        patched.setattr(pack_rewriting, "rewrite_packs", self._wait)
        self._thread.start()
        self._begun.wait()

    def _expire(self) -> None:
        try:
            expire(ExpireRequest(self._place, RULES, max_rewrite_bytes=ALL))
        finally:
            self._begun.set()

    def _wait(self, place: Place, worn: Sequence[WornPack], on_stored: Callable[[int], None]) -> list[WornPack]:
        self._begun.set()
        self._may_go_on.wait()
        return self._rewrite(place, worn, on_stored)

    def go_on(self) -> None:
        """Let it go on to its end, the first time."""
        if self._thread.is_alive():
            self._may_go_on.set()
            self._thread.join()
            assert tables(self._place)

    def go_further(self) -> None:
        """Move what has been moved once more."""
        move_again(self._place, tables(self._place))
