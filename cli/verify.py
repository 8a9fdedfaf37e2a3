"""``pgwal verify``: is what is stored what was stored, and can it be restored?"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from pgwal.errors import PgwalError
from pgwal_cli import options
from pgwal_cli.allocator import share_freed_memory
from pgwal_cli.executor import Executor, ExecutorAddress, opened_fleet
from pgwal_cli.exit_codes import VERIFICATION_FAILED
from pgwal_cli.named_backup import backup_id
from pgwal_cli.output import print_json, range_documents, size_text
from pgwal_cli.progress import progress_bar
from pgwal_cli.recovery_target import TargetOptions

if TYPE_CHECKING:
    from pgwal.backup.entry import BackupEntry
    from pgwal.backup.recovery import RecoveryTarget
    from pgwal.engine.verify import VerifyReport
    from pgwal_cli.restore_documents import VerifyDocument
    from pgwal_cli.trial_restore import TrialReport
    from pgwal_cli.verification_report import VerificationRecord
    from pgwal_cli.verification_report_file import ReportFile

logger = logging.getLogger("pgwal")

TRIAL = "Trial restore"

Backup = Annotated[
    str | None, typer.Argument(metavar="[ID|latest]", help="The backup, with all that it builds on; by default all.")
]
Jobs = Annotated[int, typer.Option("-j", "--jobs", min=1, max=256, metavar="N", help="Threads that read.")]
Restore = Annotated[
    bool,
    typer.Option(
        "--restore",
        help="Also restore, start, and check with amcheck; the newest backup by default.",
        rich_help_panel=TRIAL,
    ),
]
RestoreDir = Annotated[
    Path | None,
    typer.Option(
        "--restore-dir",
        metavar="DIR",
        help="Directory to restore into, instead of a temporary one; absent or empty.",
        readable=False,
        rich_help_panel=TRIAL,
    ),
]
Bindir = Annotated[
    Path | None,
    typer.Option(
        "--bindir",
        metavar="DIR",
        help="The server's programs, instead of those in PATH.",
        readable=False,
        rich_help_panel=TRIAL,
    ),
]
Username = Annotated[
    str, typer.Option("-U", "--username", metavar="NAME", help="A superuser of the cluster.", rich_help_panel=TRIAL)
]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Write a report of the verification and the trial restore to FILE, as JSON, and as text beside it.",
        readable=False,
    ),
]


@options.with_groups
def verify(
    repo: options.Repo,
    backup: Backup = None,
    *,
    jobs: Jobs = 1,
    executor: Executor = None,
    restore: Restore = False,
    target: TargetOptions,
    restore_dir: RestoreDir = None,
    bindir: Bindir = None,
    username: Username = "postgres",
    report: Report = None,
    progress: options.Progress = False,
    json: options.Json = False,
) -> None:
    """Verify stored backups, and the WAL and the summaries that they need; list all that is wrong.

    Exit code 5 when something is. With --restore, a backup is restored, a server replays WAL in it, and all its
    tables and indexes are checked; nothing of that stays.
    """
    if not restore and (restore_dir is not None or bindir is not None or target.is_given):
        raise typer.BadParameter("--restore-dir, --bindir and the --target options are for --restore")
    from pgwal_cli.verification_report import VerificationRecord
    from pgwal_cli.verification_report_file import ReportFile

    file = None if report is None else ReportFile(report)
    if backup is not None:
        backup = backup_id(repo, backup)
    record = VerificationRecord(repo, backup, target.recovery_target() if restore else None)
    try:
        _verify(record, jobs, executor, progress)
        if record.target is not None:
            _try_restore(record, record.target, _Means(restore_dir, bindir, username), progress)
    except BaseException as error:
        record.failure = error
        if file is not None:
            _leave_report_of_failure(file, record)
        raise
    if file is not None:
        file.write(record)
    assert record.verified is not None
    if json:
        print_json(_document(record.verified, record.trial))
    else:
        print("\n".join(_lines(record.verified, record.trial)))
    if record.problems:
        raise typer.Exit(VERIFICATION_FAILED)


class _Means(NamedTuple):
    """What a trial is made with."""

    directory: Path | None
    bin_dir: Path | None
    superuser: str


def _verify(record: VerificationRecord, jobs: int, executor: ExecutorAddress | None, progress: bool) -> None:
    from pgwal.engine.verify import VerifyRequest, verify

    share_freed_memory()
    begin_s = time.monotonic()
    try:
        with opened_fleet(executor, record.place) as fleet, progress_bar("verifying", progress) as on_progress:
            record.verified = verify(VerifyRequest(record.place, record.backup, jobs, fleet), on_progress)
    finally:
        record.verify_seconds = time.monotonic() - begin_s


def _try_restore(record: VerificationRecord, target: RecoveryTarget, means: _Means, progress: bool) -> None:
    """Restore a backup for a trial, unless something is wrong: what is known to be damaged is not restored."""
    verified = record.verified
    assert verified is not None
    if not verified.backup_ids or verified.problems:
        print("pgwal: skipping the trial restore because of the problems above", file=sys.stderr)
        return
    from pgwal_cli.trial_restore import TrialReport, TrialRequest, try_restore

    entry = _entry_to_try(record, verified, target)
    record.trial = TrialReport(entry.backup_id)
    with progress_bar("restoring", progress) as on_progress:
        try_restore(TrialRequest(record.place, entry, target, *means), record.trial, on_progress)


def _entry_to_try(record: VerificationRecord, verified: VerifyReport, target: RecoveryTarget) -> BackupEntry:
    """Return the backup that was asked for, the newest that can reach the target, or the newest of all."""
    if not target.is_set:
        return verified.entries[record.backup or verified.backup_ids[-1]]
    from pgwal.engine.recovery_window import choose_backup
    from pgwal.repository.repository import Repository

    repository = Repository.open(record.place)
    return choose_backup(repository, list(verified.entries.values()), target, record.backup)


def _leave_report_of_failure(file: ReportFile, record: VerificationRecord) -> None:
    """Leave a report of what ends the command with an error, which is not to be hidden by another one."""
    try:
        file.write(record)
    except PgwalError as error:
        logger.warning("%s", error)


def _lines(report: VerifyReport, trial: TrialReport | None) -> list[str]:
    lines = [f"{problem.path}: {problem.message}" for problem in report.problems]
    wal = ", ".join(map(str, report.wal_ranges)) or "none"
    lines.append(f"read {size_text(report.bytes_read)} of {len(report.backup_ids)} backups; WAL {wal}")
    if not report.opens_files:
        lines.append("what is encrypted was held against digests, and not opened: that takes an identity (--identity)")
    if trial is not None:
        lines += trial.problems
        if trial.stopped_before is not None:
            lines.append(
                f"the trial ended before LSN {trial.stopped_before.lsn}: there WAL creates {trial.stopped_before}, and"
                " replaying that writes to that very place; take a new backup to try what comes behind it"
            )
        lines.append(
            f"restored {trial.backup_id}, replayed up to {trial.end_lsn or 'nowhere'}, checked {trial.table_count}"
            f" tables and {trial.index_count} indexes of {len(trial.databases)} databases in {trial.seconds:.0f} s"
        )
        if trial.unchecked_indexes:
            lines.append(
                f"{len(trial.unchecked_indexes)} indexes were not checked, for that would run functions of the"
                f" cluster's own: {', '.join(trial.unchecked_indexes)}"
            )
    count = len(report.problems) + (len(trial.problems) if trial is not None else 0)
    return [*lines, f"{count} problem{'s' * (count > 1)}" if count else "nothing is wrong"]


def _document(report: VerifyReport, trial: TrialReport | None) -> VerifyDocument:
    return {
        "version": 1,
        "verified_backups": report.backup_ids,
        "read_bytes": report.bytes_read,
        "opens_files": report.opens_files,
        "wal_ranges": range_documents(report.wal_ranges),
        "problems": [
            {"backup": problem.backup_id, "path": problem.path, "message": problem.message}
            for problem in report.problems
        ],
        "trial": None if trial is None else trial.document(),
    }
