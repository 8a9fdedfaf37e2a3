"""What a receiver into an object store finds in its spool and in the store, and what it does with that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from core.wal_builder import WalBuilder
from receiver.model_server import GEOMETRY, change

from pgwal.engine.delivering import deliver_left
from pgwal.engine.set_aside import set_aside
from pgwal.engine.stop import StopRequest
from pgwal.engine.stream import Receiver
from pgwal.engine.stream_options import SpoolOptions, StreamOptions
from pgwal.errors import ObjectExists, RepositoryError, StoreUnavailable
from pgwal.lsn import Lsn
from pgwal.postgres.connection import ConnectionParameters
from pgwal.repository.compression import Compression, CompressionMethod
from pgwal.repository.layout import SET_ASIDE_DIRECTORY, RepositoryIdentity
from pgwal.repository.memory import MemoryPlace, MemoryStore
from pgwal.repository.repository import ReceiverState, Repository
from pgwal.repository.spool_uploader import SpoolUploader
from pgwal.repository.spooled_objects import SpooledObjects
from pgwal.repository.spooled_place import SpooledPlace, opened_spool
from pgwal.repository.state_delivery import StateDelivery
from pgwal.repository.wal_compressor import compressed_pieces
from pgwal.summary.codec import LsnRange, summary_file_name

IDENTITY = RepositoryIdentity(7000000000000000000, GEOMETRY.segment_size, 17)
PLAIN = Compression(CompressionMethod.NONE, 0)
SIZE = GEOMETRY.segment_size
NAME = GEOMETRY.file_name(1, 5)
START = GEOMETRY.segment_start(5)


class Store(MemoryPlace):
    """A store that is reached over a network."""

    is_remote = True

    def names(self) -> list[str]:
        return sorted(name.removeprefix("wal/") for name, _ in self.store.list("wal/"))


def wal() -> WalBuilder:
    """WAL of segments 1 to 13."""
    built = WalBuilder()
    while built.end_lsn < GEOMETRY.segment_start(14):
        built.append(change(1, 50000, 7))
    return built


def segment(number: int) -> bytes:
    return WAL.wal_between(GEOMETRY.segment_start(number), GEOMETRY.segment_start(number + 1))


WAL = wal()


@pytest.fixture
def store() -> Store:
    made = Store()
    Repository.open_or_create(made, IDENTITY)
    return made


@pytest.fixture
def spooled(store: Store, tmp_path: Path) -> Iterator[SpooledPlace]:
    with opened_spool(store, tmp_path, IDENTITY) as place:
        yield place


def partial(size: int) -> str:
    """The name of the segment stored up to a number of bytes."""
    return f"{NAME}.{START + size:016X}.partial"


@pytest.mark.parametrize(
    "also",
    [[], [partial(1000)], [NAME], [partial(50000)]],
    ids=["alone", "with less", "with the whole one", "with what is left"],
)
def test_an_open_segment_of_a_lost_history_is_moved_aside(store: Store, tmp_path: Path, also: list[str]) -> None:
    content = b"\x11" * SIZE
    sizes = {partial(300000): 300000, partial(1000): 1000, partial(50000): 50000, NAME: SIZE}
    held = {name: content[: sizes[name]] for name in (partial(300000), *also)}
    for name, part in held.items():
        store.store.put(f"wal/{name}", part)
    with opened_spool(store, tmp_path, IDENTITY) as place:
        moved = set_aside(Repository(place, IDENTITY), 1, Lsn(START + 50000))
        assert place.local.store.get(f"wal/{NAME}.partial") == content[:50000]
    assert sorted(moved) == sorted(f"wal/{name}" for name in held)
    # What was reported of it is stored still, and what is stored of summaries speaks of it.
    assert store.names() == [partial(50000)]
    assert store.store.get(f"wal/{partial(50000)}") == content[:50000]
    found = {name.rpartition("/")[2]: store.store.get(name) for name, _ in store.store.list(SET_ASIDE_DIRECTORY)}
    assert found == held


@pytest.mark.parametrize("stored", ["nothing", "less", "more", "all"])
def test_a_segment_of_a_lost_history_in_the_spool_leaves_in_the_store_what_was_there(
    store: Store, tmp_path: Path, stored: str
) -> None:
    """Nothing before it need be stored, and then nothing of it may be."""
    content, before = b"\x11" * SIZE, {"nothing": 0, "less": 1000, "more": 60000, "all": SIZE}[stored]
    if before:
        store.store.put(f"wal/{NAME if stored == 'all' else partial(before)}", content[:before])
    with opened_spool(store, tmp_path, IDENTITY) as place:
        place.local.store.put(f"wal/{NAME}", content)
        moved = set_aside(Repository(place, IDENTITY), 1, Lsn(START + 50000))
        assert [name for name, _ in place.local.store.list("wal/")] == [f"wal/{NAME}.partial"]
    assert moved == [f"wal/{NAME}"]
    assert store.names() == ([partial(50000)] if before else [])


def uploader_of(place: SpooledPlace, most_segments: int = 100) -> SpoolUploader:
    return SpoolUploader(
        place,
        GEOMETRY,
        PLAIN,
        partial_interval_s=10,
        most_bytes=most_segments * SIZE,
        is_awaited=lambda: False,
    )


def put(place: MemoryPlace | SpooledPlace, *numbers: int) -> None:
    found = place.local.store if isinstance(place, SpooledPlace) else place.store
    for number in numbers:
        found.put(f"wal/{GEOMETRY.file_name(1, number)}", segment(number))


def names(*numbers: int) -> list[str]:
    return [GEOMETRY.file_name(1, number) for number in numbers]


@pytest.mark.parametrize(
    ("stored", "waiting", "is_taken"),
    [
        ([], [10, 11], True),
        ([9], [10, 11], True),
        ([9, 13], [10, 11], True),
        ([9], [10, 12], False),
        ([9, 13], [10, 12], False),
        ([8, 13], [10, 11], False),
        ([13], [10, 11], False),
        ([], [10, 12], False),
    ],
)
def test_what_is_left_in_a_spool_must_go_on_with_what_is_stored(
    store: Store, tmp_path: Path, stored: list[int], waiting: list[int], is_taken: bool
) -> None:
    put(store, *stored)
    with opened_spool(store, tmp_path, IDENTITY) as place:
        put(place, *waiting)
    options = StreamOptions(spool=SpoolOptions(tmp_path), compression=PLAIN)
    if is_taken:
        deliver_left(store, options)
        assert store.names() == names(*sorted(stored + waiting))
        return
    with pytest.raises(RepositoryError, match="does not go on"):
        deliver_left(store, options)
    assert store.names() == names(*stored)


def test_wal_from_below_the_stream_is_not_proven_by_it(store: Store, spooled: SpooledPlace) -> None:
    put(store, 9, 13)
    spooled.store.look_again()
    spooled.local.store.put(f"wal/{GEOMETRY.file_name(1, 10)}", bytes(reversed(segment(10))))
    start = GEOMETRY.segment_start(13)
    with pytest.raises(RepositoryError, match="does not go on"):
        uploader_of(spooled).prove(1, start, start, is_all=False)


@pytest.mark.parametrize("has_front", [True, False])
def test_the_rest_of_a_record_that_nobody_has_may_differ(store: Store, tmp_path: Path, has_front: bool) -> None:
    """Two servers may differ in it, and be the same from there on; nothing else may be stored otherwise."""
    content = segment(11)
    stored_name = f"wal/{GEOMETRY.file_name(1, 11)}.{GEOMETRY.segment_start(11) + 500000:016X}.partial"
    store.store.put(stored_name, content[:500000])
    put(store, *([10] if has_front else []))
    with opened_spool(store, tmp_path, IDENTITY) as place:
        place.local.store.put(f"wal/{GEOMETRY.file_name(1, 11)}", content[:500] + b"other" + content[505:])
    if not has_front:
        with opened_spool(store, tmp_path, IDENTITY) as place:
            assert place.store.get(f"wal/{GEOMETRY.file_name(1, 11)}")[500:505] == b"other"
        return
    with pytest.raises(RepositoryError, match="is not what"), opened_spool(store, tmp_path, IDENTITY):
        pass


@pytest.mark.parametrize(
    ("size", "has_front", "is_taken"),
    [(0, False, True), (4096, True, True), (4096, False, False), (SIZE, False, False)],
)
def test_a_segment_that_was_only_begun_does_not_have_to_go_on(
    store: Store, spooled: SpooledPlace, size: int, has_front: bool, is_taken: bool
) -> None:
    """A receiver was killed at the start of it, within a record, and the server's history left the timeline before."""
    put(store, 9)
    spooled.store.look_again()
    put(spooled, *([10] if has_front else []))
    spooled.local.store.put(f"wal/{GEOMETRY.file_name(1, 11)}.partial", segment(11)[:size].ljust(SIZE, b"\0"))
    uploader, start = uploader_of(spooled), GEOMETRY.segment_start(9)
    if is_taken:
        uploader.prove(2, start, start, is_all=False)
        return
    with pytest.raises(RepositoryError, match="does not go on"):
        uploader.prove(2, start, start, is_all=False)


def test_what_goes_on_with_the_stored_wal_waits_until_the_rest_is_compared(store: Store, spooled: SpooledPlace) -> None:
    put(store, 9)
    spooled.store.look_again()
    put(spooled, 10, 11)
    start = GEOMETRY.segment_start(11)
    uploader = uploader_of(spooled)
    uploader.prove(1, start, start, is_all=False)
    assert uploader._next() is None
    uploader.prove(1, start, GEOMETRY.segment_start(12), is_all=True)
    found = uploader._next()
    assert found is not None
    assert found.name == f"wal/{GEOMETRY.file_name(1, 10)}"


def test_a_spool_that_is_full_has_room_until_it_was_compared(spooled: SpooledPlace) -> None:
    """Nothing of it may be stored before, and nothing is written."""
    put(spooled, 10, 11, 12, 13)
    uploader = uploader_of(spooled, most_segments=4)
    assert uploader.has_room()
    start = GEOMETRY.segment_start(10)
    uploader.prove(1, start, GEOMETRY.segment_start(14), is_all=True)
    assert not uploader.has_room()


def test_an_empty_file_does_not_hide_what_is_stored(store: Store, tmp_path: Path) -> None:
    with opened_spool(store, tmp_path, IDENTITY) as place:
        place.local.store.put(f"wal/{NAME}.partial", b"")
    content = b"\x11" * 500000
    store.store.put(f"wal/{partial(500000)}", content)
    with opened_spool(store, tmp_path, IDENTITY) as place:
        assert [found.name for found in Repository(place, IDENTITY).wal.segments()] == [partial(500000)]
        place.preallocate(f"wal/{NAME}.partial", SIZE).close()
        assert place.local.store.get(f"wal/{NAME}.partial") == content.ljust(SIZE, b"\0")


def test_what_another_process_has_deleted_is_forgotten(store: Store, spooled: SpooledPlace) -> None:
    put(store, 9, 10)
    spooled.store.look_again()
    archive, uploader = Repository(spooled, IDENTITY).wal, uploader_of(spooled)
    store.store.delete(f"wal/{GEOMETRY.file_name(1, 9)}")
    uploader.look_again()
    assert [found.segment_no for found in archive.segments()] == [10]
    store.store.delete(f"wal/{GEOMETRY.file_name(1, 10)}")
    with uploader.paused():
        assert set_aside(Repository(spooled, IDENTITY), 1, Lsn(0)) == []


def test_each_connection_looks_what_is_stored(store: Store, tmp_path: Path) -> None:
    """A receiver may run for months, and others expire what it has stored."""
    put(store, 9, 10)
    stop = StopRequest()
    options = StreamOptions(spool=SpoolOptions(tmp_path), compression=PLAIN)
    receiver = Receiver(store, ConnectionParameters(""), options, stop)
    with closing(stop), ExitStack() as held:
        receiver._hold_repository(IDENTITY, held)
        store.store.delete(f"wal/{GEOMETRY.file_name(1, 9)}")
        found = receiver._hold_repository(IDENTITY, held)
        assert [segment.segment_no for segment in found.wal.segments()] == [10]


class Racing(MemoryStore):
    """A store in which somebody else is the first to store a segment, whose object nobody can read at times."""

    def __init__(self) -> None:
        super().__init__()
        self.first: bytes | None = None

    def put(self, name: str, content: bytes | Iterable[bytes], *, replace: bool = False, durable: bool = True) -> None:
        if not name.startswith("wal/"):
            super().put(name, content, replace=replace, durable=durable)
            return
        if self.first is not None and not self.exists(name):
            super().put(name, self.first)
        raise ObjectExists(f"{name} is there")


def test_what_cannot_be_read_is_not_taken_for_the_same(spooled: SpooledPlace) -> None:
    racing = Racing()
    put(spooled, 10)
    spooled.store.remote = racing
    name = GEOMETRY.file_name(1, 10)
    objects = SpooledObjects(spooled, GEOMETRY, Compression())
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        objects.store_segment(name)
    assert not spooled.store.is_stored(f"wal/{name}.zst")
    racing.first = b"".join(compressed_pieces(iter([segment(10)]), Compression(level=9), SIZE))
    objects.store_segment(name)
    assert dict(spooled.store.stored("wal")) == {f"{name}.zst": len(racing.first)}


class Undeletable(MemoryStore):
    """A store that deletes nothing of a segment until it is allowed."""

    refuses = True

    def delete(self, name: str) -> None:
        if self.refuses:
            raise RepositoryError(f"{name} is retained")
        super().delete(name)


def test_what_may_not_be_deleted_is_not_forgotten(spooled: SpooledPlace) -> None:
    kept = Undeletable()
    spooled.store.remote = kept
    spooled.local.store.put(f"wal/{NAME}.partial", segment(5))
    objects = SpooledObjects(spooled, GEOMETRY, PLAIN)
    objects.store_partial(NAME, Lsn(START + 1000))
    objects.store_partial(NAME, Lsn(START + 2000))
    assert spooled.store.is_stored(f"wal/{partial(1000)}")
    kept.refuses = False
    objects.store_partial(NAME, Lsn(START + 3000))
    assert [name for name, _ in spooled.store.stored("wal")] == [partial(3000)]
    assert [name for name, _ in kept.list("wal/")] == [f"wal/{partial(3000)}"]
    # Somebody else may have deleted it.
    kept.put(f"wal/{partial(4000)}", b"")
    spooled.store.note_stored(f"wal/{partial(4000)}", 0)
    kept.delete(f"wal/{partial(4000)}")
    objects.store_partial(NAME, Lsn(START + 5000))
    assert [name for name, _ in spooled.store.stored("wal")] == [partial(5000)]


@pytest.mark.parametrize("name", ["wal/00000002.history", f"summaries/{summary_file_name(LsnRange(1, START, START))}"])
def test_what_is_stored_while_it_is_put_stays_stored(
    store: Store, spooled: SpooledPlace, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The thread that stores what waits may be quicker than whoever puts it."""
    put, objects = spooled.local.store.put, SpooledObjects(spooled, GEOMETRY, PLAIN)

    def put_and_store(name: str, content: bytes, **options: bool) -> None:
        put(name, content, **options)
        objects.store_file(name)

    monkeypatch.setattr(spooled.local.store, "put", put_and_store)
    for _ in range(2):
        spooled.store.put(name, b"content", replace=True)
        assert store.store.get(name) == b"content"


def test_while_nothing_changes_the_state_is_stored_once_a_minute(store: Store, spooled: SpooledPlace) -> None:
    """It costs a request; whoever reads it is told of all else within seconds."""
    delivery = StateDelivery(spooled.store, is_near=False)
    state = ReceiverState(1, Lsn(900), Lsn(900), Lsn(800), "slot", updated_at=1.0, level_at=1.0)

    def is_stored_after(seconds: float, state: ReceiverState) -> bool:
        delivery._at_s -= seconds
        spooled.store.pending_state = state.encode()
        delivery.send()
        return Repository(store, IDENTITY).receiver_state() == state

    assert is_stored_after(1, state)
    assert not is_stored_after(50, state._replace(updated_at=50.0, level_at=50.0))
    assert is_stored_after(12, state._replace(updated_at=62.0, level_at=62.0))
    assert is_stored_after(6, state._replace(written_lsn=Lsn(950), updated_at=68.0))
    assert is_stored_after(1, state._replace(written_lsn=Lsn(950), flushed_lsn=Lsn(950), updated_at=69.0))


def test_summaries_that_were_left_in_a_spool_are_dropped(store: Store, tmp_path: Path) -> None:
    """They may be of WAL of another history, and a backup would miss blocks."""
    with opened_spool(store, tmp_path, IDENTITY) as place:
        name = f"summaries/{summary_file_name(LsnRange(1, START, Lsn(START + 1000)))}"
        place.local.store.put(name, b"of whatever")
    with opened_spool(store, tmp_path, IDENTITY) as place:
        assert not place.local.store.exists(name)


def test_a_name_without_an_end_hides_nothing_in_a_store(store: Store) -> None:
    """A repository in a directory that was copied into a store has one."""
    content = b"\x11" * 500000
    store.store.put(f"wal/{NAME}.partial", content[:1000].ljust(SIZE, b"\0"))
    archive = Repository(store, IDENTITY).wal
    assert [found.name for found in archive.segments()] == [f"{NAME}.partial"]
    store.store.put(f"wal/{partial(500000)}", content)
    store.store.put(f"wal/{partial(400000)}", content[:400000])
    assert [found.name for found in archive.segments()] == [partial(500000)]
    assert archive.read_segment(NAME) == content.ljust(SIZE, b"\0")
