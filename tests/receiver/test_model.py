"""One history: whatever servers do, the archive means the WAL of one life, or the receiver has refused.

There is no server here: lives are written by the WAL builder, and everything behind the connection is pgwal's own.
PGWAL_MODEL_EXAMPLES makes more of it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from random import Random

import pytest
from core.wal_builder import WalBuilder
from hypothesis import HealthCheck, Phase, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from receiver.archive_meaning import (
    ArchiveMeaning,
    StoredPart,
    changed_blocks,
    decoded_commits,
    end_of_group,
    first_difference,
    has_record,
    is_of,
    stored_copies,
)
from receiver.model_cluster import ModelCluster
from receiver.model_server import (
    BEGIN,
    GEOMETRY,
    SLOT,
    Life,
    ModelSender,
    ModelServer,
    Traffic,
    change,
    commit,
)
from receiver.mortal_disk import Killed, MortalDisk

from pgwal.engine.stop import StopRequest
from pgwal.engine.stream import Receiver
from pgwal.engine.stream_options import StreamOptions
from pgwal.errors import (
    HistoryMismatch,
    OlderTimeline,
    PgwalError,
    ReplicationInterrupted,
    StandbyBehind,
    TimelineMismatch,
    WalRemoved,
)
from pgwal.lsn import Lsn
from pgwal.postgres.connection import ConnectionParameters
from pgwal.repository.compression import Compression, CompressionMethod
from pgwal.repository.layout import SET_ASIDE_DIRECTORY
from pgwal.repository.local import LocalStore
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.repository import Repository
from pgwal.repository.wal_compressor import compress_segment
from pgwal.segment import is_segment_name

ACTIONS = (
    *5 * ["write"],
    *3 * ["take_snapshot", "roll_back"],
    *2 * ["switch_segment", "crash", "clone", "follow"],
    *["promote", "recover_to_a_point", "drop", "recycle", "restart_standby", "replay", "compress"],
    *9 * ["receive"],
    *3 * ["kill_receiver"],
)
_MUCH = 4 << 20
OWN = {"receive", "kill_receiver", "compress"}
_UNCOMPRESSED = Compression(CompressionMethod.NONE, 0)

# Draws never depend on what the receiver did, which threads have a part in: choices are taken from a Random.
randoms = st.integers(0, 1 << 16).map(Random)
numbers = st.integers(0, 3)


class OneHistory(RuleBasedStateMachine):
    """Servers of one cluster, of which any may be the one that the receiver is pointed at next."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = Path(tempfile.mkdtemp(prefix="pgwal-model-"))
        self._repo = self._directory / "repo"
        self._disk = MortalDisk(self._repo)
        self._acknowledged: dict[tuple[int, int], list[tuple[int, bytes]]] = {}
        self._has_changed = False

    def teardown(self) -> None:
        try:
            self._decode_all()
        finally:
            shutil.rmtree(self._directory)
            # Much memory, which Hypothesis would keep for a while.
            self._acknowledged.clear()
            self._disk.settle()
            del self._cluster

    @initialize(major=st.sampled_from((15, 16, 17, 18)), random=randoms)
    def begin(self, major: int, random: Random) -> None:
        self._cluster = ModelCluster(major, random)

    # One rule: of several, Hypothesis leaves some out for a whole example, and few would be left that receive.
    @rule(action=st.sampled_from(ACTIONS), number=numbers, other=numbers, random=randoms, is_so=st.booleans())
    def step(self, action: str, number: int, other: int, random: Random, is_so: bool) -> None:
        """Have something happen to a server, or to the archive."""
        whose = self if action in OWN else self._cluster
        getattr(whose, action)(number, other, random, is_so=is_so)

    # -- what is done with the archive ---------------------------------------------------------------------------

    def receive(self, number: int, _other: int, random: Random, *, is_so: bool) -> None:
        """Run a receiver until it is level, or stops, or the connection breaks; ``is_so``: it accepts new history."""
        server, traffic = self._cluster.server(number), Traffic(random, self._acknowledge)
        ending = random.choice(("level", "level", "level", "break", "stop"))
        traffic.breaks_after = random.randint(0, 6) if ending == "break" else None
        traffic.stops_after = random.randint(0, 6) if ending == "stop" else None
        before = self._meaning()
        is_right = self._is_right(server, before)
        error = self._run(server, traffic, accepts=is_so)
        event(f"receive: {type(error).__name__}, right: {is_right}, accepts: {is_so}")
        if error is None:
            if ending == "level":
                self._require_same(server)
        elif ending != "break" or not isinstance(error, ReplicationInterrupted):
            self._require_reason(server, error, before, is_right=is_right, accepts=is_so)

    def kill_receiver(self, number: int, _other: int, random: Random, *, is_so: bool) -> None:
        """Kill a receiver at one of its writes and syncs, ``is_so``: and the machine with it."""
        traffic, kill_after = Traffic(random, self._acknowledge), random.randint(0, 40)
        try:
            error = self._run(self._cluster.server(number), traffic, random.random() < 0.3, kill_after)
            event(f"not killed: {type(error).__name__}")
        except Killed:
            event("killed")
            if is_so:
                self._disk.cut_power(random)

    def compress(self, _number: int, _other: int, _random: Random, *, is_so: bool) -> None:
        """Compress one segment, or all."""
        meaning = self._meaning()
        names = [s.name for s in meaning.segments if is_segment_name(s.name)] if meaning is not None else []
        for name in names if is_so else names[:1]:
            assert meaning is not None
            with self._disk.process(None):
                compress_segment(meaning.repository.store, GEOMETRY, name, Compression())
            self._has_changed = True

    # -- what must be true ---------------------------------------------------------------------------------------

    @invariant()
    def all_that_was_reported_is_there(self) -> None:
        """Byte for byte: in the archive, or where it was set aside."""
        if not self._has_changed:
            return
        copies = self._stored_copies()
        for key, reported in self._acknowledged.items():
            for passed, content in reported:
                found = [copy[passed : len(content)] for copy in copies.get(key, [])]
                assert content[passed:] in found, (
                    f"of {GEOMETRY.file_name(*key)} bytes {passed} to {len(content)} were reported, and are not there:"
                    f" differences at {[_first_difference(content[passed:], copy) for copy in found]}"
                )

    def _stored_copies(self) -> dict[tuple[int, int], list[bytes]]:
        return stored_copies(LocalStore(self._repo))

    @invariant()
    def the_archive_means_one_life(self) -> None:
        """Along each history, without a hole, it is what one server wrote; and so are the summaries."""
        if not self._has_changed:
            return
        self._has_changed = False
        meaning = self._meaning()
        if meaning is None:
            return
        lives, place = self._cluster.lives(), GEOMETRY.first_record_position
        summaries = meaning.summaries()
        for timeline_id in meaning.timelines:
            history = meaning.history(timeline_id)
            for group in meaning.groups(history):
                whose = [life for life in lives if is_of(life, history, group)]
                assert whose, _mixed(meaning, group, lives)
                begin, end = GEOMETRY.segment_start(group[0].number), end_of_group(group)
                for part in [s for s in summaries if s.timeline_id == timeline_id and begin <= s.start < end]:
                    # The start of a page and the end of its header are one place.
                    is_there = place(part.end) <= place(end)
                    assert is_there, f"a summary of {part}, but WAL ends at {end}"
                    assert meaning.repository.summaries.read(part) == changed_blocks(whose[0], part), str(part)
                    summaries.remove(part)
        # Where the archive begins within a record, its rest may have a summary: of nothing.
        summaries = [part for part in summaries if any(has_record(life, part) for life in lives)]
        assert not summaries, f"summaries of WAL that is not here: {[str(part) for part in summaries]}"

    # -- the receiver ----------------------------------------------------------------------------------------------

    def _run(
        self,
        server: ModelServer,
        traffic: Traffic,
        accepts: bool,
        kill_after: int | None = None,
    ) -> PgwalError | None:
        with_slot = traffic.random.random() < 0.5
        options = StreamOptions(
            slot=SLOT if with_slot else None,
            create_slot=with_slot,
            if_not_exists=True,
            reconnect=False,
            synchronous=traffic.random.random() < 0.5,
            once=True,
            accept_new_history=accepts,
            compression=_UNCOMPRESSED,
        )
        stop = StopRequest()
        traffic.stop = stop.set
        receiver = Receiver(
            LocalPlace(self._repo),
            ConnectionParameters(""),
            options,
            stop,
            opener=lambda *_: ModelSender(server, traffic),
        )
        self._has_changed = True
        try:
            with self._disk.process(kill_after):
                receiver.run()
        except PgwalError as error:
            return error
        finally:
            stop.close()
        assert not receiver.progress.metrics.errors["summary"]
        return None

    def _acknowledge(self, server: ModelServer, timeline_id: int, start: Lsn, data: bytes) -> None:
        """Note what was reported as flushed, as far as somebody may need it: whole records.

        Of one that begins before the archive does nobody ever needs the end.
        """
        life = server.life
        data = data[: max(0, life.whole_end_before(start + len(data)) - start)]
        first = start if self._has_whole_segment(GEOMETRY.segment_no(start) - 1) else life.first_record_from(start)
        for at in range(0, len(data), GEOMETRY.segment_size):
            content = data[at : at + GEOMETRY.segment_size]
            passed = max(0, first - start - at)
            if passed >= len(content):
                continue
            key = timeline_id, GEOMETRY.segment_no(start + at)
            before = self._acknowledged.get(key, [])
            others = [other for other in before if other[0] < passed or not content.startswith(other[1])]
            self._acknowledged[key] = [*others, (passed, content)]

    def _has_whole_segment(self, number: int) -> bool:
        names = (path.name for path in (self._repo / "wal").iterdir())
        return any(name[8:24] == GEOMETRY.file_name(0, number)[8:] and "partial" not in name for name in names)

    def _meaning(self) -> ArchiveMeaning | None:
        return ArchiveMeaning(Repository.open(self._repo)) if (self._repo / "pgwal.json").exists() else None

    def _is_right(self, server: ModelServer, meaning: ArchiveMeaning | None) -> bool:
        """Tell whether a server goes on with the archive: it has all of its history, and none newer."""
        if meaning is None:
            return True
        history = server.history
        if max(meaning.timelines, default=0) > server.timeline_id:
            return False
        for timeline_id, content in meaning.history_contents.items():
            part = history.part_up_to(timeline_id)
            if timeline_id == server.timeline_id and content != server.histories.get(timeline_id, b""):
                return False
            if part is not None and part.recorded != meaning.history(timeline_id).recorded:
                return False
        parts = meaning.along(history)
        if not parts:
            return not meaning.segments
        return all(part.end <= server.flush_lsn and first_difference(server.life, part) is None for part in parts)

    def _require_same(self, server: ModelServer) -> None:
        """Require that the archive has what the server has, up to where that was seen."""
        meaning = self._meaning()
        assert meaning is not None
        groups = list(meaning.groups(server.history))
        wanted = server.life.whole_end_before(server.visible_lsn)
        if not groups and not meaning.segments and wanted % GEOMETRY.segment_size == 0:
            # It begins with the segment that the server has not begun yet.
            return
        assert groups, "nothing is here of the history that was received"
        end = end_of_group(groups[-1])
        # A standby may lag behind what came from another server; whoever writes may not.
        limit = server.flush_lsn if server.is_standby else end
        parts = [part._replace(end=min(part.end, limit)) for part in groups[-1] if part.start < limit]
        different = [_named(part) for part in parts if first_difference(server.life, part)]
        assert not different, f"received without a word, but different: {different}"
        # Of a record that begins before the archive does, nothing counts.
        begin = GEOMETRY.segment_start(groups[-1][0].number)
        if any(built.lsn >= begin for built in server.wal.records if built.end_lsn <= wanted):
            assert end >= wanted, f"all up to {wanted} was received, but what is here ends at {end}"

    def _require_reason(
        self,
        server: ModelServer,
        error: PgwalError,
        meaning: ArchiveMeaning | None,
        *,
        is_right: bool,
        accepts: bool,
    ) -> None:
        assert isinstance(error, HistoryMismatch | OlderTimeline | TimelineMismatch | WalRemoved | StandbyBehind), error
        if isinstance(error, StandbyBehind):
            assert server.is_standby, error
            assert server.seen_lsn is not None or not is_right, error
            return
        assert error.hint, error
        if isinstance(error, WalRemoved):
            assert meaning is not None, error
            parts = meaning.along(server.history)
            needed = max((part.number + part.complete for part in parts), default=0)
            assert not is_right or server.oldest_segment_no > needed, f"{error}, but it is not"
            return
        assert not is_right, f"a right one was refused: {error}"
        assert not (accepts and isinstance(error, HistoryMismatch | OlderTimeline)), f"not accepted: {error}"

    def _decode_all(self) -> None:
        """Read rows from the archive record by record: those of one life, each one once."""
        meaning = self._meaning()
        if meaning is None:
            return
        lives = self._cluster.lives()
        for timeline_id in meaning.timelines:
            history = meaning.history(timeline_id)
            for group in meaning.groups(history):
                own = [part for part in group if part.timeline_id == timeline_id and part.end > part.start]
                if own:
                    begin, end = own[0].start, own[-1].end
                    rows = [int.from_bytes(content, "little") for content in decoded_commits(own)]
                    life = next(life for life in lives if is_of(life, history, group))
                    expected = [row for row in life.rows_before(end) if row not in life.rows_before(begin)]
                    # A commit that begins before is not read.
                    assert rows in (expected, expected[1:])


def _first_difference(one: bytes, other: bytes) -> int | None:
    return next((at for at in range(0, len(one), 8) if one[at : at + 8] != other[at : at + 8]), None)


def _named(part: StoredPart) -> str:
    return f"{GEOMETRY.file_name(part.timeline_id, part.number)} to {part.end}"


def _mixed(meaning: ArchiveMeaning, group: list[StoredPart], lives: list[Life]) -> str:
    places = [first_difference(life, part) for life in lives for part in group]
    names = [_named(part) for part in group]
    aside = [child.name for child in meaning.repository.store.children(SET_ASIDE_DIRECTORY)]
    return f"{', '.join(names)}: nobody has written that; differences at {places}; set aside {aside}"


@pytest.mark.parametrize("major", [16, 18])
def test_segments_that_are_the_same_in_two_lives(tmp_path: Path, major: int) -> None:
    """A load that is run again after a rollback writes the same, but the time of the commit before it."""
    servers = []
    for time in (1, 2):
        wal = WalBuilder(major, start_lsn=BEGIN)
        wal.append_all([commit(9), commit(time), *4 * [change(1, 700_000, 1)]])
        servers.append(ModelServer(wal, wal.end_lsn))
        assert wal.end_lsn > BEGIN + 2 * GEOMETRY.segment_size
    assert servers[0].wal.wal_between(BEGIN + 200, BEGIN + _MUCH) == servers[1].wal.wal_between(
        BEGIN + 200, BEGIN + _MUCH
    )
    # At first from the segment on that the server is at.
    end, servers[0].flush_lsn = servers[0].flush_lsn, servers[0].wal.records[1].end_lsn
    receive_from(servers[0], tmp_path)
    servers[0].flush_lsn = end
    receive_from(servers[0], tmp_path)
    with pytest.raises(HistoryMismatch) as raised:
        receive_from(servers[1], tmp_path)
    record = servers[0].wal.records[1]
    assert record.lsn < raised.value.lsn < record.end_lsn
    # Nothing is to be had from before that, so it has to do what there is.
    servers[0].oldest_segment_no = 3
    receive_from(servers[0], tmp_path)


def receive_from(server: ModelServer, repo: Path) -> None:
    stop = StopRequest()
    try:
        traffic, options = Traffic(Random(0), lambda *_: None), StreamOptions(once=True, compression=_UNCOMPRESSED)
        Receiver(
            LocalPlace(repo), ConnectionParameters(""), options, stop, opener=lambda *_: ModelSender(server, traffic)
        ).run()
    finally:
        stop.close()


_EXAMPLES = int(os.environ.get("PGWAL_MODEL_EXAMPLES", "30"))
_IS_DEEP = _EXAMPLES > 30
# A deep run stops at what it finds: to make it smaller takes longer than to look at it.
OneHistory.TestCase.settings = settings(
    max_examples=_EXAMPLES,
    stateful_step_count=40 if _IS_DEEP else 25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    phases=[Phase.reuse, Phase.generate, *([] if _IS_DEEP else [Phase.shrink])],
    print_blob=True,
)


class TestOneHistory(OneHistory.TestCase):
    """The machine as a test."""
