"""Reports on repositories in which hardly anything is, or of which parts are lost or damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from keeping.stored_repository import (
    FIRST,
    FULL,
    MAJOR,
    MB,
    SECOND,
    SECOND_FULL,
    SYSTEM_IDENTIFIER,
    THIRD_FULL,
    Stored,
    build_chains,
)

from pgwal.engine.pinning import pin_backup
from pgwal.engine.report import ReportRequest, read_report
from pgwal.lsn import Lsn
from pgwal.report.document import Document
from pgwal.repository.backup_marks import BackupMarks
from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.repository import ReceiverState, Repository
from pgwal_cli.report_page import page_of


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return build_chains(tmp_path / "repo")


def report(repository: Repository) -> Document:
    """Return the document, of which a page can be made."""
    document = read_report(ReportRequest(repository))
    assert "".join(page_of(document)).endswith("</html>\n")
    return document


def severities(document: Document) -> dict[str, str]:
    return {finding.subject: finding.severity for finding in document.findings}


def test_a_repository_that_holds_nothing(tmp_path: Path) -> None:
    document = report(Repository.open_or_create(tmp_path / "repo", RepositoryIdentity(SYSTEM_IDENTIFIER, MB, MAJOR)))
    assert severities(document) == {"backups": "critical", "receiver": "notice"}
    assert (document.chains, document.timelines, document.backups) == ([], [], [])
    assert document.problems.keys() == {"churn", "forecast", "newest_commit", "server"}


def test_wal_without_a_backup(stored: Stored) -> None:
    shutil.rmtree(stored.root / "backups")
    document = report(stored.repository)
    assert severities(document)["backups"] == "critical"
    # Nothing tells when the WAL was written: it has no commits.
    assert "time" in document.problems["churn"]
    # The receiver does.
    state = ReceiverState(1, Lsn(3 * MB), Lsn(3 * MB), Lsn(2 * MB), None, updated_at=1795342530.0)
    stored.repository.write_receiver_state(state)
    document = report(stored.repository)
    assert document.churn is not None
    assert document.churn.start_s == 1795342530.0


def test_backups_without_wal(stored: Stored) -> None:
    for path in (stored.root / "wal").iterdir():
        path.unlink()
    document = report(stored.repository)
    assert severities(document)["backups without their WAL"] == "critical"
    assert {backup.state for backup in document.backups} == {"unusable"}
    assert document.chains == []


def test_a_summary_that_is_damaged(stored: Stored) -> None:
    part = next(iter(sorted((stored.root / "summaries").iterdir())))
    part.write_bytes(part.read_bytes()[:-9] + b"\0" * 9)
    document = report(stored.repository)
    assert document.churn is not None
    assert (document.churn.unread_count, document.churn.summary_count) == (1, 8)
    assert severities(document)["summaries"] == "warning"


def test_a_chain_whose_full_backup_is_gone(stored: Stored) -> None:
    shutil.rmtree(stored.root / "backups" / FULL)
    document = report(stored.repository)
    assert severities(document)["broken chains"] == "critical"
    assert "backups without their WAL" not in severities(document)
    problems = {backup.backup_id: backup.problem for backup in document.backups if backup.state == "unusable"}
    assert problems == dict.fromkeys((FIRST, SECOND), "a backup that it builds on is missing or damaged")
    # Nothing that is painted green can be restored from them.
    assert [chain.chain_id for chain in document.chains] == [SECOND_FULL, THIRD_FULL]


def test_the_newest_wal_is_behind_a_hole(stored: Stored) -> None:
    # All backups end before it.
    (stored.root / "wal" / "000000010000000000000008").unlink()
    document = report(stored.repository)
    found = severities(document)
    assert found[f"hole behind chain {THIRD_FULL}"] == "critical"
    (hole,) = next(chain for chain in document.chains if chain.chain_id == THIRD_FULL).holes
    assert (hole.start_lsn, hole.end_lsn) == ("0/800000", "0/A00000")


def test_a_timeline_that_reaches_further_than_the_newest_is_no_hole(stored: Stored) -> None:
    """The server was recovered to a point before what it had written since."""
    wal = stored.root / "wal"
    (wal / "00000002.history").write_text("1\t0/480000\tto a point\n")
    shutil.copy(wal / "000000010000000000000004", wal / "000000020000000000000004")
    document = report(stored.repository)
    assert [timeline.timeline for timeline in document.timelines] == [1, 2]
    assert [chain.holes for chain in document.chains] == [[], [], []]
    spans = {chain.chain_id: chain.spans[-1].end_lsn for chain in document.chains}
    # What was backed up before leads to the new timeline, the other backups along the old one.
    assert spans == {FULL: "0/500000", SECOND_FULL: "0/A00000", THIRD_FULL: "0/A00000"}
    assert "hole" not in " ".join(severities(document))


def test_what_is_kept_on_purpose_is_no_hole(stored: Stored) -> None:
    repository = stored.repository
    entry = repository.catalogue.entry(SECOND_FULL)
    pin_backup(repository.place, SECOND_FULL)
    BackupMarks(repository.store).mark_long_term(entry)
    document = report(repository)
    found = severities(document)
    assert (found["long-term backups"], found["pinned backups"]) == ("notice", "notice")
    backup = next(each for each in document.backups if each.backup_id == SECOND_FULL)
    assert (backup.state, backup.is_pinned) == ("long-term", True)
