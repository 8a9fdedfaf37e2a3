"""What spools promise, of each place."""

from __future__ import annotations

from pathlib import Path

import pytest
from repository.places import PLACES

from pgwal.errors import RepositoryError
from pgwal.repository.place import Place

SIZE = 1 << 16


@pytest.fixture(params=list(PLACES))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    made = PLACES[request.param](tmp_path)
    made.make(["wal"])
    return made


@pytest.mark.parametrize("zeroed", [False, True])
def test_what_is_appended_has_its_final_name_when_it_is_whole(place: Place, zeroed: bool) -> None:
    appender = place.spool.preallocate("wal/segment.partial", SIZE, zeroed=zeroed)
    assert place.store.get("wal/segment.partial") == bytes(SIZE)
    appender.write(0, b"begin")
    appender.write(SIZE - 3, memoryview(b"end"))
    appender.sync()
    expected = b"begin".ljust(SIZE - 3, b"\0") + b"end"
    assert place.store.get("wal/segment.partial") == expected
    appender.rename("segment", is_read_soon=False)
    appender.close()
    assert [(child.name, child.size_bytes) for child in place.store.children("wal")] == [("segment", SIZE)]
    assert place.store.get("wal/segment") == expected


def test_what_was_begun_is_taken_up(place: Place) -> None:
    first = place.spool.preallocate("wal/segment.partial", SIZE)
    first.write(0, b"one and two")
    first.sync()
    first.close()
    second = place.spool.preallocate("wal/segment.partial", SIZE)
    second.clear_behind(3)
    second.write(5, b"three")
    second.sync()
    second.close()
    assert place.store.get("wal/segment.partial") == b"one\0\0three".ljust(SIZE, b"\0")


def test_what_is_too_large_is_refused_and_stays(place: Place) -> None:
    place.store.put("wal/segment.partial", bytes(SIZE + 1))
    with pytest.raises(RepositoryError, match=f"at most {SIZE}"):
        place.spool.preallocate("wal/segment.partial", SIZE)
    assert place.store.size("wal/segment.partial") == SIZE + 1


def test_notes_are_written_and_read_by_one(place: Place) -> None:
    with place.spool.create_notes("folder/notes") as notes:
        notes.writelines([b"one\n", b"two\n"])
        notes.seek(0)
        assert list(notes) == [b"one\n", b"two\n"]
    place.spool.drop_notes("folder/notes")
    assert not place.store.exists("folder/notes")


def test_a_folder_is_settled(place: Place) -> None:
    place.store.put("wal/object", b"", durable=False)
    place.spool.settle("wal")
    assert place.store.get("wal/object") == b""
