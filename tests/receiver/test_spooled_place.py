"""What a receiver into an object store finds in its spool and in the store, and what it does with that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from receiver.model_server import GEOMETRY

from pgwal.engine.set_aside import set_aside
from pgwal.lsn import Lsn
from pgwal.repository.compression import Compression, CompressionMethod
from pgwal.repository.layout import SET_ASIDE_DIRECTORY, RepositoryIdentity
from pgwal.repository.memory import MemoryPlace
from pgwal.repository.repository import Repository
from pgwal.repository.spooled_place import SpooledPlace, opened_spool

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


@pytest.mark.parametrize("also", [[], [partial(1000)], [NAME]], ids=["alone", "with less", "with the whole one"])
def test_an_open_segment_of_a_lost_history_is_moved_aside(store: Store, tmp_path: Path, also: list[str]) -> None:
    content = b"\x11" * SIZE
    held = {partial(300000): content[:300000], **{name: content[: 1000 if name != NAME else SIZE] for name in also}}
    for name, part in held.items():
        store.store.put(f"wal/{name}", part)
    with opened_spool(store, tmp_path, IDENTITY) as place:
        moved = set_aside(Repository(place, IDENTITY), 1, Lsn(START + 50000))
        assert place.local.store.get(f"wal/{NAME}.partial") == content[:50000]
    assert sorted(moved) == sorted(f"wal/{name}" for name in held)
    assert store.names() == []
    found = {name.rpartition("/")[2]: store.store.get(name) for name, _ in store.store.list(SET_ASIDE_DIRECTORY)}
    assert found == held
