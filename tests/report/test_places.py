"""Reports on repositories in object stores, and on encrypted ones with all keys or with some."""

from __future__ import annotations

from pathlib import Path

import pytest
from encryption.golden_objects import golden
from keeping.stored_repository import build_chains
from repository.places import PLACES

from pgwal.engine.report import ReportRequest, read_report
from pgwal.errors import KeyRequired
from pgwal.repository.repository import Repository
from pgwal.repository.storage_format import DEFAULT_PACKED_FORMAT


def test_a_report_is_the_same_wherever_the_repository_is(tmp_path: Path) -> None:
    documents = [
        read_report(ReportRequest(build_chains(PLACES[kind](tmp_path), DEFAULT_PACKED_FORMAT).repository))
        for kind in ("local", "cloud_memory")
    ]
    here, there = documents
    for name in ("chains", "timelines", "backups", "churn", "newest_commit", "forecast", "problems"):
        assert getattr(here, name) == getattr(there, name), name
    assert [chain.chain_id[-4:] for chain in here.chains] == ["full"] * 3
    assert here.churn is not None
    assert here.churn.unread_count == 0


def test_a_host_without_an_identity_reports_all_but_what_only_wal_tells() -> None:
    with_identity, without = (
        read_report(ReportRequest(Repository.open(golden(identity=identity)))) for identity in (True, False)
    )
    assert with_identity.backups == without.backups != []
    assert [chain.chain_id for chain in with_identity.chains] == [chain.chain_id for chain in without.chains]
    assert with_identity.timelines[0].timeline == without.timelines[0].timeline
    assert "needs the private key of a recipient" in without.problems["newest_commit"]
    assert "private key" not in with_identity.problems.get("newest_commit", "")


def test_without_the_metadata_key_a_report_is_refused() -> None:
    with pytest.raises(KeyRequired, match="key"):
        read_report(ReportRequest(Repository.open(golden(identity=False, metadata_key=False))))
