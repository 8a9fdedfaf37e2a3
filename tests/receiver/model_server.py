"""A server as far as a receiver sees one, without a server: WAL of a life, and the walsender that serves it.

What the walsender does follows src/backend/replication/walsender.c, what promotion and recovery leave in pg_wal
src/backend/access/transam/xlog.c and xlogrecovery.c, PostgreSQL 15 to 18.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

from core.wal_builder import (
    PAGE_SIZE,
    RM_HEAP,
    RM_XACT,
    RM_XLOG,
    XLOG_SWITCH,
    BlockSpec,
    BuiltRecord,
    RecordSpec,
    WalBuilder,
)

from pgwal.errors import ReplicationInterrupted, ServerError, SlotUnavailable, WalRemoved
from pgwal.lsn import Lsn
from pgwal.postgres.replication_answer import EndOfTimeline, SlotPosition, SystemIdentity
from pgwal.postgres.walsender import WalSender
from pgwal.replication.messages import decode_status_update
from pgwal.segment import WalGeometry
from pgwal.timeline import TimelineHistory

GEOMETRY = WalGeometry(1 << 20)
BEGIN = GEOMETRY.segment_start(1)
SLOT = "pgwal"

CHECKPOINT_SHUTDOWN, CHECKPOINT_ONLINE, END_OF_RECOVERY, CHECKPOINT_REDO = 0x00, 0x10, 0x90, 0xE0
WAL_LEVEL_REPLICA = 1
_MAX_SILENCE = 1000
"""How often a receiver may ask for WAL that does not come."""


def commit(row: int) -> RecordSpec:
    """The end of a transaction: its time, which no other one has, stands for the row that it wrote."""
    return RecordSpec(RM_XACT, 0x00, xid=700, main_data=struct.pack("<q", row))


def row_of(spec: RecordSpec) -> int | None:
    return struct.unpack("<q", spec.main_data)[0] if spec.rmid == RM_XACT else None


def change(block_no: int, size: int, filling: int) -> RecordSpec:
    return RecordSpec(RM_HEAP, 0x00, 700, (BlockSpec(0, block_no=block_no),), bytes([filling]) * size)


def checkpoint(operation: int, major: int, time: int, redo: int, timeline_id: int) -> RecordSpec:
    level = struct.pack("<i", WAL_LEVEL_REPLICA) if major >= 17 else bytes(4)
    start = struct.pack("<QII?3x", redo, timeline_id, timeline_id, True)
    return RecordSpec(RM_XLOG, operation, main_data=start + level + struct.pack("<q", time) + bytes(56))


def end_of_recovery(major: int, time: int, timeline_id: int, before: int) -> RecordSpec:
    data = struct.pack("<qII", time, timeline_id, before)
    if major >= 17:
        data += struct.pack("<i4x", WAL_LEVEL_REPLICA)
    return RecordSpec(RM_XLOG, END_OF_RECOVERY, main_data=data)


def end_of(built: BuiltRecord) -> Lsn:
    """Return where WAL goes on behind a record."""
    if (built.spec.rmid, built.spec.info) == (RM_XLOG, XLOG_SWITCH):
        return GEOMETRY.segment_start(GEOMETRY.last_segment_no(built.end_lsn) + 1)
    return built.end_lsn


@dataclass
class Life:
    """WAL that one server wrote or replayed, from BEGIN on, and the history that it came by."""

    wal: WalBuilder
    history: TimelineHistory

    def whole_end_before(self, lsn: int) -> Lsn:
        """Return the last place up to ``lsn`` at which a record ends."""
        return max((end_of(built) for built in self.wal.records if end_of(built) <= lsn), default=BEGIN)

    def first_record_from(self, lsn: int) -> Lsn:
        return next((built.lsn for built in self.wal.records if built.lsn >= lsn), self.wal.end_lsn)

    def rows_before(self, lsn: int) -> list[int]:
        rows = (row_of(built.spec) for built in self.wal.records if built.end_lsn <= lsn)
        return [row for row in rows if row is not None]


@dataclass
class ModelServer:
    """``flush_lsn`` is up to where WAL is durable; a standby that restarted knows less of it: ``seen_lsn``.

    ``kept`` are files of timelines that it has left, with WAL from beyond where it left them; ``gone`` files that a
    promotion has renamed.
    """

    wal: WalBuilder
    flush_lsn: Lsn
    histories: dict[int, bytes] = field(default_factory=dict)
    is_standby: bool = False
    seen_lsn: Lsn | None = None
    slots: dict[str, Lsn | None] = field(default_factory=dict)
    oldest_segment_no: int = 1
    kept: dict[tuple[int, int], bytes] = field(default_factory=dict)
    gone: set[tuple[int, int]] = field(default_factory=set)

    @property
    def timeline_id(self) -> int:
        return self.wal.timeline_id

    @property
    def history(self) -> TimelineHistory:
        return TimelineHistory.decode(self.timeline_id, self.histories.get(self.timeline_id, b""))

    @property
    def visible_lsn(self) -> Lsn:
        return self.flush_lsn if self.seen_lsn is None else self.seen_lsn

    @property
    def life(self) -> Life:
        return Life(self.wal, self.history)

    def copy(self) -> ModelServer:
        """Return the server as a copy of its disk has it."""
        return replace(
            self,
            wal=self.wal.cut(self.flush_lsn),
            histories=dict(self.histories),
            slots=dict(self.slots),
            kept=dict(self.kept),
            gone=set(self.gone),
        )

    def places(self, start: int) -> list[Lsn]:
        """Return the places from ``start`` on up to which WAL may have been flushed: ends of records, and of pages."""
        found: list[Lsn] = [self.wal.end_lsn] if self.wal.end_lsn == self.wal.whole_end_lsn else []
        for built in self.wal.records:
            first = built.lsn - built.lsn % PAGE_SIZE + PAGE_SIZE
            if first < built.end_lsn:
                found += (Lsn(first), Lsn((built.end_lsn - 1) // PAGE_SIZE * PAGE_SIZE))
            found.append(end_of(built))
        return sorted({place for place in found if start <= place <= self.wal.end_lsn}) or [self.flush_lsn]

    def ends(self) -> list[Lsn]:
        """Return where records end that are durable."""
        return [end_of(built) for built in self.wal.records if end_of(built) <= self.flush_lsn] or [BEGIN]

    def turn_to(self, timeline_id: int, lsn: Lsn, reason: str, *, archives: bool) -> None:
        """Leave the timeline at ``lsn`` for a new one."""
        before, content = self.timeline_id, self.histories.get(self.timeline_id, b"")
        self.wal = self.wal.cut(lsn, timeline_id)
        # Of a record that was cut off nothing is left.
        assert self.wal.whole_end_lsn == lsn
        self.flush_lsn, self.seen_lsn, self.is_standby = lsn, None, False
        self.histories[timeline_id] = content + f"{before}\t{lsn}\t{reason}\n".encode()
        number = GEOMETRY.segment_no(lsn)
        for key in [key for key in self.kept if key[1] > number]:
            del self.kept[key]
        if archives and lsn % GEOMETRY.segment_size:
            self.kept.pop((before, number), None)
            self.gone.add((before, number))

    def file(self, timeline_id: int, number: int) -> bytes | None:
        """Return a file of pg_wal as far as it is written, None when it is not there."""
        key = timeline_id, number
        if number < self.oldest_segment_no or key in self.gone:
            return None
        if key in self.kept:
            return self.kept[key]
        begin = Lsn(0)
        for ancestor_id, end in (*self.history.switches, (self.timeline_id, self.flush_lsn)):
            if ancestor_id == timeline_id:
                is_last = ancestor_id == self.timeline_id
                if not is_last and begin >= end > 0 and begin > 0:
                    return None
                if not GEOMETRY.segment_no(begin) <= number <= GEOMETRY.last_segment_no(max(end, begin + 1)):
                    return None
                start = GEOMETRY.segment_start(number)
                return self.wal.wal_between(start, min(start + GEOMETRY.segment_size, end))
            begin = end
        return None


@dataclass
class Traffic:
    """What happens on the way, and what was reported: called with timeline, start, what was sent, and up to where."""

    random: Random
    acknowledged: Callable[[ModelServer, int, Lsn, bytes], None]
    breaks_after: int | None = None
    stops_after: int | None = None
    stop: Callable[[], None] = lambda: None


class ModelSender(WalSender):
    """The walsender of a model server."""

    def __init__(self, server: ModelServer, traffic: Traffic) -> None:
        self._server = server
        self._traffic = traffic
        self._streams = False
        self._slot: str | None = None
        self._of_timeline = 0
        self._start = self._position = Lsn(0)
        self._sent = bytearray()
        self._reported = Lsn(0)
        self._valid_until: Lsn | None = None
        self._next_timeline_id = 0
        self._silence = 0

    def close(self) -> None:
        self._streams = False

    @property
    def is_streaming(self) -> bool:
        return self._streams

    @property
    def server_version(self) -> int:
        return self._server.wal.major * 10000 + 1

    def identify_system(self) -> SystemIdentity:
        server = self._server
        return SystemIdentity(server.wal.system_identifier, server.timeline_id, server.visible_lsn)

    def show(self, name: str) -> str:
        return {"wal_segment_size": "1MB", "in_hot_standby": "on" if self._server.is_standby else "off"}[name]

    def is_named_synchronous(self) -> bool:
        return False

    def timeline_history(self, timeline_id: int) -> bytes:
        if timeline_id == 1:
            return b""
        if timeline_id not in self._server.histories:
            raise ServerError("could not open the history file")
        return self._server.histories[timeline_id]

    def create_physical_slot(self, name: str, *, reserve_wal: bool = True, if_not_exists: bool = False) -> bool:
        if name in self._server.slots:
            assert if_not_exists
            return False
        oldest = max(BEGIN, GEOMETRY.segment_start(self._server.oldest_segment_no))
        whole = self._server.life.whole_end_before(self._server.visible_lsn)
        self._server.slots[name] = max(oldest, Lsn(whole - 8)) if reserve_wal else None
        return True

    def read_replication_slot(self, name: str) -> SlotPosition | None:
        if name not in self._server.slots:
            return None
        lsn = self._server.slots[name]
        return SlotPosition(lsn, None if lsn is None else self._server.history.timeline_at(lsn))

    def start_replication(self, slot: str | None, lsn: Lsn, timeline_id: int) -> EndOfTimeline | None:
        assert not self._streams
        server = self._server
        if slot is not None and slot not in server.slots:
            raise SlotUnavailable(f'replication slot "{slot}" does not exist')
        self._valid_until, self._next_timeline_id = None, 0
        if timeline_id != server.timeline_id:
            recorded = server.history.recorded
            number = next((at for at, switch in enumerate(recorded) if switch.timeline_id == timeline_id), None)
            if number is None or lsn > recorded[number].switch_lsn:
                raise ServerError(f"{lsn} on timeline {timeline_id} is not in this server's history")
            self._valid_until = recorded[number].switch_lsn
            following = [switch.timeline_id for switch in recorded[number + 1 :]]
            self._next_timeline_id = (*following, server.timeline_id)[0]
            if lsn == self._valid_until:
                return EndOfTimeline(self._next_timeline_id, lsn)
        elif lsn > server.visible_lsn:
            raise ServerError(f"{lsn} is ahead of the WAL flush position of this server {server.visible_lsn}")
        self._slot, self._of_timeline = slot, timeline_id
        self._start = self._position = lsn
        self._sent, self._reported, self._silence = bytearray(), Lsn(0), 0
        self._streams = True
        return None

    def receive(self, timeout_s: float) -> memoryview | EndOfTimeline | None:  # noqa: ARG002
        assert self._streams
        traffic, random = self._traffic, self._traffic.random
        if traffic.stops_after is not None:
            traffic.stops_after -= 1
            if traffic.stops_after < 0:
                traffic.stop()
        if traffic.breaks_after is not None:
            traffic.breaks_after -= 1
            if traffic.breaks_after < 0:
                self._streams = False
                raise ReplicationInterrupted("replication was interrupted: as the test wanted")
        if random.random() < 0.2:
            return memoryview(struct.pack(">cQqB", b"k", self._position, 0, random.random() < 0.5))
        end = self._server.visible_lsn if self._valid_until is None else self._valid_until
        if self._position >= end:
            if self._valid_until is None:
                self._silence += 1
                assert self._silence < _MAX_SILENCE, "the receiver waits for WAL that nobody has promised"
                return None
            self._streams = False
            return EndOfTimeline(self._next_timeline_id, self._valid_until)
        if random.random() < 0.1:
            return None
        return self._wal_data(end)

    def _wal_data(self, end: Lsn) -> memoryview:
        number = GEOMETRY.segment_no(self._position)
        timeline_id = self._of_timeline
        if self._valid_until is not None and GEOMETRY.segment_no(self._valid_until) == number:
            timeline_id = self._next_timeline_id
        content = self._server.file(timeline_id, number)
        if content is None:
            self._streams = False
            name = GEOMETRY.file_name(timeline_id, number)
            raise WalRemoved(f"the server has already removed WAL segment {name}", hint="as the server says")
        last = self._position - self._position % PAGE_SIZE + PAGE_SIZE * self._traffic.random.randint(1, 16)
        last = min(last, end, GEOMETRY.segment_start(number + 1))
        start = GEOMETRY.segment_start(number)
        # What is not written is zeros, as in a file that was made for it.
        data = content[self._position - start : last - start].ljust(last - self._position, b"\0")
        message = struct.pack(">cQQq", b"w", self._position, end, 0) + data
        self._sent += data
        self._position = Lsn(last)
        return memoryview(message)

    def send(self, payload: bytes) -> None:
        assert self._streams
        flushed = Lsn(decode_status_update(payload).flushed_lsn)
        if not flushed:
            return
        assert self._reported <= flushed <= self._position, "reported backwards, or what was not sent"
        self._reported = flushed
        if self._slot is not None:
            before = self._server.slots[self._slot]
            assert before is None or before <= flushed, "the slot goes backwards"
            self._server.slots[self._slot] = flushed
        data = bytes(self._sent[: flushed - self._start])
        self._traffic.acknowledged(self._server, self._of_timeline, self._start, data)

    def finish(self) -> None:
        assert self._streams
        self._streams = False
