"""The tables of a report: all that its pictures show, as HTML that needs no script."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from html import escape
from typing import NamedTuple

from pgwal.report.document import BackupPart, ChurnPart, Document, ForecastPart, RelationPart, SpanPart
from pgwal_cli.output import size_text

NUMBER, ID, TEXT = "n", "i", ""
_LONG = 100
_NONE = "-"


class Column(NamedTuple):
    """A heading, and what its cells hold: NUMBER, ID (kept on one line) or TEXT."""

    heading: str
    kind: str = TEXT


class Row(NamedTuple):
    cells: tuple[str, ...]
    is_bad: bool = False


class Table(NamedTuple):
    """A table; the first cell of each row is its heading."""

    caption: str
    columns: tuple[Column, ...]
    rows: list[Row]

    def html(self) -> Iterator[str]:
        """Yield the table within its disclosure."""
        is_long = ' class="long"' if len(self.rows) > _LONG else ""
        caption = escape(self.caption)
        yield f"<details><summary>Table: {caption} ({len(self.rows)})</summary>"
        yield f'<div class="scroll" tabindex="0" role="region" aria-label="Table: {caption}"><table{is_long}>'
        yield f"<caption>{caption}</caption><thead><tr>"
        for column in self.columns:
            yield f'<th scope="col"{_class(column)}>{escape(column.heading)}</th>'
        yield "</tr></thead><tbody>\n"
        classes = [_class(column) for column in self.columns]
        for row in self.rows:
            cells = "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(classes, row.cells, strict=True))
            yield f"<tr{' class=bad' if row.is_bad else ''}>{cells}</tr>\n"
        yield "</tbody></table></div></details>"


def _class(column: Column) -> str:
    return f" class={column.kind}" if column.kind else ""


def time_text(time_s: float | None) -> str:
    """Return a Unix time for people, in UTC."""
    if time_s is None:
        return _NONE
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def duration_text(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds, or days and hours."""
    whole = round(seconds)
    if whole >= 172800:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    return f"{whole // 3600}:{whole % 3600 // 60:02}:{whole % 60:02}"


def _size(size_bytes: int | None) -> str:
    return _NONE if size_bytes is None else size_text(size_bytes)


def windows_table(document: Document) -> Table:
    rows = []
    for chain in document.chains:
        parts = [(span, "recoverable") for span in chain.spans] + [(hole, "hole") for hole in chain.holes]
        for span, word in sorted(parts, key=lambda part: part[0].start_s):
            rows.append(
                Row(
                    (
                        chain.chain_id,
                        str(len(chain.backup_ids)),
                        word if span.start_lsn != span.end_lsn else "that point alone",
                        *_span_cells(span),
                        "pinned" if chain.pinned_ids else "",
                    ),
                    word == "hole",
                )
            )
    columns = (
        Column("Chain", ID), Column("Backups", NUMBER), Column("What"), *_SPAN_COLUMNS, Column("Pinned"),
    )  # fmt: skip
    return Table("recovery windows, times in UTC", columns, rows)


_SPAN_COLUMNS = (
    Column("From", ID), Column("To", ID), Column("From LSN", ID), Column("To LSN", ID), Column("Times"),
)  # fmt: skip


def _span_cells(span: SpanPart) -> tuple[str, ...]:
    return (
        time_text(span.start_s),
        time_text(span.end_s),
        span.start_lsn,
        span.end_lsn,
        "known" if span.is_exact else "estimated",
    )


def timelines_table(document: Document) -> Table:
    rows = []
    for timeline in document.timelines:
        origin = _NONE if timeline.parent is None else f"timeline {timeline.parent} at {timeline.switch_lsn}"
        for word, spans in (
            ("WAL", timeline.wal),
            ("WAL missing", timeline.wal_holes),
            ("summaries", timeline.summaries),
            ("not summarised", timeline.summary_holes),
        ):
            rows += [
                Row((str(timeline.timeline), origin, word, *_span_cells(span)), word == "WAL missing") for span in spans
            ]
    columns = (Column("Timeline", NUMBER), Column("Began on"), Column("What"), *_SPAN_COLUMNS)
    return Table("coverage of timelines, times in UTC", columns, rows)


def relation_text(relation: RelationPart) -> str:
    """Return what a relation is called: its name, or where its files are."""
    if relation.relation == 0:
        return f"all of database {relation.database_name or relation.database}"
    if relation.name is None:
        return f"{relation.tablespace}/{relation.database}/{relation.relation}"
    return relation.name if relation.database_name is None else f"{relation.database_name}: {relation.name}"


def churn_table(churn: ChurnPart) -> Table:
    all_blocks = sum(count for _, count in churn.total) or 1
    rows = [
        Row(
            (
                relation_text(relation),
                f"{relation.tablespace}/{relation.database}/{relation.relation}",
                str(relation.block_count),
                f"{100 * relation.block_count / all_blocks:.1f} %",
                time_text(relation.last_s),
            )
        )
        for relation in churn.relations
    ]
    columns = (
        Column("Relation"), Column("Tablespace/database/number", ID), Column("Block changes", NUMBER),
        Column("Share", NUMBER), Column("Last before", ID),
    )  # fmt: skip
    return Table("churn of relations, the most changed first, times in UTC", columns, rows)


def churn_by_time_table(churn: ChurnPart) -> Table:
    rows = []
    for bucket, count in churn.total:
        found = [
            (part_count, relation_text(relation))
            for relation in churn.relations
            for part, part_count in relation.by_bucket
            if part == bucket
        ]
        most, name = max(found, default=(0, _NONE))
        start_s = churn.start_s + bucket * churn.bucket_s
        rows.append(Row((time_text(start_s), time_text(start_s + churn.bucket_s), str(count), name, str(most))))
    columns = (
        Column("From", ID), Column("To", ID), Column("Block changes", NUMBER), Column("Most changed relation"),
        Column("of which", NUMBER),
    )  # fmt: skip
    return Table("churn by time, in UTC", columns, rows)


def heat_table(churn: ChurnPart) -> Table:
    rows = []
    for relation in churn.relations:
        if not relation.heat:
            continue
        hottest = max(range(len(relation.heat)), key=relation.heat.__getitem__)
        first = hottest * relation.heat_width
        rows.append(
            Row(
                (
                    relation_text(relation),
                    str(len(relation.heat) * relation.heat_width),
                    f"{first} to {first + relation.heat_width - 1}",
                    str(relation.heat[hottest]),
                    " ".join(map(str, relation.heat)),
                )
            )
        )
    columns = (
        Column("Relation"), Column("Blocks", NUMBER), Column("Hottest blocks", ID), Column("Changes there", NUMBER),
        Column("Changes by ranges of equal length, in order"),
    )  # fmt: skip
    return Table("where in relations blocks changed", columns, rows)


def backups_table(document: Document) -> Table:
    columns = (
        Column("Backup", ID), Column("State"), Column("Kind"), Column("Builds on", ID), Column("Started", ID),
        Column("Took", NUMBER), Column("Size", NUMBER), Column("Stored", NUMBER), Column("Start LSN", ID),
        Column("TLI", NUMBER), Column("Label"),
    )  # fmt: skip
    bad = {"unusable", "unreadable", "unfinished"}
    rows = [Row(_backup_cells(backup), backup.state in bad) for backup in reversed(document.backups)]
    return Table("backups, the newest first, times in UTC", columns, rows)


def _backup_cells(backup: BackupPart) -> tuple[str, ...]:
    took = (
        _NONE
        if backup.started_s is None or backup.finished_s is None
        else duration_text(backup.finished_s - backup.started_s)
    )
    words = [backup.state]
    words += ["pinned"] if backup.is_pinned else []
    words += [f"{backup.checksum_failures} bad pages"] if backup.checksum_failures else []
    words += [backup.problem] if backup.problem else []
    return (
        backup.backup_id,
        ", ".join(words),
        _NONE if backup.kind is None else backup.kind + (", merged" if backup.is_merged else ""),
        backup.prior_id or _NONE,
        time_text(backup.started_s),
        took,
        _size(backup.size_bytes),
        _size(backup.stored_bytes),
        backup.start_lsn or _NONE,
        _NONE if backup.timeline is None else str(backup.timeline),
        backup.label or "",
    )


def forecast_table(forecast: ForecastPart) -> Table:
    rows = [Row((name, size_text(size_bytes))) for name, size_bytes in forecast.relations]
    return Table("what the next incremental would copy most of", (Column("Relation"), Column("Size", NUMBER)), rows)


def lag_table(document: Document) -> Table:
    rows = [Row(cells) for cells in _lag_cells(document)]
    return Table("receiver, server and slot, times in UTC", (Column("What"), Column("Value")), rows)


def _lag_cells(document: Document) -> Iterable[tuple[str, str]]:
    receiver, server = document.receiver, document.server
    yield "receiver", "running" if receiver.is_running else "not running"
    yield "timeline received", _NONE if receiver.timeline is None else str(receiver.timeline)
    yield "durable up to", receiver.flushed_lsn or _NONE
    yield "summarised up to", receiver.summarised_lsn or _NONE
    yield "last heard of", time_text(receiver.updated_s)
    yield "last level with the server", time_text(receiver.level_s)
    if receiver.spooled_bytes is not None:
        yield "waits to be stored", size_text(receiver.spooled_bytes)
    if server is None:
        yield "server", document.problems.get("server", _NONE)
        return
    yield "server", f"{'standby' if server.in_recovery else 'primary'} on timeline {server.timeline}"
    yield "server's WAL ends at", server.flush_lsn
    yield "lag", _size(server.lag_bytes)
    yield "lag in time", _NONE if server.lag_s is None else duration_text(server.lag_s)
    if server.slot is None:
        yield "slot", "none is used"
        return
    active = "does not exist" if not server.slot_exists else "active" if server.slot_active else "not active"
    yield "slot", f"{server.slot}: {active}"
    yield "WAL status of the slot", server.wal_status or _NONE
    yield "held back by the slot", _size(server.retained_bytes)
    yield "may be written before the server gives up the slot", _size(server.safe_wal_bytes)
