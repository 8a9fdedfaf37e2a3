"""Documents of reports made by hand: of a repository as large as wanted, or with whatever texts."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from random import Random

from pgwal.lsn import Lsn
from pgwal.report.document import (
    BackupPart,
    ChainPart,
    ChurnPart,
    CommitPart,
    Document,
    FindingPart,
    ForecastPart,
    ReceiverPart,
    RelationPart,
    ServerPart,
    SizesPart,
    SpanPart,
    TimelinePart,
)

NOW_S = datetime(2026, 11, 29, 9, 30, tzinfo=UTC).timestamp()
DAY_S = 86400.0
GB = 1 << 30
_PER_CHAIN = 24
_BUCKETS = 96
TABLES = [
    "public.orders", "public.order_line", "public.payment", "public.event_log", "public.session", "public.stock",
    "public.orders_created_at_idx", "public.customer", "audit.change", "public.event_log_pkey", "public.shipment",
    "public.invoice", "public.cart", "pg_catalog.pg_statistic", "pg_catalog.pg_class", "public.message",
]  # fmt: skip


def made_document(backup_count: int = 96, relation_count: int = 400, *, days: float = 4.0) -> Document:
    """Return one with as many backups, evenly over some days; the switch of a timeline, a hole, pins and failures."""
    random = Random(7)
    start_s = NOW_S - days * DAY_S
    step_s = (NOW_S - start_s) / (backup_count + 1)

    def lsn(time_s: float) -> str:
        return str(Lsn(int(0x16_B000_0000 + (time_s - start_s) * 220_000)))

    def span(first_s: float, last_s: float) -> SpanPart:
        return SpanPart(lsn(first_s), lsn(last_s), first_s, last_s, True)

    backups = [_backup(random, start_s, step_s, number, lsn) for number in range(backup_count)]
    hole = span(start_s + 1.55 * (NOW_S - start_s) / 3, start_s + 1.7 * (NOW_S - start_s) / 3)
    switch_s = start_s + 0.8 * (NOW_S - start_s)
    return Document(
        made_s=NOW_S,
        made_by="pgwal",
        repository="/srv/backups/main",
        system_identifier="7312345678901234567",
        major=18,
        since_s=None,
        findings=_findings(hole),
        newest_commit=CommitPart(lsn(NOW_S - 4), NOW_S - 4, 2, backups[-1].backup_id),
        chains=_chains(backups, hole, span),
        timelines=[
            TimelinePart(
                1,
                None,
                None,
                [span(start_s, hole.start_s), span(hole.end_s, switch_s)],
                [hole],
                [span(start_s, hole.start_s), span(hole.end_s, switch_s)],
                [hole],
            ),
            TimelinePart(2, 1, lsn(switch_s), [span(switch_s, NOW_S)], [], [span(switch_s, NOW_S - 600)], []),
        ],
        backups=_with_failures(backups),
        churn=_churn(random, relation_count, start_s),
        forecast=ForecastPart(
            backups[-1].backup_id,
            lsn(NOW_S),
            61_440,
            480 << 20,
            True,
            420 * GB,
            [(name, (16 - number) * (6 << 20)) for number, name in enumerate(TABLES)],
        ),
        receiver=ReceiverPart(True, 2, lsn(NOW_S - 2), lsn(NOW_S - 600), NOW_S - 1, NOW_S - 1, None, "pgwal"),
        server=ServerPart(lsn(NOW_S), 2, False, 440_000, 2.0, "pgwal", True, True, "reserved", 96 << 20, 15 * GB),
        sizes=SizesPart(sum(each.stored_bytes or 0 for each in backups), 58 * GB, 190 << 20),
    )


def _backup(random: Random, start_s: float, step_s: float, number: int, lsn: object) -> BackupPart:
    assert callable(lsn)
    started_s = start_s + number * step_s + 60
    is_full = number % _PER_CHAIN == 0
    grown = 1 + number * step_s / DAY_S / 300
    size = int(410 * GB * grown)
    day = 0.5 + 0.5 * math.sin(started_s % DAY_S / DAY_S * 2 * math.pi - 1.6)
    stored = int(size * 0.42) if is_full else int((0.4 + 6 * day + random.random()) * GB)
    took_s = (5400 if is_full else 40 + 160 * day) * (0.9 + 0.2 * random.random())
    started = datetime.fromtimestamp(started_s, UTC).strftime("%Y%m%dT%H%M%SZ")
    first = number - number % _PER_CHAIN
    return BackupPart(
        backup_id=f"{started}_{'full' if is_full else 'incr'}",
        state="usable",
        kind="full" if is_full else "incremental",
        prior_id=None if is_full else f"prior of {number - 1}",
        label="nightly" if is_full else "hourly",
        start_lsn=str(lsn(started_s)),
        timeline=1 if number < 0.8 * first else 2,
        started_s=started_s,
        finished_s=min(started_s + took_s, NOW_S - 60),
        size_bytes=size,
        stored_bytes=stored,
        is_pinned=number == 0,
    )


def _chains(backups: list[BackupPart], hole: SpanPart, span: object) -> list[ChainPart]:
    assert callable(span)
    found = []
    for first in range(0, len(backups), _PER_CHAIN):
        members = backups[first : first + _PER_CHAIN]
        start_s = _end(members[0])
        after = [each for each in members if _end(each) > hole.end_s]
        usable = [each.backup_id for each in members if _end(each) < hole.start_s or each in after]
        spans, holes = [span(start_s, NOW_S)], []
        if start_s < hole.start_s:
            spans = [span(start_s, hole.start_s)]
            if after:
                spans.append(span(_end(after[0]), NOW_S))
                holes = [span(hole.start_s, _end(after[0]))]
        pinned = [members[0].backup_id] if first == 0 else []
        found.append(ChainPart(members[0].backup_id, usable, [], pinned, spans, holes))
    return found


def _end(backup: BackupPart) -> float:
    return backup.finished_s or 0.0


def _with_failures(backups: list[BackupPart]) -> list[BackupPart]:
    middle = len(backups) // 2
    changed = list(backups)
    changed[middle] = replace(changed[middle], state="unusable", problem="WAL that it needs is missing")
    changed[1] = replace(changed[1], backup_id=f"{backups[1].backup_id[:17]}full", kind="full", is_merged=True)
    return [*changed, BackupPart("20261129T080100Z_incr", "unfinished", started_s=NOW_S - 5340)]


def _findings(hole: SpanPart) -> list[FindingPart]:
    return [
        FindingPart("critical", "backups without their WAL", "WAL that these need is missing, so they cannot be"
                    " restored: 20261127T093100Z_incr",
                    "Bring the segments back from another archive, or take a full backup; pgwal combine needs no WAL."),
        FindingPart("warning", "WAL of timeline 1", f"missing: {hole.start_lsn} to {hole.end_lsn}",
                    "If the server still has it, pgwal stream fetches it; another archive may: pgwal import takes it"
                    " over."),
        FindingPart("warning", "unfinished backups", "these were not finished: 20261129T080100Z_incr",
                    "See why in the log of their run; pgwal expire removes what is left of them."),
        FindingPart("notice", "pinned backups", "these never expire: 20261125T093100Z_full", None),
        FindingPart("ok", "receiver", "it runs", None),
        FindingPart("ok", "slot pgwal", "it is in use", None),
    ]  # fmt: skip


def _churn(random: Random, relation_count: int, start_s: float) -> ChurnPart:
    total: dict[int, int] = {}
    relations = []
    bucket_s = (NOW_S - start_s) / _BUCKETS
    for number in range(relation_count):
        weight = 90_000 / (number + 1) ** 1.15
        phase = random.random() * 2
        by_bucket: list[tuple[int, int]] = []
        for bucket in range(_BUCKETS):
            day = 0.55 + 0.45 * math.sin((start_s + bucket * bucket_s) % DAY_S / DAY_S * 2 * math.pi - 1.6 + phase)
            count = int(weight / 24 * day * (0.7 + 0.6 * random.random()))
            if count:
                by_bucket.append((bucket, count))
                total[bucket] = total.get(bucket, 0) + count
        name = TABLES[number] if number < len(TABLES) else f"public.measurement_{number:05}"
        hot = random.random()
        heat = [int(weight / 40 * math.exp(-(((column / 64) - hot) ** 2) * 18)) for column in range(64)]
        relations.append(
            RelationPart(
                1663, 16384, 16400 + number, name, "shop", sum(count for _, count in by_bucket), NOW_S,
                by_bucket if number < 100 else [], 512 if number < 24 else 0, heat if number < 24 else [],
            )
        )  # fmt: skip
    return ChurnPart(start_s, bucket_s, _BUCKETS, sorted(total.items()), relations, relation_count, 3200, 0)
