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
    Clone,
    Copy,
    CopyFileRange,
    Jobs,
    Link,
    NoSync,
    TablespaceMapping,
    TablespacesInPlace,
    argument_bytes,
    parse_tablespaces,
    rebuild_document,
    rebuild_options,
    warn_of_links,
    warn_of_root,
)
from pgwal_cli.restore_command import restore_command

if TYPE_CHECKING:
    from pgwal.backup.recovery import RecoveryTarget

TARGET = "Recovery target options"


class Archiving(StrEnum):
    """What the restored server does about archiving its WAL."""

    OFF = "off"
    PRESERVE = "preserve"


class Action(StrEnum):
    """What the server can do at the target."""

    PAUSE = "pause"
    PROMOTE = "promote"
    SHUTDOWN = "shutdown"


def restore(
    repo: options.Repo,
    pgdata: Annotated[
        Path,
        typer.Option(
            "-D", "--pgdata", metavar="DIR", help="Directory to restore into; absent or empty.", readable=False
        ),
    ],
    backup: Annotated[
        str | None,
        typer.Argument(metavar="[ID|latest]", help="The backup; the newest that can reach the target by default."),
    ] = None,
    target_lsn: Annotated[
        str | None, typer.Option("--target-lsn", metavar="LSN", help="Replay up to an LSN.", rich_help_panel=TARGET)
    ] = None,
    target_time: Annotated[
        str | None,
        typer.Option(
            "--target-time", metavar="TIME", help="Replay up to a time, local without offset.", rich_help_panel=TARGET
        ),
    ] = None,
    target_xid: Annotated[
        int | None,
        typer.Option("--target-xid", metavar="XID", help="Replay up to a transaction's end.", rich_help_panel=TARGET),
    ] = None,
    target_name: Annotated[
        str | None,
        typer.Option("--target-name", metavar="NAME", help="Replay up to a restore point.", rich_help_panel=TARGET),
    ] = None,
    target_immediate: Annotated[
        bool, typer.Option("--target-immediate", help="Replay no more than the backup needs.", rich_help_panel=TARGET)
    ] = False,
    target_exclusive: Annotated[
        bool,
        typer.Option("--target-exclusive", help="Stop before the target, not after it.", rich_help_panel=TARGET),
    ] = False,
    target_timeline: Annotated[
        str,
        typer.Option(
            "--target-timeline", metavar="TLI|latest|current", help="Timeline to follow.", rich_help_panel=TARGET
        ),
    ] = "latest",
    target_action: Annotated[
        Action | None,
        typer.Option(
            "--target-action", help="What the server does at the target; it pauses by default.", rich_help_panel=TARGET
        ),
    ] = None,
    tablespace_mapping: TablespaceMapping = None,
    allow_tablespaces_in_place: TablespacesInPlace = False,
    command: Annotated[
        str | None,
        typer.Option("--restore-command", metavar="CMD", help="restore_command to set instead of pgwal fetch-wal."),
    ] = None,
    to_gap: Annotated[
        bool,
        typer.Option("--to-gap", help="Restore although WAL is missing behind the backup: recovery ends there."),
    ] = False,
    archive_mode: Annotated[
        Archiving | None,
        typer.Option(
            "--archive-mode",
            help="Set archive_mode to off, or leave it as it was; off by default with a recovery target.",
        ),
    ] = None,
    copy: Copy = False,
    clone: Clone = False,
    copy_file_range: CopyFileRange = False,
    link: Link = False,
    jobs: Jobs = None,
    no_sync: NoSync = False,
    progress: options.Progress = False,
    json: options.Json = False,
) -> None:
    """Rebuild a data directory from a backup and those it builds on, ready to replay WAL from the repository.

    It replays all WAL received, unless a recovery target is given.
    """
    from pgwal.backup.recovery import RecoveryTarget, TargetAction, parse_target_time
    from pgwal.engine.restore import ArchiveMode, RestoreRequest, restore_backup, switches_archiving_off
    from pgwal.repository.local_place import LocalPlace

    how = rebuild_options(
        copy=copy, clone=clone, copy_file_range=copy_file_range, link=link, jobs=jobs, no_sync=no_sync
    )
    target = RecoveryTarget(
        lsn=None if target_lsn is None else options.parse_lsn(target_lsn),
        time=None if target_time is None else parse_target_time(target_time),
        xid=target_xid,
        name=None if target_name is None else argument_bytes(target_name),
        immediate=target_immediate,
        timeline=_timeline(target_timeline),
        action=None if target_action is None else TargetAction(target_action),
        exclusive=target_exclusive,
    )
    request = RestoreRequest(
        LocalPlace(repo),
        backup,
        pgdata,
        # With a target, the server itself refuses to end recovery before that; and what precedes a gap may be needed.
        command or restore_command(repo, to_gap=to_gap or target.is_set),
        parse_tablespaces(tablespace_mapping),
        target,
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
        print_json(rebuild_document(report) | {"recovery": dict(target.settings())})
    else:
        print(
            f"restored {report.entry.backup_id} into {pgdata}: {report.file_count} files,"
            f" {size_text(report.bytes_written)}, from {report.chain_length} backups"
        )
        print(f"Start the server there: it replays WAL {_end_text(target)}.")
        if switches_archiving_off(request):
            print("It does not archive its WAL: archive_mode is off in postgresql.auto.conf.")


def _timeline(text: str) -> int | str:
    if text in ("latest", "current"):
        return text
    try:
        return options.parse_timeline(text)
    except typer.BadParameter as error:
        raise typer.BadParameter(error.message, param_hint="--target-timeline") from error


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
