"""A receiver's metrics for Prometheus, over HTTP, and the page of a report beside them."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, MetricsHandler, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pgwal.engine.newest_backup import NewestBackupWatch
from pgwal.engine.receiver_metrics import LatencyHistogram, ReceiverMetrics
from pgwal.engine.server_watch import ServerWatch
from pgwal.engine.slot_guard import Retention, RetentionLimit
from pgwal.engine.status import ServerStatus
from pgwal.errors import FormatError, PgwalError
from pgwal.postgres.slots import SlotFacts
from pgwal_cli.bounded_http_server import BoundedHttpServer
from pgwal_cli.report_endpoint import LiveReport, with_report

# Below pgwal's own, whose messages go to stderr.
logger = logging.getLogger("pgwal.metrics")


def parse_address(text: str) -> tuple[str, int]:
    """Read HOST:PORT, where the host may be an IPv6 address in brackets; raises FormatError."""
    host, colon, port = text.rpartition(":")
    if not (colon and host and re.fullmatch("[0-9]{1,9}", port) and int(port) < 65536):
        raise FormatError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:9187")
    return host.removeprefix("[").removesuffix("]"), int(port)


@contextmanager
def serving_metrics(
    address: tuple[str, int],
    metrics: Callable[[], ReceiverMetrics],
    watch: ServerWatch,
    limit: RetentionLimit | None,
    newest_backup: NewestBackupWatch,
    report: LiveReport,
) -> Iterator[None]:
    """Serve a receiver's metrics while the context lasts; raises PgwalError when the address cannot be used.

    ``metrics`` returns them; ``watch`` knows how the server stands, ``limit`` is what its slot may retain.
    ``newest_backup`` knows when that began.  At a path of its own, the ``report`` is served.
    """
    registry = CollectorRegistry()
    registry.register(_ReceiverCollector(metrics, watch, limit, newest_backup))
    ProcessCollector(registry=registry)
    host, port = address
    try:
        server = BoundedHttpServer(address, with_report(MetricsHandler.factory(registry), report))
    except OSError as error:
        raise PgwalError(f"cannot serve metrics at {host}:{port}: {error.strerror or error}") from error
    logger.info("serving metrics at %s:%d", host, server.server_port)
    thread = threading.Thread(target=server.serve_forever, name="pgwal-metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _ReceiverCollector(Collector):
    def __init__(
        self,
        metrics: Callable[[], ReceiverMetrics],
        watch: ServerWatch,
        limit: RetentionLimit | None,
        newest_backup: NewestBackupWatch,
    ) -> None:
        self._metrics = metrics
        self._watch = watch
        self._limit = limit
        self._newest_backup = newest_backup

    def collect(self) -> Iterator[Metric]:
        metrics = self._metrics()
        yield from _positions(metrics)
        yield from _work(metrics)
        yield from _server(self._watch.status, self._limit)
        began_at = self._newest_backup.began_at
        if began_at is not None:
            text = "Unix time at which the newest backup began; 0 where there is none."
            yield GaugeMetricFamily("pgwal_newest_backup_timestamp_seconds", text, began_at)


def _positions(metrics: ReceiverMetrics) -> Iterator[Metric]:
    yield _gauge("streaming", "Whether the receiver is connected and streams.", int(metrics.streaming))
    yield _gauge("timeline", "Timeline that is received.", metrics.timeline_id)
    positions = GaugeMetricFamily("pgwal_receiver_lsn_bytes", "Positions in the WAL.", labels=["position"])
    for name, lsn in (
        ("written", metrics.written_lsn),
        ("flushed", metrics.flushed_lsn),
        ("summarised", metrics.summarised_lsn),
        ("server", metrics.server_lsn),
    ):
        positions.add_metric([name], lsn)
    yield positions
    size_bytes = max(0, metrics.server_lsn - metrics.flushed_lsn)
    yield _gauge("lag_bytes", "WAL that the server has told of and that is not durable here.", size_bytes)
    if metrics.level_at is not None:
        is_level = metrics.streaming and not size_bytes
        seconds = 0.0 if is_level else max(0.0, time.time() - metrics.level_at)
        yield _gauge("lag_seconds", "Time since the receiver was level with the server; 0 while it is.", seconds)


def _work(metrics: ReceiverMetrics) -> Iterator[Metric]:
    yield _counter("received_bytes", "WAL received.", metrics.bytes_received)
    yield _counter("segments_completed", "Segments received whole.", metrics.segments_completed)
    yield _counter("segments_compressed", "Segments compressed.", metrics.segments_compressed)
    yield _gauge("segments_uncompressed", "Segments that wait for compression.", metrics.segments_uncompressed)
    if metrics.spooled_bytes is not None:
        yield _gauge("spooled_bytes", "WAL on this machine that is not stored yet.", metrics.spooled_bytes)
        yield _gauge("segments_waiting", "Whole segments that wait to be stored.", metrics.segments_waiting)
        yield _counter("segments_uploaded", "Segments stored.", metrics.segments_uploaded)
        yield _gauge("store_away", "Whether the store did not answer last.", int(metrics.store_is_away))
        yield _gauge("spool_full", "Whether receiving pauses until the store takes more.", int(metrics.spool_is_full))
    yield _counter("summaries_written", "Summary files written.", metrics.summaries_written)
    yield _counter("reconnects", "Times the stream was taken up again.", metrics.reconnects)
    errors = CounterMetricFamily("pgwal_receiver_errors", "Errors by what they hit.", labels=["kind"])
    for kind, count in metrics.errors.items():
        errors.add_metric([kind], count)
    yield errors
    yield _histogram("sync_seconds", "Time that a sync of received WAL took.", metrics.sync)


def _server(status: ServerStatus | None, limit: RetentionLimit | None) -> Iterator[Metric]:
    yield GaugeMetricFamily("pgwal_server_up", "Whether the server answered when last asked.", int(status is not None))
    if status is None:
        return
    yield GaugeMetricFamily("pgwal_server_flush_lsn_bytes", "Where the server is.", status.flush_lsn)
    if status.slot is None:
        return
    yield from _slot(status, status.slot, limit)


def _slot(status: ServerStatus, slot: SlotFacts, limit: RetentionLimit | None) -> Iterator[Metric]:
    def gauge(name: str, text: str, value: float) -> Metric:
        metric = GaugeMetricFamily(f"pgwal_slot_{name}", text, labels=["slot"])
        metric.add_metric([slot.name], value)
        return metric

    yield gauge("active", "Whether the slot is in use.", int(slot.active))
    if status.retained_bytes is not None:
        yield gauge("retained_bytes", "WAL that the slot holds back.", status.retained_bytes)
    if slot.safe_wal_bytes is not None:
        yield gauge(
            "safe_wal_bytes", "WAL that may be written before the server gives up the slot.", slot.safe_wal_bytes
        )
    if limit is not None:
        yield gauge("max_retained_bytes", "WAL that the slot may hold back.", limit.max_bytes)
        is_near = limit.judge(status.retained_bytes) is not Retention.WITHIN
        yield gauge("retention_warning", "Whether it holds back three quarters of that, or more.", int(is_near))
    wal_status = GaugeMetricFamily("pgwal_slot_wal_status", "1 for the slot's wal_status.", labels=["slot", "status"])
    wal_status.add_metric([slot.name, slot.wal_status or "none"], 1)
    yield wal_status


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"pgwal_receiver_{name}", text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"pgwal_receiver_{name}", text, value)


def _histogram(name: str, text: str, latency: LatencyHistogram) -> Metric:
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*map(str, latency.BOUNDS_S), "+Inf"), latency.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return HistogramMetricFamily(f"pgwal_receiver_{name}", text, buckets=buckets, sum_value=latency.sum_s)
