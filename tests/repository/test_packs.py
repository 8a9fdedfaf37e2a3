"""Files go into packs and come back, whatever their sizes, from several threads, and around those that fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import NamedTuple, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keeping.stored_repository import FULL, entry_of
from repository.places import PLACES

from pgwal.backup.backup_file import BackupFile, BackupTotals, encode_file
from pgwal.backup.entry_document import decode_contents, encode_entry
from pgwal.backup.pack_table import Pack
from pgwal.checksum import content_digest
from pgwal.errors import FormatError, ObjectNotFound, RepositoryError
from pgwal.lsn import Lsn
from pgwal.repository import frame_reader, pack_stream
from pgwal.repository.backup_data import open_backup_data
from pgwal.repository.frame_codec import EncodedFrame, FrameEncoder
from pgwal.repository.frame_reader import FrameReader
from pgwal.repository.memory import MemoryPlace, MemoryStore
from pgwal.repository.object_backup_data import ObjectBackupDataWriter
from pgwal.repository.pack_pool import list_packs, new_pack_name, pack_object
from pgwal.repository.pack_stream import NewPack, PackStream
from pgwal.repository.packed_backup_data import PackedBackupData
from pgwal.repository.packed_backup_writer import PackedBackupDataWriter
from pgwal.repository.passage import Abandoned, Passage
from pgwal.repository.place import Place
from pgwal.repository.staged_backup import StagedBackup
from pgwal.repository.storage_format import FileFormat, StorageFormat
from pgwal.repository.store import ByteRange, ObjectStore, as_renaming
from pgwal.repository.store_wrapper import CountingStore

FRAME = 64
SOON_S = 20.0
"""Nothing takes so long here, unless it waits for ever."""


@contextmanager
def small_frames(frame_size: int = FRAME, pack_size: int = 5 * FRAME) -> Iterator[None]:
    """Cut files into frames of so many bytes, and end packs as soon."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pack_stream, "FRAME_SIZE", frame_size)
        assert PackStream.__init__.__kwdefaults__ is not None
        patched.setitem(PackStream.__init__.__kwdefaults__, "pack_size", pack_size)
        yield


class Given(NamedTuple):
    """A file to store, in pieces; the one that fails does so behind them."""

    path: str
    content: bytes
    piece_size: int
    fails: bool

    def pieces(self) -> Iterator[bytes]:
        for at in range(0, len(self.content), self.piece_size):
            yield self.content[at : at + self.piece_size]
        if self.fails:
            raise OSError(self.path)


sizes = st.one_of(
    st.integers(0, 3),
    st.integers(0, 3 * FRAME),
    st.builds(lambda times, more: max(0, times * FRAME + more), st.integers(0, 12), st.integers(-1, 1)),
)


@st.composite
def given_files(draw: st.DrawFn) -> list[Given]:
    random = Random(draw(st.integers(0, 1 << 32)))
    found = []
    for number in range(draw(st.integers(1, 12))):
        size_bytes = draw(sizes)
        content = random.randbytes(size_bytes) if draw(st.booleans()) else bytes([number]) * size_bytes
        piece_size = draw(st.sampled_from((1, 7, FRAME - 1, FRAME, FRAME + 1, 1000)))
        found.append(Given(f"base/{number}", content, piece_size, draw(st.integers(0, 5)) == 0))
    return found


def store_files(place: MemoryPlace, files: list[Given], *, level: int | None, threads: int) -> PackedBackupData:
    """Store files from several threads, publish their entry, and return what reads them."""
    writer = PackedBackupDataWriter(place.store, ObjectBackupDataWriter(place, f"backups/{FULL}"), level, threads)

    def store(file: Given) -> BackupFile | None:
        try:
            size_bytes, digest, extents = writer.write(file.path, file.pieces())
        except OSError:
            assert file.fails
            return None
        assert (size_bytes, digest) == (len(file.content), content_digest(file.content))
        return BackupFile(file.path, size_bytes, size_bytes, 0o600, 0, digest, extents=extents)

    with ThreadPoolExecutor(threads) as pool:
        stored = [file for file in pool.map(store, files) if file is not None]
    writer.sync()
    totals = BackupTotals()
    for file in stored:
        totals = totals.plus(file)
    contents = writer.contents()
    entry = entry_of(FULL, None, Lsn(1), Lsn(2), totals, contents.size_bytes)
    lines = b"".join(encode_entry(entry, map(encode_file, stored), contents)).splitlines(keepends=True)

    @contextmanager
    def given_lines() -> Iterator[Iterable[bytes]]:
        yield lines

    plain = open_backup_data(place.store, f"backups/{FULL}", FULL)
    for pack in decode_contents(lines)[1].packs:
        assert place.store.size(pack_object(pack.name)) == pack.size_bytes
    return PackedBackupData(place.store, plain, FULL, given_lines, FrameReader(place.store, threads))


@settings(deadline=None)
@given(given_files(), st.sampled_from((None, 1)), st.sampled_from((1, 4)), st.data())
def test_files_come_back(files: list[Given], level: int | None, threads: int, data: st.DataObject) -> None:
    with small_frames():
        place = MemoryPlace()
        stored = store_files(place, files, level=level, threads=threads)
    assert list(stored.damage(range(stored.pack_count))) == []
    for file in files:
        if file.fails:
            with pytest.raises(ObjectNotFound):
                stored.open(file.path)
            continue
        content = stored.open(file.path)
        assert content.size_bytes == len(file.content)
        assert content.read_at(0, len(file.content) + 1) == file.content
        for _ in range(3):
            offset = data.draw(st.integers(0, len(file.content) + 2))
            length = data.draw(st.integers(0, len(file.content) + 2))
            assert content.read_at(offset, length) == file.content[offset : offset + length]
            target = bytearray(b"?" * length)
            count = content.read_into(offset, memoryview(target))
            assert target == file.content[offset : offset + count] + b"?" * (length - count)
            assert count > 0 or length == 0 or offset >= len(file.content)
        content.close()


def test_frames_of_large_files_begin_at_multiples_and_small_ones_share_one() -> None:
    """So that a block lies in one frame, and a million files make no million frames."""
    sizes = (10, 10, 3 * FRAME + 1, 10, FRAME - 11, 1)
    files = [Given(f"{number}", bytes([number]) * size, 1000, False) for number, size in enumerate(sizes)]
    packs: list[Pack] = []
    with small_frames(pack_size=1 << 20), closing(FrameEncoder(None)) as encoder:
        stream = PackStream(
            MemoryStore(), lambda: NewPack(len(packs), packs.append(Pack(new_pack_name())) or packs[-1], None), encoder
        )
        extents = [stream.add(file.pieces()).extents for file in files]
        stream.finish()
    assert extents == [
        ((0, 0, 0, 10),),
        ((0, 0, 10, 10),),
        ((0, 1, 0, 3 * FRAME + 1),),
        ((0, 4, 1, 10),),
        ((0, 4, 11, FRAME - 11),),
        ((0, 5, 0, 1),),
    ]
    assert [frame.size_bytes for frame in packs[0]] == [20, FRAME, FRAME, FRAME, FRAME, 1]


# ---- a store that fails


class FailingStore(MemoryStore):
    """Refuses the packs of some numbers, from 0, once it has taken so many of their pieces."""

    def __init__(self, failing: set[int], pieces_taken: int) -> None:
        super().__init__()
        self.put_count = 0
        self._failing = failing
        self._pieces_taken = pieces_taken

    def put(self, name: str, content: bytes | Iterable[bytes], **options: bool) -> None:
        number, self.put_count = self.put_count, self.put_count + 1
        if number in self._failing:
            for _, _ in zip(range(self._pieces_taken), content, strict=False):
                pass
            raise RepositoryError(f"pack {number} is refused")
        super().put(name, content, **options)


@pytest.mark.parametrize("pieces_taken", [0, 1, 3, 100])
@pytest.mark.parametrize("failing", [{0}, {1}, {2}, {0, 1, 2}])
def test_a_pack_that_the_store_refuses_is_never_forgotten(failing: set[int], pieces_taken: int) -> None:
    """Also when whoever stores files goes on after an error: the rest would be taken for all of it."""
    store = FailingStore(failing, pieces_taken)
    with small_frames():
        writer = PackedBackupDataWriter(store, ObjectBackupDataWriter(MemoryPlace(), "backups/x"), None)
        for number in range(30):
            with suppress(RepositoryError):
                writer.write(f"base/{number}", [bytes(FRAME)])
        with pytest.raises(RepositoryError, match="is refused"):
            writer.sync()
    writer.abandon()
    writer.discard()
    assert list(list_packs(store)) == []


def test_what_is_abandoned_leaves_no_thread_and_no_pack() -> None:
    store, before = MemoryStore(), threading.active_count()
    with small_frames():
        writer = PackedBackupDataWriter(store, ObjectBackupDataWriter(MemoryPlace(), "backups/x"), None)
        for number in range(20):
            writer.write(f"base/{number}", [bytes(FRAME)])
        writer.abandon()
    assert threading.active_count() == before
    writer.discard()
    assert list(list_packs(store)) == []


# ---- what is published keeps its packs


def publish_one_file(place: Place) -> None:
    with StagedBackup(place, FULL, StorageFormat(FileFormat.PACKED)) as staged:
        written = staged.data.write("base/1", [b"content"])
        file = BackupFile("base/1", 7, 7, 0o600, 0, written.digest, extents=written.extents)
        staged.add_file(file)
        staged.data.sync()
        packed = staged.data.contents()
        assert packed is not None
        staged.publish(entry_of(FULL, None, Lsn(1), Lsn(2), BackupTotals().plus(file), packed.size_bytes))


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("is_done", [True, False])
def test_a_backup_whose_publication_failed_is_there_whole_or_not_at_all(
    kind: str, is_done: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store may say that it failed to do what it has done: a lost answer, or a directory that could not be synced."""
    place: Place = PLACES[kind](tmp_path)
    name = "put" if as_renaming(place.store) is None else "rename"
    change: Callable[..., None] = getattr(place.store, name)

    failed = False

    def failing(first: str, *args: object, **options: bool) -> None:
        nonlocal failed
        if failed or (name == "put" and not first.endswith("backup.json")):
            return change(first, *args, **options)
        failed = True
        if is_done:
            change(first, *args, **options)
        raise RepositoryError("the answer was lost")

    monkeypatch.setattr(place.store, name, failing)
    place.make(["backups", "packs"])
    with pytest.raises(RepositoryError, match="the answer was lost"):
        publish_one_file(place)
    entry = f"backups/{FULL}/backup.json"
    # One that is empty keeps the place, so that the one whose answer was lost cannot come any more.
    is_there = place.store.exists(entry) and place.store.size(entry) > 0
    assert is_there == (is_done and name == "rename")
    assert len(list(list_packs(place.store))) == is_there


# ---- the passage


def in_time(act: Callable[[], object]) -> object:
    """Return what something returns or raises, unless it waits for ever."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(act())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SOON_S)
    assert found, "it waits for ever"
    return found[0]


def fill(passage: Passage) -> int:
    """Hand over pieces until it is refused, and return how many were taken."""
    count = 0
    try:
        while True:
            passage.push(b"x")
            count += 1
    except Abandoned:
        return count


@given(st.lists(st.binary(max_size=3), max_size=30))
def test_pieces_come_in_order_and_end(pieces: list[bytes]) -> None:
    passage = Passage()

    def give() -> None:
        for piece in pieces:
            passage.push(piece)
        passage.complete()

    thread = threading.Thread(target=give, daemon=True)
    thread.start()
    assert in_time(lambda: list(passage)) == pieces
    thread.join(SOON_S)
    assert not thread.is_alive()


@pytest.mark.parametrize("taken", [0, 1, 7])
def test_a_giver_does_not_wait_for_a_taker_that_has_ended(taken: int) -> None:
    passage, full = Passage(), threading.Event()

    def take() -> None:
        for _, _ in zip(range(taken), passage, strict=False):
            pass
        full.wait(SOON_S)
        passage.abandon()

    taker = threading.Thread(target=take, daemon=True)
    taker.start()
    giver = threading.Thread(target=lambda: (full.set(), fill(passage)), daemon=True)
    giver.start()
    for thread in (taker, giver):
        thread.join(SOON_S)
        assert not thread.is_alive()
    assert in_time(lambda: fill(passage)) == 0


@pytest.mark.parametrize("given_count", [0, 1, 4])
def test_a_taker_does_not_wait_for_a_giver_that_has_ended(given_count: int) -> None:
    passage, begun = Passage(), threading.Event()

    def take() -> object:
        begun.set()
        return list(passage)

    found: list[object] = []
    taker = threading.Thread(target=lambda: found.append(in_time(take)), daemon=True)
    taker.start()
    assert begun.wait(SOON_S)
    for _ in range(given_count):
        passage.push(b"x")
    passage.abandon()
    taker.join(SOON_S)
    assert isinstance(found[0], Abandoned)
    assert isinstance(in_time(lambda: list(passage)), Abandoned)


def test_a_damaged_entry_is_read_once_for_all_files() -> None:
    """A million files of a backup whose entry is damaged must not read a million entries."""
    place, count = MemoryPlace(), 0

    @contextmanager
    def damaged_lines() -> Iterator[Iterable[bytes]]:
        nonlocal count
        count += 1
        yield [b"nothing\n"]

    plain = open_backup_data(place.store, "backups/x", "x")
    data = PackedBackupData(place.store, plain, "x", damaged_lines, FrameReader(place.store))
    for number in range(5):
        with pytest.raises(FormatError):
            data.open(f"base/{number}")
    assert count == 1


def test_an_interruption_while_a_frame_is_made_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*looking_at: object) -> EncodedFrame:
        raise KeyboardInterrupt(*looking_at)

    monkeypatch.setattr(FrameEncoder, "encode", interrupted)
    with small_frames(), closing(FrameEncoder(1)) as encoder:
        stream = PackStream(MemoryPlace().store, lambda: NewPack(0, Pack(new_pack_name()), None), encoder)
        stream.add([bytes(FRAME)])
        with pytest.raises(KeyboardInterrupt):
            stream.finish()


class PackOfFrames:
    """A pack of frames that are stored as they are, and a reader of them that reads ahead."""

    def __init__(self, store: ObjectStore, jobs: int, count: int = 20) -> None:
        self.frames = [bytes([number]) * FRAME for number in range(count)]
        with small_frames(pack_size=1 << 20), closing(FrameEncoder(None)) as encoder:
            packs: list[Pack] = []
            stream = PackStream(
                store, lambda: NewPack(0, packs.append(Pack(new_pack_name())) or packs[-1], None), encoder
            )
            stream.add(self.frames)
            stream.finish()
        (self.pack,) = packs
        self.reader = FrameReader(store, jobs)

    def read(self, number: int) -> bytes:
        return self.reader.content(self.pack, number, range(number + 1, len(self.frames)))


class StoreWithReaders(MemoryStore):
    """Knows which thread has read from which byte on."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[tuple[str, int]] = []

    def get_ranges(self, name: str, ranges: Sequence[ByteRange]) -> list[bytes]:
        self.reads += [(threading.current_thread().name, start) for start, _ in ranges]
        return super().get_ranges(name, ranges)


def test_no_frame_is_read_twice_when_several_files_are_read_at_once() -> None:
    """Two threads, two backups: four places from which each of them reads on, and reads ahead."""
    store = StoreWithReaders()
    pack = PackOfFrames(store, jobs=2, count=240)
    for step in range(60):
        for first in range(0, 240, 60):
            content = pack.reader.content(pack.pack, first + step, range(first + step + 1, first + 60))
            assert content == pack.frames[first + step]
    assert sorted(start for _, start in store.reads) == [frame.offset for frame in pack.pack]


def test_what_is_read_ahead_takes_few_requests() -> None:
    store = CountingStore(MemoryStore())
    pack = PackOfFrames(store, jobs=1, count=240)
    store.counts.clear()
    assert [pack.read(number) for number in range(240)] == pack.frames
    assert store.counts["get_ranges"] < 40


def test_what_is_read_ahead_for_nobody_is_forgotten() -> None:
    """Or the files of a restore after one that was given up would be read frame by frame."""
    store = StoreWithReaders()
    given = PackOfFrames(store, jobs=2, count=250)
    for abandoned in range(0, 40, 10):
        given.reader.content(given.pack, abandoned, range(abandoned + 1, 250))
    for _ in range(2):
        for number in range(50, 250):
            given.reader.content(given.pack, number)
    given.reader.content(given.pack, 50, range(51, 250))
    assert given.reader.content(given.pack, 58) == given.frames[58]
    readers = [name for name, start in store.reads if start == given.pack[58].offset]
    assert readers[-1].startswith("read-frame")


class ForgetfulStore(MemoryStore):
    """Cannot read what it is asked for, as long as it is away."""

    is_away = False

    def get_ranges(self, name: str, ranges: Sequence[ByteRange]) -> list[bytes]:
        if self.is_away:
            raise RepositoryError("the store is away")
        return super().get_ranges(name, ranges)


def test_what_failed_when_it_was_read_ahead_is_read_again() -> None:
    store = ForgetfulStore()
    given = PackOfFrames(store, jobs=2)
    store.is_away = True
    with pytest.raises(RepositoryError, match="away"):
        given.read(0)
    store.is_away = False
    assert [given.read(number) for number in range(20)] == given.frames


def test_nobody_waits_for_a_frame_of_which_the_reader_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    given = PackOfFrames(MemoryStore(), jobs=2)
    is_waited_for = threading.Event()
    outcomes: list[bytes] = []

    class Awaited(Future[bytes]):
        def result(self, timeout: float | None = None) -> bytes:
            is_waited_for.set()
            return super().result(timeout)

    other = threading.Thread(target=lambda: outcomes.append(given.reader.content(given.pack, 0)), daemon=True)

    def no_thread(*_: object) -> NoReturn:
        other.start()
        assert is_waited_for.wait(SOON_S)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(frame_reader, "Future", Awaited)
    monkeypatch.setattr(given.reader, "_read_ahead", no_thread)
    with pytest.raises(RuntimeError, match="new thread"):
        given.read(0)
    other.join(SOON_S)
    assert outcomes == [given.frames[0]]
