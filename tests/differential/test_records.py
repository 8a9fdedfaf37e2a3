"""Records that the specification reads equal what pg_waldump prints; the scanner finds the same blocks.

pg_waldump does not print the info byte, but an operation in words that differs between versions: not compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import pytest
from differential.workload import INITDB_ARGS, SETTINGS, Workload
from fix_servers import ServerFactory

from pgwal.control_file import CONTROL_FILE_PATH, ControlFile
from pgwal.lsn import Lsn
from pgwal.relation import Fork
from pgwal.segment import WAL_PAGE_SIZE, WalGeometry
from pgwal.wal.decoder import NEED_DATA, WalDecoder
from pgwal.wal.record import WalRecord
from pgwal.wal.scan import SPECIAL, STOP, WalScanner
from pgwal_cli.throwaway_server import ThrowawayServer

RMGR_NAMES = (
    "XLOG", "Transaction", "Storage", "CLOG", "Database", "Tablespace", "MultiXact", "RelMap", "Standby", "Heap2",
    "Heap", "Btree", "Hash", "Gin", "Gist", "Sequence", "SPGist", "BRIN", "CommitTs", "ReplicationOrigin", "Generic",
    "LogicalMessage",
)  # fmt: skip
NEVER_WRITTEN_HERE = {"CLOG", "CommitTs"}
FORKS = {None: Fork.MAIN, "fsm": Fork.FSM, "vm": Fork.VM, "init": Fork.INIT}

LINE = re.compile(
    r"rmgr: (?P<rmgr>\w+) +len \(rec/tot\): +\d+/ *(?P<total>\d+), tx: +(?P<xid>\d+),"
    r" lsn: (?P<lsn>[0-9A-F]+/[0-9A-F]+), prev (?P<prev>[0-9A-F]+/[0-9A-F]+), desc: "
)
BLOCK = re.compile(
    r", blkref #(?P<id>\d+): rel (?P<spc>\d+)/(?P<db>\d+)/(?P<rel>\d+)(?: fork (?P<fork>\w+))? blk (?P<block>\d+)"
    r"(?P<image>(?: \(FPW\)| FPW)?)"
)


class Reference(NamedTuple):
    block_id: int
    relation_fork: tuple[int, int, int, int]
    block_no: int
    has_image: bool


class Record(NamedTuple):
    """What pg_waldump and pgwal both say of a record."""

    lsn: int
    prev_lsn: int
    rmgr: str
    xid: int
    total_length: int
    references: tuple[Reference, ...]


def insert_lsn(server: ThrowawayServer) -> Lsn:
    with server.connect() as connection:
        row = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
    assert row is not None
    return Lsn.parse(row[0])


def dumped(server: ThrowawayServer, start: Lsn, end: Lsn) -> Iterator[Record]:
    wal = server.data_directory / "pg_wal"
    output = server.run_tool("pg_waldump", "-p", str(wal), "-s", str(start), "-e", str(end)).stdout
    for line in output.splitlines():
        head = LINE.match(line)
        assert head is not None, line
        references = tuple(
            Reference(
                int(block["id"]),
                (int(block["spc"]), int(block["db"]), int(block["rel"]), FORKS[block["fork"]]),
                int(block["block"]),
                bool(block["image"]),
            )
            for block in BLOCK.finditer(line)
        )
        yield Record(
            Lsn.parse(head["lsn"]), Lsn.parse(head["prev"]), head["rmgr"], int(head["xid"]), int(head["total"]),
            references,
        )  # fmt: skip


def decoded(wal: bytes, geometry: WalGeometry, start: Lsn, end: Lsn) -> Iterator[Record]:
    decoder = WalDecoder(geometry.segment_size, start)
    decoder.feed(wal)
    while (record := decoder.next_record()) is not NEED_DATA:
        assert isinstance(record, WalRecord), str(record)
        if record.lsn >= end:
            return
        yield as_dumped(record)


def as_dumped(record: WalRecord) -> Record:
    references = tuple(
        Reference(block.block_id, (*block.locator, block.fork), block.block_no, block.has_image)
        for block in record.blocks
    )
    return Record(record.lsn, record.prev_lsn, RMGR_NAMES[record.rmid], record.xid, record.total_length, references)


def scanned(wal: bytes, geometry: WalGeometry, start: Lsn, end: Lsn) -> WalScanner:
    """Return a scanner that has taken every record and still holds their blocks."""
    scanner = WalScanner(geometry.segment_size, start)
    scanner.stop_lsn = end
    scanner.feed(wal)
    while (event := scanner.scan()) == SPECIAL:
        pass
    assert event == STOP
    return scanner


def wal_from(server: ThrowawayServer, geometry: WalGeometry, start: Lsn, end: Lsn) -> bytes:
    """Return the server's WAL from the start of the page of ``start`` to the end of the segment of ``end``."""
    names = [geometry.file_name(1, n) for n in range(geometry.segment_no(start), geometry.last_segment_no(end) + 1)]
    content = b"".join((server.data_directory / "pg_wal" / name).read_bytes() for name in names)
    offset = start % geometry.segment_size
    return content[offset - offset % WAL_PAGE_SIZE :]


@pytest.mark.postgres(15, 16, 17, 18, 19)
def test_records_equal_those_of_pg_waldump(make_server: ServerFactory, scratch: Path) -> None:
    settings = {**SETTINGS, "wal_keep_size": "1GB", "wal_level": "logical"}
    server = make_server(initdb_args=INITDB_ARGS, settings=settings)
    workload = Workload(server, scratch)
    start = insert_lsn(server)
    workload.prepare()
    workload.run()
    end = insert_lsn(server)
    server.stop()
    control_file = ControlFile.decode((server.data_directory / CONTROL_FILE_PATH).read_bytes())
    geometry = WalGeometry(control_file.segment_size)
    wal = wal_from(server, geometry, start, end)

    expected = list(dumped(server, start, end))
    found = list(decoded(wal, geometry, start, end))
    assert first_difference(found, expected) is None
    # Bloom alone writes generic records, and not every build has it.
    missing = set(RMGR_NAMES) - {record.rmgr for record in found}
    assert missing <= NEVER_WRITTEN_HERE | {"Generic"}

    scanner = scanned(wal, geometry, start, end)
    assert scanner.record_count == len(expected)
    assert scanner.block_reference_count == sum(len(record.references) for record in expected)
    blocks = {(key, block_no) for key, block_nos in scanner.take_blocks() for block_no in block_nos}
    assert blocks == {(r.relation_fork, r.block_no) for record in expected for r in record.references}


def first_difference(found: list[Record], expected: list[Record]) -> tuple[Record | None, Record | None] | None:
    """Return the first two that are not equal, for a message that can be read."""
    for pair in zip_longest(found, expected):
        if pair[0] != pair[1]:
            return pair
    return None
