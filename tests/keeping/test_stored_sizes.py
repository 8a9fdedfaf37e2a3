"""What backups are said to take adds up to what is there, also when they share packs, and when these are rewritten."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from keeping.growing_chain import GrowingChain, tiny_frames
from keeping.stored_repository import FIRST, FULL, MAJOR, MB, SYSTEM_IDENTIFIER, store_backup
from keeping.test_rewriting import packs, rewrite, small_packs, wear, worn_chain
from pgwal_process import run_pgwal
from repository.places import PLACES, memory

from pgwal.engine.initialise import initialise
from pgwal.engine.merge import MergeRequest, merge_backup
from pgwal.lsn import Lsn
from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import DEFAULT_PACKED_FORMAT
from pgwal.repository.store_wrapper import CountingStore
from pgwal.repository.stored_sizes import stored_sizes

__all__ = ["small_packs"]


def sizes(place: Place) -> dict[str, int]:
    repository = Repository.open(place)
    return stored_sizes(repository, repository.catalogue.entries())


def by_their_heads(place: Place) -> dict[str, int]:
    return {entry.backup_id: entry.repository_bytes for entry in Repository.open(place).catalogue.entries()}


def test_sizes_add_up_before_and_after_packs_are_rewritten(tmp_path: Path) -> None:
    chain = worn_chain(memory(tmp_path))
    for _ in range(3):
        assert sum(sizes(chain.place).values()) == sum(packs(chain.place).values())
        assert rewrite(chain.place).rewritten
        assert sum(sizes(chain.place).values()) == sum(packs(chain.place).values())
        # Entries go on to tell of the packs in which frames were stored.
        assert sum(by_their_heads(chain.place).values()) > 1.1 * sum(packs(chain.place).values())
        wear(chain)


def test_a_pack_counts_for_the_oldest_backup_that_needs_it(tmp_path: Path) -> None:
    chain = GrowingChain(memory(tmp_path), DEFAULT_PACKED_FORMAT, Random(3))
    taken = [chain.full(), chain.incremental(), chain.incremental()]
    before = packs(chain.place)
    assert sizes(chain.place) == by_their_heads(chain.place)
    assert sum(sizes(chain.place).values()) == sum(before.values())
    merged = merge_backup(MergeRequest(chain.place)).entry.backup_id
    new = sum(size_bytes for name, size_bytes in packs(chain.place).items() if name not in before)
    found = sizes(chain.place)
    assert found[merged] == new < by_their_heads(chain.place)[merged]
    assert {backup_id: found[backup_id] for backup_id in taken} == {
        backup_id: by_their_heads(chain.place)[backup_id] for backup_id in taken
    }


def test_a_damaged_entry_tells_what_its_head_does(tmp_path: Path) -> None:
    chain = worn_chain(memory(tmp_path))
    backup_id = chain.repository.catalogue.ids()[-1]
    name = f"backups/{backup_id}/backup.json"
    content = chain.place.store.get(name)
    chain.place.store.put(name, content[:-2], replace=True)
    assert sizes(chain.place)[backup_id] == by_their_heads(chain.place)[backup_id]


def test_of_an_entry_no_more_is_read_than_where_its_packs_are(tmp_path: Path) -> None:
    """Files come behind them: of a repository of many backups that is most of what there is."""
    place = memory(tmp_path)
    initialise(place, DEFAULT_PACKED_FORMAT)
    repository = Repository.open_or_create(place, RepositoryIdentity(SYSTEM_IDENTIFIER, MB, MAJOR))
    files = {f"base/5/note{number}": b"\1" * 99 for number in range(3000)}
    store_backup(repository, FULL, None, Lsn(MB), Lsn(MB + 9), files)
    store_backup(repository, FIRST, FULL, Lsn(2 * MB), Lsn(2 * MB + 9), files)
    merged = merge_backup(MergeRequest(place, FIRST)).entry
    expected = sizes(place)
    assert expected[merged.backup_id] < merged.repository_bytes
    entries = repository.catalogue.entries()
    place.store = store = CountingStore(place.store)
    assert stored_sizes(Repository.open(place), entries) == expected
    assert store.bytes_got < sum(place.store.size(f"backups/{entry.backup_id}/backup.json") for entry in entries) / 4


def test_list_and_show_say_what_is_there(tmp_path: Path) -> None:
    with tiny_frames():
        chain = worn_chain(PLACES["local"](tmp_path))
        rewrite(chain.place)
    root = Repository.open(chain.place).place.directory
    assert root is not None
    listed = json.loads(run_pgwal("list", "--repo", root, "--json").stdout)["backups"]
    there = sum(path.stat().st_size for path in (root / "packs").rglob("*") if path.is_file())
    assert sum(each["stored_bytes"] for each in listed) == there
    for each in listed:
        assert (
            json.loads(run_pgwal("show", each["id"], "--repo", root, "--json").stdout)["stored_bytes"]
            == (each["stored_bytes"])
        )
