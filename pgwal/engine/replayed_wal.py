"""What recovery meets in the WAL that is there: tablespaces and init forks created, settings raised, where it ends."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pgwal.backup.stored_path import decode_path
from pgwal.control_file import RECOVERY_SETTINGS
from pgwal.engine.created_init_forks import CreatedInitForks
from pgwal.errors import FormatError
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.repository import Repository
from pgwal.timeline import TimelineHistory
from pgwal.wal.page_magic import WalFormat, wal_format_of_major
from pgwal.wal.scan import END_OF_WAL, NEED_DATA, SPECIAL, STOP, WalScanner

_RM_XLOG, _RM_XACT, _RM_DBASE, _RM_TBLSPC = 0, 1, 4, 5
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_PARAMETER_CHANGE = 0x60
_TABLESPACE_CREATE = 0x00
_OPERATION = 0xF0

# The rest of a list as long as this tells nobody anything.
_MOST_TABLESPACES = 1000

# In the order of xl_parameter_change, which is that of pg_control.
_PARAMETERS_OF_RECORD = struct.Struct("<5i")


# Database and tablespace, and those that are copied (layout.DbaseCreateFileCopy).
_DATABASE_COPY = struct.Struct("<4I")


@dataclass(frozen=True, slots=True)
class CreatedTablespace:
    """A record of CREATE TABLESPACE: replayed, it makes ``path`` the tablespace's place again, whatever that is there.

    ``path`` is as decode_path of pgwal.backup.stored_path makes text of it.
    """

    oid: int
    path: str
    lsn: Lsn

    def __str__(self) -> str:
        return f"tablespace {self.oid} at {self.path} (LSN {self.lsn})"


@dataclass(slots=True)
class ReplayedWal:
    """What was found.  ``last_record_lsn`` is where the last whole record starts, and ``end_lsn`` where it ends; 0 when
    there is none."""

    tablespaces: list[CreatedTablespace] = field(default_factory=list)
    parameters: list[tuple[Lsn, dict[str, int]]] = field(default_factory=list)
    """Those of each record that raises one of them over all before it."""
    last_record_lsn: Lsn = field(default=Lsn(0))
    end_lsn: Lsn = field(default=Lsn(0))
    init_forks: CreatedInitForks = field(default_factory=CreatedInitForks)
    copied_databases: set[int] = field(default_factory=set)
    """Those whose files are copied, by CREATE DATABASE and ALTER DATABASE SET TABLESPACE."""

    def parameters_before(self, end: Lsn) -> dict[str, int]:
        """Return the highest values that records before ``end`` announce."""
        found: dict[str, int] = {}
        for lsn, values in self.parameters:
            if lsn < end:
                _raise_to(found, values)
        return found


def read_replayed_wal(repository: Repository, history: TimelineHistory, start: Lsn, end: Lsn) -> ReplayedWal:
    """Read the WAL of [start, end) along a history, as far as it is there and its records link to each other.

    Tablespaces within the data directory are left out: their records have no path.
    """
    found = ReplayedWal()
    for part in history.ranges_between(start, end):
        if not _read_part(repository, history, part, found):
            break
    return found


def latest_transaction_end(repository: Repository, part: LsnRange) -> datetime | None:
    """Return the latest time at which a transaction ended by a record in a part of one timeline's WAL, None without."""
    latest = max((microseconds for _, microseconds in _transaction_ends(repository, part)), default=None)
    return None if latest is None else _time(latest)


def transaction_ends(repository: Repository, part: LsnRange) -> Iterator[tuple[Lsn, datetime]]:
    """Yield where each record starts that ends a transaction, in a part of one timeline's WAL, and the time it has."""
    for lsn, microseconds in _transaction_ends(repository, part):
        yield lsn, _time(microseconds)


def _transaction_ends(repository: Repository, part: LsnRange) -> Iterator[tuple[Lsn, int]]:
    scanner = _scanner(repository, part, all_transaction_ends=True)
    with suppress(FormatError):
        for data in repository.wal.read(part.timeline_id, Lsn(scanner.feed_lsn)):
            scanner.feed(data)
            while (event := scanner.scan()) == SPECIAL:
                if scanner.special_rmid == _RM_XACT:
                    yield Lsn(scanner.special_lsn), int(struct.unpack_from("<q", scanner.special_main)[0])
                scanner.take_blocks()
            scanner.take_blocks()
            if event != NEED_DATA:
                break


def _time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _read_part(repository: Repository, history: TimelineHistory, part: LsnRange, found: ReplayedWal) -> bool:
    """Note what a part of one timeline's WAL holds; tell whether all of it is there."""
    scanner = _scanner(repository, part, tablespaces=True)
    wal_format = wal_format_of_major(repository.identity.major)
    try:
        for data in _wal(repository, history, part, Lsn(scanner.feed_lsn)):
            scanner.feed(data)
            while (event := scanner.scan()) == SPECIAL:
                record = scanner.special_rmid, scanner.special_info, scanner.special_main
                _note(found, Lsn(scanner.special_lsn), *record)
                _note_copy(found, wal_format, *record)
                found.init_forks.take(wal_format, scanner.special_lsn, *record)
                scanner.take_blocks()
            scanner.take_blocks()
            if event in (STOP, END_OF_WAL):
                break
    except FormatError:
        # Recovery ends before what it cannot read, too.
        event = END_OF_WAL
    else:
        event = STOP if scanner.position >= part.end else END_OF_WAL
    if scanner.record_count:
        found.last_record_lsn, found.end_lsn = Lsn(scanner.last_record_lsn), Lsn(scanner.position)
    return event == STOP


def _scanner(
    repository: Repository, part: LsnRange, *, tablespaces: bool = False, all_transaction_ends: bool = False
) -> WalScanner:
    identity = repository.identity
    scanner = WalScanner(
        identity.segment_size,
        part.start,
        magic=wal_format_of_major(identity.major).magic,
        system_identifier=identity.system_identifier,
        derive_map_blocks=False,
        tablespaces=tablespaces,
        all_transaction_ends=all_transaction_ends,
    )
    scanner.stop_lsn = part.end
    return scanner


def _wal(repository: Repository, history: TimelineHistory, part: LsnRange, start: Lsn) -> Iterator[bytes | memoryview]:
    """Yield WAL from ``start`` on, of the files that a server would ask for."""
    geometry = repository.geometry
    there = {(segment.timeline_id, segment.segment_no) for segment in repository.wal.segments()}
    position = start
    while position < part.end:
        number = geometry.segment_no(position)
        choice = _timelines(history, part, geometry.segment_start(number + 1))
        timeline_id = next((timeline_id for timeline_id in choice if (timeline_id, number) in there), None)
        if timeline_id is None:
            return
        wanted = geometry.segment_start(number + 1) - position
        for data in repository.wal.read(timeline_id, position):
            taken = data[:wanted]
            wanted -= len(taken)
            position = Lsn(position + len(taken))
            yield taken
            if not wanted:
                break
        if wanted:
            return


def _timelines(history: TimelineHistory, part: LsnRange, segment_end: Lsn) -> Iterator[int]:
    """Yield the timelines whose copy of a segment a server wants, the first choice first (XLogFileReadAnyTLI)."""
    followers = [*(switch.timeline_id for switch in history.switches), history.timeline_id][1:]
    for switch, follower in reversed(list(zip(history.switches, followers, strict=True))):
        if follower > part.timeline_id and switch.switch_lsn < segment_end:
            yield follower
    yield part.timeline_id


def _note(found: ReplayedWal, lsn: Lsn, rmid: int, info: int, main_data: bytes) -> None:
    operation = info & _OPERATION
    if rmid == _RM_TBLSPC and operation == _TABLESPACE_CREATE:
        path = main_data[4:].partition(b"\0")[0]
        if path and len(found.tablespaces) < _MOST_TABLESPACES:
            (oid,) = struct.unpack_from("<I", main_data)
            found.tablespaces.append(CreatedTablespace(oid, decode_path(path), lsn))
    elif rmid == _RM_XLOG and operation == _PARAMETER_CHANGE:
        values = dict(zip(RECOVERY_SETTINGS, _PARAMETERS_OF_RECORD.unpack_from(main_data), strict=True))
        before = found.parameters_before(lsn)
        if any(value > before.get(name, -1) for name, value in values.items()):
            found.parameters.append((lsn, values))


def _note_copy(found: ReplayedWal, wal_format: WalFormat, rmid: int, info: int, main_data: bytes) -> None:
    if rmid == _RM_DBASE and info & _OPERATION == wal_format.dbase_create_file_copy:
        found.copied_databases.add(_DATABASE_COPY.unpack_from(main_data)[2])


def _raise_to(found: dict[str, int], values: dict[str, int]) -> None:
    for name, value in values.items():
        found[name] = max(value, found.get(name, value))
