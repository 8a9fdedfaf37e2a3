"""The record of a verification that ``--report`` leaves behind: a JSON document, and the same as text.

It says what was verified, restored, replayed and checked, by what and how long each took, also where it failed.
docs/operations.md has the meaning of its members.
"""

from __future__ import annotations

import getpass
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pgwal import __version__
from pgwal.checksum import ContentDigest
from pgwal.errors import PgwalError
from pgwal_cli.output import error_document, range_documents
from pgwal_cli.restore_forecast_text import replay_document

if TYPE_CHECKING:
    from pgwal.backup.entry import BackupEntry
    from pgwal.backup.recovery import RecoveryTarget
    from pgwal.engine.verify import VerifyReport
    from pgwal.repository.place import Place
    from pgwal.repository.repository import Repository
    from pgwal_cli.amcheck import CheckedDatabase
    from pgwal_cli.documents import ErrorMembers
    from pgwal_cli.restore_documents import (
        CheckedDatabaseDocument,
        CheckedDocument,
        FailureDocument,
        ReplayedDocument,
        RestoredDocument,
        VerificationReportDocument,
        VerifiedBackupDocument,
        VerifiedDocument,
    )
    from pgwal_cli.trial_restore import TrialReport


@dataclass(slots=True)
class VerificationRecord:
    """What was asked for, and what has come of it so far; times are those of this host."""

    place: Place
    backup: str | None
    target: RecoveryTarget | None
    """None where no backup is to be restored for a trial."""
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    verified: VerifyReport | None = None
    verify_seconds: float = 0.0
    trial: TrialReport | None = None
    failure: BaseException | None = None
    _begin_s: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin_s

    @property
    def problems(self) -> list[str]:
        """All that is wrong with what was looked at."""
        found = [] if self.verified is None else [f"{each.path}: {each.message}" for each in self.verified.problems]
        return found + ([] if self.trial is None else self.trial.problems)

    @property
    def has_passed(self) -> bool:
        """Whether all that was asked for was done, and nothing is wrong."""
        is_done = self.verified is not None and (self.target is None or self.trial is not None)
        return is_done and self.failure is None and not self.problems


def report_document(record: VerificationRecord) -> VerificationReportDocument:
    """Return the JSON document of a verification that has ended, in whatever way."""
    repository = _opened(record.place)
    identity = None if repository is None else repository.identity
    return {
        "version": 1,
        "verdict": "passed" if record.has_passed else "failed",
        "failure": _failure_document(record),
        "messages": record.problems,
        "started_at": record.started_at.isoformat(timespec="seconds"),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(record.seconds, 3),
        "pgwal_version": __version__,
        "host": socket.gethostname(),
        "user": _user(),
        "repository": str(record.place),
        "system_identifier": None if identity is None else str(identity.system_identifier),
        "major": None if identity is None else identity.major,
        "wal_segment_bytes": None if identity is None else identity.segment_size,
        "asked": {
            "backup": record.backup,
            "restore": record.target is not None,
            "recovery": None if record.target is None else dict(record.target.settings()),
        },
        "verified": _verified_document(record),
        "restored": _restored_document(record.trial),
        "replayed": _replayed_document(record.trial),
        "checked": _checked_document(record.trial),
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return str(os.geteuid())


def _failure_document(record: VerificationRecord) -> ErrorMembers | FailureDocument | None:
    """Return what kept it from being done as it was asked for."""
    failure = record.failure
    if isinstance(failure, PgwalError):
        return error_document(failure)
    if failure is not None:
        return {"kind": type(failure).__name__, "message": str(failure)}
    if record.target is not None and record.trial is None:
        return {"kind": "NothingRestored", "message": "nothing was restored for a trial"}
    return None


def _opened(place: Place) -> Repository | None:
    from pgwal.repository.repository import Repository

    # What keeps it from being opened is the failure.
    with suppress(PgwalError):
        return Repository.open(place)
    return None


def _verified_document(record: VerificationRecord) -> VerifiedDocument | None:
    report = record.verified
    if report is None:
        return None
    repository = _opened(record.place)
    return {
        "backups": [
            _backup_document(backup_id, report.entries.get(backup_id), repository) for backup_id in report.backup_ids
        ],
        "wal_ranges": range_documents(report.wal_ranges),
        "read_bytes": report.bytes_read,
        "opens_files": report.opens_files,
        "file_digests": ContentDigest.algorithm,
        "problem_count": len(report.problems),
        "seconds": round(record.verify_seconds, 3),
    }


def _backup_document(
    backup_id: str, entry: BackupEntry | None, repository: Repository | None
) -> VerifiedBackupDocument:
    if entry is None:
        return {"id": backup_id}
    digest = None
    # It may be gone by now.
    with suppress(PgwalError):
        digest = None if repository is None else repository.catalogue.entry_sha256(backup_id)
    return {
        "id": backup_id,
        "kind": entry.kind.value,
        "prior": entry.prior_id,
        "start_lsn": str(entry.start_lsn),
        "timeline": entry.start_timeline_id,
        "stop_lsn": str(entry.stop_lsn),
        "stop_timeline": entry.stop_timeline_id,
        "finished_at": entry.finished_at,
        "label": entry.label,
        "file_count": entry.totals.file_count,
        "stored_bytes": entry.totals.stored_size_bytes,
        "data_checksums": entry.data_checksums,
        "entry_sha256": digest,
    }


def _restored_document(trial: TrialReport | None) -> RestoredDocument | None:
    if trial is None or trial.rebuilt is None:
        return None
    rebuilt = trial.rebuilt
    return {
        "backup": trial.backup_id,
        "backup_count": rebuilt.chain_length,
        "file_count": rebuilt.file_count,
        "read_bytes": rebuilt.bytes_read,
        "written_bytes": rebuilt.bytes_written,
        "seconds": round(trial.step_seconds["restore"], 3),
    }


def _replayed_document(trial: TrialReport | None) -> ReplayedDocument | None:
    if trial is None or trial.target is None:
        return None
    last = trial.last_transaction_at
    return {
        "expected": replay_document(trial.target.replay),
        "recovery": dict(trial.target.target.settings()),
        "stopped_before_tablespace": None if trial.stopped_before is None else str(trial.stopped_before),
        "server_version": trial.server_version,
        "replayed_lsn": None if trial.replayed_lsn is None else str(trial.replayed_lsn),
        "last_transaction_at": None if last is None else last.isoformat(),
        "seconds": round(trial.step_seconds["replay"], 3),
    }


def _checked_document(trial: TrialReport | None) -> CheckedDocument | None:
    if trial is None or not trial.databases:
        return None
    return {
        "by": "amcheck",
        "databases": [_database_document(database) for database in trial.databases],
        "table_count": trial.table_count,
        "index_count": trial.index_count,
        "seconds": round(trial.step_seconds["check"], 3),
    }


def _database_document(database: CheckedDatabase) -> CheckedDatabaseDocument:
    return {
        "database": database.name,
        "table_count": database.table_count,
        "index_count": database.index_count,
        "unchecked_indexes": database.unchecked_indexes,
        "messages": database.problems,
        "seconds": round(database.seconds, 3),
    }
