"""The page of a report: one HTML file that asks for nothing, from its document.

What comes from a repository or a server stands in it in two ways alone: as escaped text, and as JSON in which no
character can end the element that holds it.  Scripts and styles are allowed by their digests.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator
from hashlib import sha256
from html import escape
from importlib import resources
from string import Template
from typing import Any, NamedTuple

from pgwal.report.document import BackupPart, ChurnPart, Document, RelationPart
from pgwal_cli.output import size_text
from pgwal_cli.report_tables import (
    Table,
    backups_table,
    churn_by_time_table,
    churn_table,
    forecast_table,
    heat_table,
    lag_table,
    relation_text,
    time_text,
    timelines_table,
    windows_table,
)

_MOST_STACKED = 11
"""Relations that are told apart in the picture of churn; the others are one."""
_MOST_ROWS = 40
"""Chains that fit a picture; the table has all."""


class Section(NamedTuple):
    """A picture, what it says in a sentence, and the tables behind it; ``is_drawn`` is whether there is anything to."""

    name: str
    title: str
    says: str
    tables: list[Table]
    is_drawn: bool = True


def page_of(document: Document) -> Iterator[str]:
    """Yield the page in pieces of text."""
    style, script, echarts = (_asset(name) for name in ("page.css", "page.js", "echarts.min.js"))
    sections = _sections(document)
    yield Template(_asset("page.html")).substitute(
        policy=content_security_policy(style, echarts, script),
        title=escape(document.repository),
        style=style,
        about=_about(document),
        contents="".join(_contents(sections)),
        tiles="".join(_tiles(document)),
        findings="".join(_findings(document)),
        sections="".join(part for section in sections for part in _section_html(section)),
        footer=_footer(document),
        pictures=embedded_json(pictures(document)),
        echarts=echarts,
        script=script,
    )


def _asset(name: str) -> str:
    return resources.files("pgwal_cli").joinpath("page", name).read_text(encoding="utf-8")


def content_security_policy(style: str, *scripts: str) -> str:
    """Return the policy that allows these and nothing else; pictures of the page itself are data."""
    allowed = " ".join(map(_source, scripts))
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_source(style)}; img-src data:;"
        " base-uri 'none'; form-action 'none'"
    )


def _source(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def embedded_json(value: Any) -> str:
    """Return JSON that can stand in a script element: no character of it means anything to HTML."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


# ---- what pictures are drawn of


def pictures(document: Document) -> dict[str, Any]:
    """Return of the document what pictures need, under its own names."""
    members = document.members()
    kept = ("pgwal-report", "made_s", "since_s", "newest_commit", "timelines", "forecast", "receiver", "server")
    drawn = {name: members[name] for name in kept}
    drawn["chains"] = members["chains"][-_MOST_ROWS:]
    # As the table has them: what can be used may be a few of thousands.
    drawn["backups"] = [_drawn_backup(backup) for backup in document.backups]
    drawn["churn"] = None if document.churn is None else _drawn_churn(document.churn)
    return drawn


def _drawn_backup(backup: BackupPart) -> dict[str, Any]:
    names = ("backup_id", "state", "kind", "started_s", "finished_s", "size_bytes", "stored_bytes", "is_pinned")
    return {name: getattr(backup, name) for name in names} | {"is_merged": backup.is_merged}


def _drawn_churn(churn: ChurnPart) -> dict[str, Any]:
    return {
        "start_s": churn.start_s,
        "bucket_s": churn.bucket_s,
        "bucket_count": churn.bucket_count,
        "total": churn.total,
        "stacked": [_drawn_relation(each, "by_bucket") for each in churn.relations[:_MOST_STACKED]],
        "heated": [_drawn_relation(each, "heat_width", "heat") for each in churn.relations if each.heat],
    }


def _drawn_relation(relation: RelationPart, *names: str) -> dict[str, Any]:
    return {"name": relation_text(relation)} | {name: getattr(relation, name) for name in names}


# ---- the parts of the page


def _about(document: Document) -> str:
    since = "" if document.since_s is None else f" Pictures begin at {time_text(document.since_s)}."
    return escape(
        f"{document.repository}: PostgreSQL {document.major}, system identifier {document.system_identifier}."
        f" Made {time_text(document.made_s)}.{since} All times are UTC."
    )


def _footer(document: Document) -> str:
    return escape(
        f"Made by {document.made_by}. Pictures are drawn by Apache ECharts, which is part of this file; nothing is"
        " fetched from anywhere."
    )


def _contents(sections: Iterable[Section]) -> Iterator[str]:
    yield '<li><a href="#findings">Findings</a></li>'
    for section in sections:
        yield f'<li><a href="#{section.name}">{escape(section.title)}</a></li>'


def _tiles(document: Document) -> Iterator[str]:
    commit = document.newest_commit
    counts = {word: sum(finding.severity == word for finding in document.findings) for word in ("critical", "warning")}
    finished = [backup for backup in document.backups if backup.finished_s is not None]
    newest = max(finished, key=lambda backup: backup.finished_s or 0.0, default=None)
    sizes = document.sizes
    tiles = [
        (
            "Newest recoverable commit",
            "not known" if commit is None else time_text(commit.time_s),
            document.problems.get("newest_commit", "")
            if commit is None
            else f"LSN {commit.lsn} on timeline {commit.timeline}",
        ),
        ("Findings", f"{counts['critical']} critical, {_count(counts['warning'], 'warning')}", ""),
        (
            "Newest backup",
            "none" if newest is None else time_text(newest.finished_s),
            "" if newest is None else newest.backup_id,
        ),
        (
            "In the repository",
            size_text(sizes.backups + sizes.wal + sizes.summaries),
            f"backups {size_text(sizes.backups)}, WAL {size_text(sizes.wal)}, summaries {size_text(sizes.summaries)}",
        ),
    ]
    yield "<dl>"
    for name, value, more in tiles:
        yield f"<div><dt>{escape(name)}</dt><dd>{escape(value)} <small>{escape(more)}</small></dd></div>"
    yield "</dl>"


def _findings(document: Document) -> Iterator[str]:
    yield '<ul class="findings">'
    for finding in document.findings:
        yield f'<li class="{finding.severity}"><span class="severity">{finding.severity}</span>'
        yield f"<strong>{escape(finding.subject)}</strong>: {escape(finding.message)}"
        if finding.hint:
            yield f'<p class="hint">{escape(finding.hint)}</p>'
        yield "</li>"
    yield "</ul>"


def _section_html(section: Section) -> Iterator[str]:
    title = escape(section.title)
    yield f'<section class="part" id="{section.name}" aria-labelledby="{section.name}-title">'
    yield f'<h2 id="{section.name}-title">{title}</h2>'
    yield f'<p class="says" id="{section.name}-says">{escape(section.says)}</p>'
    if section.is_drawn:
        yield f'<div class="picture" id="{section.name}-picture" tabindex="0" role="group"'
        yield f' aria-roledescription="picture" aria-label="Picture: {title}" aria-describedby="{section.name}-says">'
        yield f'</div><p class="read" id="{section.name}-read" role="status"></p>'
    for table in section.tables:
        yield from table.html()
    yield "</section>\n"


def _sections(document: Document) -> list[Section]:
    return [
        _windows(document),
        _coverage(document),
        *_churn(document),
        _backups(document),
        *_forecast_and_lag(document),
    ]


def _windows(document: Document) -> Section:
    chains, holes = len(document.chains), sum(len(chain.holes) for chain in document.chains)
    says = f"{_count(chains, 'chain')} of backups, {_count(holes, 'hole')} that no backup can recover."
    if chains > _MOST_ROWS:
        says += f" The picture has the newest {_MOST_ROWS}."
    says += " Green bars are times to which the cluster can be restored, red ones with a dashed edge are holes."
    return Section("windows", "Recovery windows", says, [windows_table(document)], bool(chains))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _coverage(document: Document) -> Section:
    holes = sum(len(timeline.wal_holes) for timeline in document.timelines)
    says = (
        f"{_count(len(document.timelines), 'timeline')} with {_count(holes, 'hole')} in the WAL. Along the LSNs, each"
        " timeline has its WAL, and below it what of it is summarised; a triangle marks where it began."
    )
    return Section("coverage", "Coverage of timelines", says, [timelines_table(document)], bool(document.timelines))


def _churn(document: Document) -> list[Section]:
    churn = document.churn
    titles = ("Churn of relations", "Heat of blocks")
    if churn is None:
        reason = f"Nothing to show: {document.problems.get('churn', 'no summary was read')}."
        names = ("churn", "heat")
        return [Section(name, title, reason, [], False) for name, title in zip(names, titles, strict=True)]
    blocks = sum(count for _, count in churn.total)
    says = (
        f"{blocks} block changes of {_count(churn.relation_count, 'relation')} in {churn.summary_count} summaries;"
        " a block counts once a summary. Triangles mark where backups ended."
    )
    if len(churn.relations) < churn.relation_count:
        says += f" The table has the {len(churn.relations)} that changed most."
    heat = "Where in the most changed relations blocks changed, from each one's first block to its last one that did."
    return [
        Section("churn", titles[0], says, [churn_table(churn), churn_by_time_table(churn)], bool(churn.total)),
        Section("heat", titles[1], heat, [heat_table(churn)], bool(churn.relations)),
    ]


def _backups(document: Document) -> Section:
    states: dict[str, int] = {}
    for backup in document.backups:
        states[backup.state] = states.get(backup.state, 0) + 1
    counts = ", ".join(f"{count} {state}" for state, count in states.items()) or "none"
    says = f"Backups: {counts}. Bars are what each takes in the repository, the line how long it took."
    has_sizes = any(backup.stored_bytes is not None for backup in document.backups)
    return Section("backups", "Sizes and durations of backups", says, [backups_table(document)], has_sizes)


def _forecast_and_lag(document: Document) -> list[Section]:
    forecast, server = document.forecast, document.server
    lag = Section("lag", "Lag and slot", _lag_says(document), [lag_table(document)], server is not None)
    title = "Forecast of the next incremental"
    if forecast is None:
        reason = f"There is none: {document.problems.get('forecast', 'it was not asked for')}."
        return [Section("forecast", title, reason, [], False), lag]
    size = size_text(forecast.size_bytes)
    says = f"On {forecast.prior_id} it would copy {size} in {forecast.block_count} blocks, as of {forecast.end_lsn}"
    says += (
        f", of {size_text(forecast.total_bytes)} in all."
        if forecast.by_server and forecast.total_bytes is not None
        else ", by the summaries alone: what is always copied whole comes on top."
    )
    return [Section("forecast", title, says, [forecast_table(forecast)]), lag]


def _lag_says(document: Document) -> str:
    receiver, server = document.receiver, document.server
    says = "The receiver runs." if receiver.is_running else "No receiver runs."
    if server is None:
        return f"{says} Of the server nothing is known: {document.problems.get('server', 'it was not asked')}."
    if server.lag_bytes is not None:
        says += f" It is {size_text(server.lag_bytes)} behind the server."
    if server.retained_bytes is not None:
        says += f" The slot holds back {size_text(server.retained_bytes)}."
    return says
