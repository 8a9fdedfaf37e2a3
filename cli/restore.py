"""``pgwal restore``: rebuild a data directory."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgwal_cli import options
from pgwal_cli.output import print_json, size_text
from pgwal_cli.progress import progress_bar
from pgwal_cli.rebuilding import (
    RebuildingOptions,
    TablespaceMapping,
    TablespacesInPlace,
    parse_tablespaces,
    rebuild_document,
    warn_of_links,
    warn_of_root,
)
from pgwal_cli.recovery_target import TargetOptions
from pgwal_cli.restore_command import restore_command

if TYPE_CHECKING:
    from pgwal.backup.recovery import RecoveryTarget
    from pgwal.engine.rebuild import RebuildReport
    from pgwal.engine.restore import RestoreRequest


class Archiving(StrEnum):
    """What the restored server does about archiving its WAL."""

    OFF = "off"
    PRESERVE = "preserve"


Pgdata = Annotated[
    Path,
    typer.Option("-D", "--pgdata", metavar="DIR", help="Directory to restore into; absent or empty.", readable=False),
]
Backup = Annotated[
    str | None,
    typer.Argument(metavar="[ID|latest]", help="The backup; the newest that can reach the target by default."),
]
RestoreCommand = Annotated[
    str | None,
    typer.Option("--restore-command", metavar="CMD", help="restore_command to set instead of pgwal fetch-wal."),
]
ToGap = Annotated[
    bool,
    typer.Option("--to-gap", help="Restore although WAL is missing behind the backup: recovery ends there."),
]
ArchivingOption = Annotated[
    Archiving | None,
    typer.Option(
        "--archive-mode",
        help="Set archive_mode to off, or leave it as it was; off by default with a recovery target.",
    ),
]


@options.with_groups
def restore(
    repo: options.Repo,
    pgdata: Pgdata,
    backup: Backup = None,
    *,
    target: TargetOptions,
    tablespace_mapping: TablespaceMapping = None,
    allow_tablespaces_in_place: TablespacesInPlace = False,
    command: RestoreCommand = None,
    to_gap: ToGap = False,
    archive_mode: ArchivingOption = None,
    rebuilding: RebuildingOptions,
    progress: options.Progress = False,
    json: options.Json = False,
) -> None:
    """Rebuild a data directory from a backup and those it builds on, ready to replay WAL from the repository.

    It replays all WAL received, unless a recovery target is given.
    """
    from pgwal.engine.restore import ArchiveMode, RestoreRequest, restore_backup

    how = rebuilding.rebuild_options()
    recovery_target = target.recovery_target()
    request = RestoreRequest(
        repo,
        backup,
        pgdata,
        # With a target, the server itself refuses to end recovery before that; and what precedes a gap may be needed.
        command or restore_command(repo, to_gap=to_gap or recovery_target.is_set),
        parse_tablespaces(tablespace_mapping),
        recovery_target,
        how,
        wal_is_here=command is None,
        to_gap=to_gap,
        archive_mode=ArchiveMode.OFF_AT_TARGET if archive_mode is None else ArchiveMode(archive_mode.value),
        allow_tablespaces_in_place=allow_tablespaces_in_place,
    )
    with progress_bar("restoring", progress) as on_progress:
        report = restore_backup(request, on_progress)
    warn_of_links(report.linked_backups, pgdata)
    warn_of_root(pgdata)
    if json:
        print_json(rebuild_document(report) | {"recovery": dict(recovery_target.settings())})
    else:
        _print_report(request, report)


def _print_report(request: RestoreRequest, report: RebuildReport) -> None:
    from pgwal.engine.restore import switches_archiving_off

    print(
        f"restored {report.entry.backup_id} into {request.target}: {report.file_count} files,"
        f" {size_text(report.bytes_written)}, from {report.chain_length} backups"
    )
    print(f"Start the server there: it replays WAL {_end_text(request.recovery_target)}.")
    if switches_archiving_off(request):
        print("It does not archive its WAL: archive_mode is off in postgresql.auto.conf.")


def _end_text(target: RecoveryTarget) -> str:
    if not target.is_set:
        return "from the repository, and accepts connections at the end of it, not before"
    side = "before" if target.exclusive else "up to"
    endings = {
        None: "pauses: SELECT pg_wal_replay_resume() makes it accept writes",
        "pause": "pauses: SELECT pg_wal_replay_resume() makes it accept writes",
        "promote": "accepts connections",
        "shutdown": "shuts down",
    }
    return f"{side} {target}, and then {endings[target.action]}"
