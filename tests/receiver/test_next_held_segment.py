"""A segment that is begun in memory while the one before it is stored: nothing of it is anywhere before that is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from receiver.model_server import GEOMETRY

from pgwal.errors import StorageFull
from pgwal.lsn import Lsn
from pgwal.repository.held_segment import HeldPieces, HeldSegment
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.spool import Appender
from pgwal.repository.store import ObjectSealer
from pgwal.repository.wal_writer import WalWriter

SIZE = GEOMETRY.segment_size
FIRST = 3
START = GEOMETRY.segment_start(FIRST)


class SlowArchive:
    """Takes whole segments when it is told to, in ``taken``; or fails then."""

    def __init__(self) -> None:
        self.taken: dict[str, bytes] = {}
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.fails = False

    def sealer(self, name: str) -> None:
        pass

    def store_whole(self, name: str, content: HeldPieces | ObjectSealer) -> bool:
        self.begun.release()
        assert self.may_end.acquire(timeout=60)
        if self.fails:
            raise StorageFull("there is no room")
        self.taken[name] = b"".join(content.content_from(0))
        return True


class HoldingPlace(LocalPlace):
    """A directory whose open segments are held, but for those of ``begun``."""

    def __init__(self, root: Path, archive: SlowArchive) -> None:
        super().__init__(root)
        self.archive = archive
        self.begun: set[int] = set()

    @property
    def spool(self) -> HoldingPlace:  # type: ignore[override]
        return self

    def preallocate(self, name: str, size_bytes: int, *, zeroed: bool = False) -> Appender:
        spool = LocalPlace(self.root).spool
        if self.holds(name, size_bytes, zeroed=zeroed):
            return HeldSegment(spool, name, size_bytes, self.archive)
        return spool.preallocate(name, size_bytes, zeroed=zeroed)

    def holds(self, name: str, size_bytes: int, *, zeroed: bool = False) -> bool:  # noqa: ARG002
        return not zeroed and all(GEOMETRY.file_name(1, number) not in name for number in self.begun)

    def settle(self, folder: str) -> None:
        LocalPlace(self.root).spool.settle(folder)

    def names(self) -> list[str]:
        return sorted(path.name for path in (self.root / "wal").iterdir())


class Observer:
    def __init__(self) -> None:
        self.completed: list[str] = []

    def segment_completed(self, name: str) -> None:
        self.completed.append(name)

    def wal_synced(self, seconds: float) -> None:
        pass


@pytest.fixture
def archive() -> SlowArchive:
    return SlowArchive()


@pytest.fixture
def place(tmp_path: Path, archive: SlowArchive) -> HoldingPlace:
    place = HoldingPlace(tmp_path, archive)
    place.make(["wal"])
    return place


@pytest.fixture
def observer() -> Observer:
    return Observer()


@pytest.fixture
def writer(place: HoldingPlace, observer: Observer, archive: SlowArchive) -> Iterator[WalWriter]:
    writer = WalWriter(place, GEOMETRY, 1, START, observer, synchronous=False, is_read_soon=False)
    yield writer
    archive.may_end.release(100)
    writer.close()


def content(number: int, size_bytes: int = SIZE) -> bytes:
    return bytes([number]) * size_bytes


def name(number: int) -> str:
    return GEOMETRY.file_name(1, FIRST + number)


def test_the_next_one_waits_in_memory(
    writer: WalWriter, place: HoldingPlace, archive: SlowArchive, observer: Observer
) -> None:
    writer.write(content(1))
    assert archive.begun.acquire(timeout=60)
    writer.write(content(2, 1000))
    writer.write(content(2, 500))
    assert writer.flushed_lsn == writer.written_lsn == START
    assert not observer.completed
    assert place.names() == []
    archive.may_end.release()
    writer.sync()
    assert writer.flushed_lsn == START + SIZE + 1500
    assert archive.taken == {name(0): content(1)}
    assert observer.completed == [name(0)]
    assert place.names() == [f"{name(1)}.partial"]
    assert (place.root / "wal" / place.names()[0]).read_bytes() == content(2, 1500).ljust(SIZE, b"\0")


def test_the_one_after_that_waits_for_the_first(writer: WalWriter, archive: SlowArchive, observer: Observer) -> None:
    """Or all that a server sends might wait in memory, and be completed in any order."""
    writer.write(content(1))
    assert archive.begun.acquire(timeout=60)
    thread = threading.Thread(target=writer.write, args=(content(2) + content(3, 10),))
    thread.start()
    # It has nobody to wake it before the first is stored.
    assert not archive.begun.acquire(timeout=0.2)
    assert not observer.completed
    archive.may_end.release()
    assert archive.begun.acquire(timeout=60)
    thread.join()
    assert observer.completed == [name(0)]
    assert writer.flushed_lsn == START + SIZE
    archive.may_end.release()
    writer.sync()
    assert writer.flushed_lsn == START + 2 * SIZE + 10
    assert archive.taken == {name(0): content(1), name(1): content(2)}


def test_an_error_is_heard_and_nothing_counts(writer: WalWriter, place: HoldingPlace, archive: SlowArchive) -> None:
    archive.fails = True
    writer.write(content(1))
    assert archive.begun.acquire(timeout=60)
    writer.write(content(2, 1000))
    archive.may_end.release()
    with pytest.raises(StorageFull):
        writer.sync()
    assert writer.flushed_lsn == START
    assert place.names() == []


def test_what_is_not_held_is_begun_when_the_last_one_is_complete(
    writer: WalWriter, place: HoldingPlace, archive: SlowArchive
) -> None:
    """Two partial segments are never there at once."""
    place.begun.add(FIRST + 1)
    writer.write(content(1))
    assert archive.begun.acquire(timeout=60)
    writer.write(content(2, 1000))
    assert place.names() == []
    archive.may_end.release()
    writer.sync()
    assert list(archive.taken) == [name(0)]
    assert writer.flushed_lsn == START + SIZE + 1000
    # Of a file that is written itself, all that follows waits again.
    writer.write(content(2, SIZE - 1000) + content(3, 10))
    writer.sync()
    assert place.names() == [name(1), f"{name(2)}.partial"]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.sampled_from([1, 1000, SIZE - 1, SIZE, SIZE + 1, 2 * SIZE]), min_size=1, max_size=8),
    begun=st.sets(st.integers(0, 4)),
    syncs=st.sets(st.integers(0, 7)),
)
def test_all_arrives_whatever_is_held(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], begun: set[int], syncs: set[int]
) -> None:
    archive = SlowArchive()
    archive.may_end.release(1000)
    place = HoldingPlace(tmp_path_factory.mktemp("held"), archive)
    place.make(["wal"])
    place.begun = {FIRST + number for number in begun}
    writer = WalWriter(place, GEOMETRY, 1, START, Observer(), synchronous=False, is_read_soon=False)
    written = b""
    for number, size in enumerate(sizes):
        data = bytes([number + 1]) * size
        writer.write(data)
        written += data
        if number in syncs:
            writer.sync()
            assert writer.flushed_lsn == Lsn(START + len(written))
        assert writer.flushed_lsn <= START + len(written)
    writer.sync()
    writer.close()
    files = {path.name.removesuffix(".partial"): path.read_bytes() for path in (place.root / "wal").iterdir()}
    # Of what was taken, the file of what had to be durable before is left to whoever took it.
    found = {**files, **archive.taken}
    assert b"".join(found[segment] for segment in sorted(found)).rstrip(b"\0") == written
