"""Servers of one cluster, and what befalls them: crashes, snapshots put back, clones, promotions, recoveries."""

from __future__ import annotations

from random import Random

from core.wal_builder import PAGE_SIZE, RM_HEAP, RM_XACT, RM_XLOG, XLOG_NOOP, RecordSpec, WalBuilder
from receiver.model_server import (
    BEGIN,
    CHECKPOINT_ONLINE,
    CHECKPOINT_REDO,
    CHECKPOINT_SHUTDOWN,
    GEOMETRY,
    WAL_LEVEL_REPLICA,
    Life,
    ModelServer,
    change,
    checkpoint,
    commit,
    end_of_recovery,
)

from pgwal.lsn import Lsn

_MOST_SERVERS, _MOST_SNAPSHOTS, _MOST_WAL = 4, 3, 6 << 20
_SIZES = (16, 16, 16, 100, PAGE_SIZE, 100_000, 600_000, 1_500_000)


class ModelCluster:
    """Each thing that may happen is a method: ``number`` chooses a server, ``other`` another one or a snapshot."""

    def __init__(self, major: int, random: Random) -> None:
        self.servers = [ModelServer(WalBuilder(major, start_lsn=BEGIN), BEGIN)]
        self._snapshots: list[ModelServer] = []
        self._lost: list[Life] = []
        self._times = 0
        self.write(0, 0, random, is_so=True)

    def server(self, number: int) -> ModelServer:
        return self.servers[number % len(self.servers)]

    def lives(self) -> list[Life]:
        """Return all WAL that anybody ever wrote."""
        return [*self._lost, *(server.life for server in (*self.servers, *self._snapshots))]

    # -- WAL -------------------------------------------------------------------------------------------------------

    def write(self, number: int, _other: int, random: Random, *, is_so: bool) -> None:
        """Write records, and flush all of them or up to somewhere."""
        server = self.server(number)
        if server.is_standby:
            return
        for _ in range(random.randint(1, 8)):
            self._write_one(server, random)
        server.flush_lsn = server.wal.end_lsn if is_so else random.choice(server.places(server.flush_lsn))

    def switch_segment(self, number: int, _other: int, _random: Random, *, is_so: bool) -> None:  # noqa: ARG002
        server = self.server(number)
        # Nothing is done at the start of a segment, nor was there anything since the last switch.
        is_begun = server.wal.end_lsn % GEOMETRY.segment_size and not server.wal.is_cut_off
        if not server.is_standby and is_begun and server.wal.end_lsn < BEGIN + _MOST_WAL:
            server.wal.append_switch()
            server.flush_lsn = server.wal.end_lsn

    def recycle(self, number: int, _other: int, random: Random, *, is_so: bool) -> None:  # noqa: ARG002
        """Remove old WAL that no slot holds back."""
        server = self.server(number)
        needed = [lsn for lsn in server.slots.values() if lsn is not None]
        end = GEOMETRY.segment_no(min([*needed, server.life.whole_end_before(server.visible_lsn)]))
        if end > server.oldest_segment_no:
            server.oldest_segment_no = random.randint(server.oldest_segment_no, end)

    # -- loss ------------------------------------------------------------------------------------------------------

    def crash(self, number: int, _other: int, _random: Random, *, is_so: bool) -> None:
        """Lose what is not flushed; a record of which a part is flushed is overwritten."""
        server = self.server(number)
        if server.is_standby:
            return
        self._lost.append(server.life)
        server.wal = server.wal.cut(server.flush_lsn)
        if is_so:
            server.wal.append(self._checkpoint(server, CHECKPOINT_SHUTDOWN))
            server.flush_lsn = server.wal.end_lsn

    def take_snapshot(self, number: int, _other: int, _random: Random, *, is_so: bool) -> None:  # noqa: ARG002
        self._snapshots = [*self._snapshots[1 - _MOST_SNAPSHOTS :], self.server(number).copy()]

    def roll_back(self, number: int, other: int, random: Random, *, is_so: bool) -> None:
        """Put a snapshot in a server's place; it may write records of the sizes of those that were lost."""
        if not self._snapshots:
            return
        server = self.server(number)
        snapshot = self._snapshots[other % len(self._snapshots)].copy()
        self._lost.append(server.life)
        if is_so and not snapshot.is_standby and server.timeline_id == snapshot.timeline_id:
            self._write_alike(snapshot, server, random)
        self.servers[self.servers.index(server)] = snapshot

    # -- standbys --------------------------------------------------------------------------------------------------

    def clone(self, number: int, _other: int, _random: Random, *, is_so: bool) -> None:  # noqa: ARG002
        """Set up a standby."""
        if len(self.servers) == _MOST_SERVERS:
            return
        standby = self.server(number).copy()
        standby.is_standby, standby.slots, standby.seen_lsn = True, {}, None
        standby.flush_lsn = standby.wal.whole_end_lsn
        standby.wal = standby.wal.cut(standby.flush_lsn)
        self.servers.append(standby)

    def drop(self, number: int, _other: int, _random: Random, *, is_so: bool) -> None:  # noqa: ARG002
        if len(self.servers) > 1:
            server = self.server(number)
            self._lost.append(server.life)
            self.servers.remove(server)

    def follow(self, number: int, other: int, random: Random, *, is_so: bool) -> None:
        """Have a standby receive from another server what that has more, where it is of the same history."""
        standby, source = self.server(number), self.server(other)
        if not standby.is_standby or standby is source or not _goes_on(standby, source):
            return
        places = [place for place in source.places(standby.flush_lsn) if place <= source.visible_lsn]
        # Up to somewhere before the switch it would be on an older timeline than its source.
        places = [place for place in places if source.history.timeline_at(place) == source.timeline_id]
        if not places:
            return
        end = places[-1] if is_so else random.choice(places)
        standby.wal, standby.flush_lsn, standby.seen_lsn = source.wal.cut(end), end, None
        standby.histories = dict(source.histories)

    def restart_standby(self, number: int, _other: int, random: Random, *, is_so: bool) -> None:  # noqa: ARG002
        """Have a standby forget how far it had received; it knows again when it has replayed."""
        server = self.server(number)
        if server.is_standby:
            server.seen_lsn = random.choice(server.ends()[-6:])

    def replay(self, number: int, _other: int, _random: Random, *, is_so: bool) -> None:  # noqa: ARG002
        self.server(number).seen_lsn = None

    # -- timelines -------------------------------------------------------------------------------------------------

    def promote(self, number: int, _other: int, _random: Random, *, is_so: bool) -> None:
        """Begin a new timeline behind the last whole record; with ``is_so`` the old one's last file is renamed."""
        server = self.server(number)
        self._lost.append(server.life)
        server.wal = server.wal.cut(server.flush_lsn)
        newest = max([server.timeline_id, *server.histories])
        self._turn(server, server.wal.whole_end_lsn, newest + 1, "no recovery target specified", archives=is_so)

    def recover_to_a_point(self, number: int, other: int, random: Random, *, is_so: bool) -> None:
        """Restore a server as of an earlier point, maybe before a failover, with its WAL from an archive."""
        source = self.server(number)
        server, target = source.copy(), random.choice(source.ends())
        segment = GEOMETRY.segment_no(target)
        if len(self.servers) == _MOST_SERVERS or segment < server.oldest_segment_no:
            return
        server.is_standby, server.slots, server.gone, server.kept = False, {}, set(), {}
        # Recovery takes the newest timeline's file that has the segment, and the archive has it whole.
        timelines = [*(switch.timeline_id for switch in server.history.recorded), server.timeline_id]
        files = {timeline_id: source.file(timeline_id, segment) for timeline_id in timelines}
        newest = max((timeline_id for timeline_id, content in files.items() if content is not None), default=0)
        if newest:
            server.kept[newest, segment] = files[newest] or b""
        # Others may have promoted meanwhile, as the archive tells it.
        known = max([server.timeline_id, *server.histories, other + 1])
        self._turn(server, target, known + 1, "at LSN", archives=is_so)
        self.servers.append(server)

    def _turn(self, server: ModelServer, lsn: Lsn, timeline_id: int, reason: str, *, archives: bool) -> None:
        before = server.timeline_id
        server.turn_to(timeline_id, lsn, reason, archives=archives)
        server.wal.append(end_of_recovery(server.wal.major, self._time(), timeline_id, before))
        server.flush_lsn = server.wal.end_lsn

    # -- records ---------------------------------------------------------------------------------------------------

    def _time(self) -> int:
        self._times += 1
        return self._times

    def _write_one(self, server: ModelServer, random: Random) -> None:
        wal, kind = server.wal, random.random()
        if kind < 0.4:
            wal.append(commit(self._time()))
        elif kind < 0.5:
            wal.append(RecordSpec())
        elif kind < 0.55:
            wal.append_filler(8 * random.randint(0, 6))
        elif kind < 0.6:
            wal.append(self._checkpoint(server, CHECKPOINT_ONLINE))
        elif kind < 0.65 and wal.major >= 17:
            wal.append(RecordSpec(RM_XLOG, CHECKPOINT_REDO, main_data=WAL_LEVEL_REPLICA.to_bytes(4, "little")))
        else:
            size = random.choice(_SIZES) if wal.end_lsn < BEGIN + _MOST_WAL else _SIZES[0]
            wal.append(change(random.randint(0, 5), size, random.randint(0, 2)))

    def _write_alike(self, server: ModelServer, lost: ModelServer, random: Random) -> None:
        """Write records of the sizes of those that another server has from here on, some of them the same."""
        wanted = [built.spec for built in lost.wal.records if built.lsn >= server.wal.end_lsn]
        is_same = random.random() < 0.3
        for spec in wanted[: random.randint(1, 20)]:
            if spec.rmid == RM_XACT:
                server.wal.append(commit(self._time()))
            elif spec.rmid == RM_HEAP and not is_same:
                server.wal.append(change(random.randint(0, 5), len(spec.main_data), random.randint(0, 2)))
            elif spec.rmid == RM_HEAP or (spec.rmid, spec.info) == (RM_XLOG, XLOG_NOOP):
                server.wal.append(spec)
            else:
                break
        server.flush_lsn = server.wal.end_lsn

    def _checkpoint(self, server: ModelServer, operation: int) -> RecordSpec:
        redo = server.life.whole_end_before(server.wal.end_lsn)
        return checkpoint(operation, server.wal.major, self._time(), redo, server.timeline_id)


def _goes_on(standby: ModelServer, source: ModelServer) -> bool:
    """Tell whether the source has all that the standby has."""
    end = standby.flush_lsn
    if end > source.visible_lsn or source.wal.wal_between(BEGIN, end) != standby.wal.wal_between(BEGIN, end):
        return False
    part = source.history.part_up_to(standby.timeline_id)
    return part is not None and part.recorded == standby.history.recorded
