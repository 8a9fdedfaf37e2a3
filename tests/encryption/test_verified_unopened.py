"""Without an identity, ``verify`` looks at what there is of a segment by then: receivers store more of it meanwhile."""

from __future__ import annotations

from pathlib import Path

from pgwal_process import succeed

from pgwal.engine.stored_wal import StoredWal
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.repository import Repository
from pgwal.repository.wal_file_name import partial_name

SIZE = 1 << 20


def test_a_segment_that_is_stored_further_since_it_was_listed(tmp_path: Path) -> None:
    recipient = succeed("key", "generate", "-o", tmp_path / "identity").strip()
    succeed("init", "--repo", tmp_path / "repo", "--recipient", recipient)
    identity = RepositoryIdentity(7_000_000_000_000_000_001, SIZE, 18)
    repository = Repository.open_or_create(LocalPlace(tmp_path / "repo"), identity)
    segment = repository.geometry.file_name(1, 1)
    names = [f"wal/{partial_name(segment, Lsn(SIZE + size), '')}" for size in (1000, 2000)]
    wanted = LsnRange(1, Lsn(SIZE), Lsn(SIZE + 1000))
    repository.store.put(names[0], bytes(1000))
    listed = [each.name for each in repository.wal.segments()]
    repository.store.put(names[1], bytes(2000))
    repository.store.delete(names[0])
    stored = StoredWal(repository, wanted, [], listed)
    stored.verify_unread()
    assert stored.problems == []

    repository.store.delete(names[1])
    gone = StoredWal(repository, wanted, [], listed)
    gone.verify_unread()
    assert [problem.path for problem in gone.problems] == [f"wal/{segment}", names[0]]
