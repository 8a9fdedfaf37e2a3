"""Processes open what is encrypted with the keys that options named to the command, and without an identity nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from encryption.test_copied_keys import Owner, sealed
from keeping.stored_repository import build_chains
from pgwal_process import run_pgwal
from repository.places import local

from pgwal.engine.copy_repository import CopyRequest, copy_repository
from pgwal.engine.initialise import initialise
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import DEFAULT_PACKED_FORMAT
from pgwal_cli.executor import opened_fleet, parse_executor


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    return Owner(tmp_path)


@pytest.fixture
def place(tmp_path: Path, owner: Owner) -> LocalPlace:
    """An encrypted repository, of which a segment has a byte that differs."""
    place = local(tmp_path / "source")
    initialise(place, DEFAULT_PACKED_FORMAT, [owner.recipient])
    build_chains(place)
    (name,) = [name for name, _ in place.store.list("wal/") if name.endswith("2")]
    content = bytearray(place.store.get(name))
    content[5000] ^= 1
    place.store.put(name, bytes(content), replace=True)
    return place


def test_processes_verify_with_the_identity_of_the_option_and_without_one(place: LocalPlace, owner: Owner) -> None:
    for keys in (["--identity", str(owner.path)], []):
        alone, processes = (
            run_pgwal("verify", "--json", "--repo", place.root, *keys, *executor)
            for executor in ([], ["--executor", "process:1"])
        )
        assert processes == alone
        assert alone.code == (5 if keys else 0), alone.stderr


@pytest.mark.skipif("PGWAL_LARGE_TESTS" not in os.environ, reason="PGWAL_LARGE_TESTS=1 runs it")
def test_processes_copy_what_nobody_here_can_open(place: LocalPlace, tmp_path: Path) -> None:
    source = Repository.open(place)
    assert source.identity.encryption_id is not None
    to = local(tmp_path / "to")
    with opened_fleet(parse_executor("process:1"), place, to) as fleet:
        report = copy_repository(CopyRequest(place, to, with_wal=True, fleet=fleet))
    assert (report.problems, report.opens_files, report.segment_count) == ([], False, 9)
    assert sealed(to) == sealed(place)
