"""``pgwal restore``: rebuild a data directory."""

from __future__ import annotations

import logging
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pgwal.errors import TargetError
from pgwal_cli import options
from pgwal_cli.allocator import share_freed_memory
from pgwal_cli.named_backup import backup_id
from pgwal_cli.output import print_json, size_text
from pgwal_cli.overwriting import confirm_overwriting
from pgwal_cli.progress import progress_bar
from pgwal_cli.rebuilding import (
    RebuildingOptions,
    TablespaceMapping,
    TablespacesInPlace,
    argument_bytes,
    parse_tablespaces,
    rebuild_document,
    warn_of_links,
    warn_of_root,
)
from pgwal_cli.recovery_target import TargetAndActionOptions
from pgwal_cli.restore_command import restore_command
from pgwal_cli.standby_options import StandbyOptions

if TYPE_CHECKING:
    from pgwal.backup.standby import Standby
    from pgwal.engine.rebuild_report import RebuildReport
    from pgwal.engine.restore import PreparedRestore, RestoreRequest
    from pgwal.repository.place import Place
    from pgwal_cli.restore_documents import RestoreDocument

logger = logging.getLogger("pgwal")


class Archiving(StrEnum):
    """What the restored server does about archiving its WAL."""

    OFF = "off"
    PRESERVE = "preserve"


Pgdata = Annotated[
    Path,
    typer.Option(
        "-D",
        "--pgdata",
        metavar="DIR",
        help="Directory to restore into; absent or empty, unless with --delta.",
        readable=False,
    ),
]
Delta = Annotated[
    bool,
    typer.Option(
        "--delta",
        help="Overwrite a stopped data directory of the same cluster: fetch files that differ, remove others.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before --delta overwrites.")]
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
Databases = Annotated[
    list[str] | None,
    typer.Option(
        "--database",
        metavar="NAME",
        help="Restore this database and those of initdb, others without rows.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print what would be restored and replayed, and the room needed; write nothing."),
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
    target: TargetAndActionOptions,
    standby: StandbyOptions,
    database: Databases = None,
    tablespace_mapping: TablespaceMapping = None,
    allow_tablespaces_in_place: TablespacesInPlace = False,
    command: RestoreCommand = None,
    to_gap: ToGap = False,
    archive_mode: ArchivingOption = None,
    delta: Delta = False,
    yes: Yes = False,
    rebuilding: RebuildingOptions,
    dry_run: DryRun = False,
    progress: options.Progress = False,
    json: options.Json = False,
) -> None:
    """Rebuild a data directory from a backup and those it builds on, ready to replay WAL from the repository.

    It replays all WAL received, unless a recovery target is given.
    """
    from pgwal.disk.copy_method import CopyMethod
    from pgwal.engine.restore import ArchiveMode, RestoreRequest

    how = rebuilding.rebuild_options()
    share_freed_memory()
    recovery_target = target.recovery_target()
    followed = standby.followed(recovery_target)
    if delta and how.method is not CopyMethod.COPY:
        raise typer.BadParameter(f"--delta and --{how.method} exclude each other")
    if database:
        _require_known_wal(followed, command)
    # The latest that can reach a target is not the latest of all.
    if backup is not None and backup != options.LATEST:
        backup = backup_id(repo, backup)
    request = RestoreRequest(
        repo,
        backup,
        pgdata,
        command or _own_command(repo, to_gap or recovery_target.is_set or bool(database), followed),
        parse_tablespaces(tablespace_mapping),
        recovery_target,
        how,
        wal_is_here=command is None,
        to_gap=to_gap,
        archive_mode=ArchiveMode.OFF_AT_TARGET if archive_mode is None else ArchiveMode(archive_mode.value),
        allow_tablespaces_in_place=allow_tablespaces_in_place,
        standby=followed,
        databases=tuple(map(argument_bytes, database or ())),
        delta=delta,
        confirm=partial(confirm_overwriting, asks=not yes),
    )
    if dry_run:
        _forecast(request, json)
    else:
        _restore(request, progress, json)


def _require_known_wal(followed: Standby | None, command: str | None) -> None:
    """Refuse a restore of some databases before WAL that cannot be looked at: pages that it changes would not come."""
    if followed is not None:
        raise typer.BadParameter(
            "--database and --standby exclude each other: a standby replays whatever its primary changes later, also in"
            " databases of which it has no pages"
        )
    if command is not None:
        raise typer.BadParameter(
            "--database and --restore-command exclude each other: which pages come of other databases is told by the"
            " WAL that is replayed, and that must be in the repository"
        )


def _own_command(repo: Place, to_gap: bool, followed: Standby | None) -> str:
    # With a target, the server itself refuses to end recovery before that; and what precedes a gap may be needed.
    return restore_command(repo, to_gap=to_gap, for_standby=followed is not None)


def _restore(request: RestoreRequest, progress: bool, json: bool) -> None:
    from pgwal.engine.restore import restore_backup

    def announce(prepared: PreparedRestore) -> None:
        nonlocal request
        request = prepared.request
        _announce(prepared)

    with progress_bar("restoring", progress) as on_progress:
        report = restore_backup(request, on_progress, announce)
    warn_of_links(report.linked_backups, request.target)
    warn_of_root(request.target)
    if json:
        document: RestoreDocument = {
            **rebuild_document(report),
            "kept_bytes": report.bytes_kept,
            "fetched_bytes": report.bytes_fetched,
            "recovery": dict(request.recovery_target.settings()),
            "standby": request.standby is not None,
        }
        print_json(document)
    else:
        _print_report(request, report)


def _forecast(request: RestoreRequest, json: bool) -> None:
    """Print what a restore would do; raises what it would, also for want of room."""
    from pgwal.engine.restore_forecast import forecast_restore
    from pgwal_cli.restore_forecast_text import print_restore_forecast

    forecast = forecast_restore(request)
    print_restore_forecast(forecast, dict(request.recovery_target.settings()), json)
    if not forecast.has_room:
        raise TargetError(
            f"there is no room for backup {forecast.chain[0].backup_id}",
            hint="Free some space, or map tablespaces to other places with -T OLD=NEW.",
        )


def _announce(prepared: PreparedRestore) -> None:
    from pgwal_cli.restore_forecast_text import start_text

    logger.info("restoring %s", start_text(prepared.chosen, prepared.replay))


def _print_report(request: RestoreRequest, report: RebuildReport) -> None:
    from pgwal.engine.restore import switches_archiving_off

    print(
        f"restored {report.entry.backup_id} into {request.target}: {report.file_count} files,"
        f" {size_text(report.bytes_written)}, from {report.chain_length} backups"
    )
    if request.delta:
        print(f"kept {size_text(report.bytes_kept)} that were there, fetched {size_text(report.bytes_fetched)}")
    print(f"Start the server there: it replays WAL {_end_text(request)}.")
    if switches_archiving_off(request):
        print("It does not archive its WAL: archive_mode is off in postgresql.auto.conf.")


def _end_text(request: RestoreRequest) -> str:
    target = request.recovery_target
    if request.standby is not None and request.standby.primary_conninfo is None:
        return "from the repository, and waits for more to come there: it has no primary_conninfo"
    if request.standby is not None:
        return "from the repository, and then streams from its primary"
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
