"""What a restore says of itself before it starts, and all that ``--dry-run`` prints of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgwal.backup.recovery import time_text
from pgwal_cli.output import print_json, size_text, table_lines
from pgwal_cli.overwriting import overwriting_lines

if TYPE_CHECKING:
    from pgwal.backup.entry import BackupEntry
    from pgwal.engine.overwriting_forecast import OverwritingForecast
    from pgwal.engine.replay_forecast import ReplayForecast
    from pgwal.engine.restore_forecast import RestoreForecast
    from pgwal.engine.restore_room import FileSystemRoom
    from pgwal_cli.restore_documents import OverwritingDocument, ReplayDocument, RestoreForecastDocument


def start_text(entry: BackupEntry, replay: ReplayForecast | None) -> str:
    """Return the line that says which backup is restored, and what will be replayed."""
    return f"backup {entry.backup_id}, which ended at {entry.stop_lsn} ({entry.finished_at}); {_replay_text(replay)}"


def _replay_text(replay: ReplayForecast | None) -> str:
    if replay is None:
        return "what is replayed is not known, for WAL comes from elsewhere than the repository"
    segments = "segment" if replay.segment_count == 1 else "segments"
    last = replay.last_transaction_at
    ended = "no transaction ended" if last is None else f"the last transaction ended at {time_text(last)}"
    return (
        f"then {size_text(replay.size_bytes)} of WAL in {replay.segment_count} {segments} are replayed, from"
        f" {replay.start_lsn} to {replay.end_lsn} of timeline {replay.timeline_id}: {ended}"
    )


def print_restore_forecast(forecast: RestoreForecast, settings: dict[str, str], as_json: bool) -> None:
    """Print what a restore would do."""
    if as_json:
        print_json(_document(forecast, settings))
        return
    print("\n".join(_lines(forecast)))


def _lines(forecast: RestoreForecast) -> list[str]:
    entry, replay = forecast.chain[0], forecast.replay
    lines = [f"{start_text(entry, replay)}."]
    if len(forecast.chain) > 1:
        lines.append(f"It builds on {', '.join(each.backup_id for each in forecast.chain[1:])}.")
    if replay is not None and replay.gap is not None:
        lines.append(f"Recovery ends {replay.gap.reached}: {replay.gap}.")
    lines += [f"WAL creates {created}." for created in forecast.created]
    rows = [
        (str(place.directory), _of_tablespace(place.tablespace_oid), str(place.file_count), size_text(place.size_bytes))
        for room in forecast.rooms
        for place in room.places
    ]
    lines += table_lines(("directory", "tablespace", "files", "size"), rows)
    lines += [_room_text(room) for room in forecast.rooms]
    if forecast.overwriting is not None:
        lines += _overwriting_lines(forecast.overwriting)
    return [*lines, "Replay takes room besides, for WAL and for what relations grow by. Nothing was written."]


def _overwriting_lines(found: OverwritingForecast) -> list[str]:
    return [
        *overwriting_lines(found.overwriting),
        f"Of the backup's files {found.kept_file_count} are there and right, {found.changed_file_count} are rewritten"
        f" or patched, {found.new_file_count} are new; {size_text(found.kept_bytes)} are kept at least,"
        f" {size_text(found.written_bytes)} written at most.",
    ]


def _overwriting_document(found: OverwritingForecast) -> OverwritingDocument:
    overwriting, unwanted = found.overwriting, found.overwriting.unwanted
    return {
        "path": str(overwriting.directory),
        "description": overwriting.description,
        "kept_file_count": found.kept_file_count,
        "changed_file_count": found.changed_file_count,
        "new_file_count": found.new_file_count,
        "kept_bytes": found.kept_bytes,
        "written_bytes": found.written_bytes,
        "removed_file_count": unwanted.file_count,
        "removed_directory_count": unwanted.directory_count,
        "removed_link_count": len(unwanted.links),
        "removed_bytes": unwanted.size_bytes,
        "lost_wal": overwriting.lost_wal,
    }


def _of_tablespace(oid: int | None) -> str:
    return "-" if oid is None else str(oid)


def _room_text(room: FileSystemRoom) -> str:
    places = ", ".join(str(place.directory) for place in room.places)
    verdict = "there is room" if room.is_enough else "there is not that room"
    return f"{places}: {size_text(room.needed_bytes)} of {size_text(room.free_bytes)} that are free: {verdict}"


def _document(forecast: RestoreForecast, settings: dict[str, str]) -> RestoreForecastDocument:
    entry = forecast.chain[0]
    return {
        "version": 1,
        "backup": entry.backup_id,
        "chain": [each.backup_id for each in forecast.chain],
        "stop_lsn": str(entry.stop_lsn),
        "finished_at": entry.finished_at,
        "recovery": settings,
        "replay": None if forecast.replay is None else replay_document(forecast.replay),
        "created_tablespaces": [
            {"tablespace_oid": created.oid, "path": created.path, "lsn": str(created.lsn)}
            for created in forecast.created
        ],
        "file_systems": [
            {
                "places": [
                    {
                        "path": str(place.directory),
                        "tablespace_oid": place.tablespace_oid,
                        "file_count": place.file_count,
                        "size_bytes": place.size_bytes,
                    }
                    for place in room.places
                ],
                "needed_bytes": room.needed_bytes,
                "free_bytes": room.free_bytes,
                "enough": room.is_enough,
            }
            for room in forecast.rooms
        ],
        "overwriting": None if forecast.overwriting is None else _overwriting_document(forecast.overwriting),
    }


def replay_document(replay: ReplayForecast) -> ReplayDocument:
    """Return what JSON says of the WAL that is replayed."""
    last, gap = replay.last_transaction_at, replay.gap
    return {
        "timeline": replay.timeline_id,
        "start_lsn": str(replay.start_lsn),
        "end_lsn": str(replay.end_lsn),
        "last_transaction_at": None if last is None else last.isoformat(),
        "wal_bytes": replay.size_bytes,
        "segment_count": replay.segment_count,
        "first_segment": replay.first,
        "last_segment": replay.last,
        "gap": None
        if gap is None
        else {
            "timeline": gap.timeline_id,
            "start_lsn": str(gap.start),
            "end_lsn": str(gap.end),
            "first_segment": gap.first,
            "last_segment": gap.last,
        },
    }
