"""``pgwal verify``: is what is stored what was stored, and can it be restored?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgwal_cli import options
from pgwal_cli.exit_codes import VERIFICATION_FAILED
from pgwal_cli.output import print_json, size_text
from pgwal_cli.progress import progress_bar

if TYPE_CHECKING:
    from pgwal.engine.verify import VerifyReport
    from pgwal_cli.trial_restore import TrialReport

TRIAL = "Trial restore"

Backup = Annotated[
    str | None, typer.Argument(metavar="[ID]", help="The backup, with all that it builds on; by default all.")
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
        help="Where to, instead of the temporary directory; absent or empty.",
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


def verify(
    repo: options.Repo,
    backup: Backup = None,
    jobs: Jobs = 1,
    restore: Restore = False,
    restore_dir: RestoreDir = None,
    bindir: Bindir = None,
    username: Username = "postgres",
    progress: options.Progress = False,
    json: options.Json = False,
) -> None:
    """Verify stored backups, and the WAL and the summaries that they need; list all that is wrong.

    Exit code 5 when something is. With --restore, a backup is restored, a server replays WAL in it, and all its
    tables and indexes are checked; nothing of that stays.
    """
    if not restore and (restore_dir is not None or bindir is not None):
        raise typer.BadParameter("--restore-dir and --bindir are for --restore")
    from pgwal.engine.verify import VerifyRequest, verify

    with progress_bar("verifying", progress) as on_progress:
        report = verify(VerifyRequest(repo, backup, jobs), on_progress)
    trial = None
    # What is known to be damaged is not restored.
    if restore and report.backup_ids and not report.problems:
        from pgwal_cli.trial_restore import try_restore

        with progress_bar("restoring", progress) as on_progress:
            trial = try_restore(
                repo, report.entries[backup or report.backup_ids[-1]], restore_dir, bindir, username, on_progress
            )
    elif restore:
        print("pgwal: nothing is restored for a trial, because of what is wrong", file=sys.stderr)
    if json:
        print_json(_document(report, trial))
    else:
        print("\n".join(_lines(report, trial)))
    if report.problems or (trial is not None and trial.problems):
        raise typer.Exit(VERIFICATION_FAILED)


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
            f" tables and {trial.index_count} indexes of {trial.database_count} databases in {trial.seconds:.0f} s"
        )
        if trial.unchecked_indexes:
            lines.append(
                f"{len(trial.unchecked_indexes)} indexes were not checked, for that would run functions of the"
                f" cluster's own: {', '.join(trial.unchecked_indexes)}"
            )
    count = len(report.problems) + (len(trial.problems) if trial is not None else 0)
    return [*lines, f"{count} problem{'s' * (count > 1)}" if count else "nothing is wrong"]


def _document(report: VerifyReport, trial: TrialReport | None) -> dict[str, object]:
    return {
        "backups": report.backup_ids,
        "bytes_read": report.bytes_read,
        "opens_files": report.opens_files,
        "wal": [
            {"timeline": part.timeline_id, "start": str(part.start), "end": str(part.end)} for part in report.wal_ranges
        ],
        "problems": [
            {"backup": problem.backup_id, "path": problem.path, "message": problem.message}
            for problem in report.problems
        ],
        "restore": None if trial is None else trial.document(),
    }
