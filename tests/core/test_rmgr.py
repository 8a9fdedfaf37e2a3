"""Records that create, drop or truncate relation files, of every version, built by what declares them."""

from __future__ import annotations

from typing import Any

import pytest
from construct import Construct
from core.wal_builder import checkpoint_fields
from hypothesis import given
from hypothesis import strategies as st

from pgwal.errors import FormatError, UnknownRecord
from pgwal.wal import layout
from pgwal.wal.page_magic import WAL_FORMATS, WalFormat
from pgwal.wal.rmgr import Shortening, shortenings, wal_level_of

FORMATS = sorted(WAL_FORMATS.values(), key=lambda f: f.major)
LSN = 0x16_B374D848

TABLE = {"spc_oid": 1663, "db_oid": 5, "rel_number": 16384}
INDEX = {"spc_oid": 16400, "db_oid": 5, "rel_number": 4294967295}

every_version = pytest.mark.parametrize("wal_format", FORMATS, ids=lambda f: f"pg{f.major}")


def payload(wal_format: WalFormat, rmid: int, info: int, **fields: Any) -> bytes:
    declared: Construct[Any, Any] = layout.payloads(wal_format)[rmid, info & layout.INFO_RMGR_MASK]
    return declared.build(fields)


def found(wal_format: WalFormat, rmid: int, info: int, **fields: Any) -> list[tuple[int, ...]]:
    """Return what a record shortens, whichever of the low bits of its info are set."""
    data = payload(wal_format, rmid, info, **fields)
    answers = [shortenings(wal_format, LSN, rmid, info | low_bits, data) for low_bits in range(4)]
    assert all(answer == answers[0] for answer in answers)
    return [tuple(shortening) for shortening in answers[0]]


# --- storage ----------------------------------------------------------------------------------------------


@every_version
@pytest.mark.parametrize("fork", [0, 2, 3])
def test_creation_of_a_fork(wal_format: WalFormat, fork: int) -> None:
    created = found(wal_format, layout.RM_SMGR, layout.SMGR_CREATE, locator=TABLE, fork=fork)
    assert created == [(1663, 5, 16384, fork, 0)]


@every_version
def test_creation_of_a_free_space_map_counts_for_nothing(wal_format: WalFormat) -> None:
    assert found(wal_format, layout.RM_SMGR, layout.SMGR_CREATE, locator=TABLE, fork=1) == []


@every_version
@pytest.mark.parametrize("fork", [-1, 4, 1 << 30])
def test_creation_of_an_unknown_fork(wal_format: WalFormat, fork: int) -> None:
    data = layout.SmgrCreate.build({"locator": TABLE, "fork": fork})
    with pytest.raises(UnknownRecord, match="16/B374D848") as caught:
        shortenings(wal_format, LSN, layout.RM_SMGR, layout.SMGR_CREATE, data)
    assert caught.value.facts == {"lsn": LSN}


@every_version
@pytest.mark.parametrize(
    ("block_no", "flags", "expected"),
    [
        (100, 7, [(1663, 5, 16384, 0, 100), (1663, 5, 16384, 2, 1)]),
        (0, 7, [(1663, 5, 16384, 0, 0), (1663, 5, 16384, 2, 0)]),
        (32672, 7, [(1663, 5, 16384, 0, 32672), (1663, 5, 16384, 2, 1)]),
        (32673, 7, [(1663, 5, 16384, 0, 32673), (1663, 5, 16384, 2, 2)]),
        (0xFFFFFFFE, 7, [(1663, 5, 16384, 0, 0xFFFFFFFE), (1663, 5, 16384, 2, 131458)]),
        (100, 1, [(1663, 5, 16384, 0, 100)]),
        (0, 2, [(1663, 5, 16384, 2, 0)]),  # pg_truncate_visibility_map
        (100, 4, []),
        (100, 0, []),
    ],
)
def test_truncation(wal_format: WalFormat, block_no: int, flags: int, expected: list[tuple[int, ...]]) -> None:
    truncated = found(wal_format, layout.RM_SMGR, layout.SMGR_TRUNCATE, block_no=block_no, locator=TABLE, flags=flags)
    assert truncated == expected


# --- databases --------------------------------------------------------------------------------------------


@every_version
def test_creation_of_a_database_by_copying_files(wal_format: WalFormat) -> None:
    created = found(
        wal_format,
        layout.RM_DBASE,
        wal_format.dbase_create_file_copy,
        db_oid=16385,
        spc_oid=1663,
        source_db_oid=1,
        source_spc_oid=16400,
    )
    assert created == [(1663, 16385, 0, 0, 0)]


@pytest.mark.parametrize("wal_format", [f for f in FORMATS if f.major >= 15], ids=lambda f: f"pg{f.major}")
def test_creation_of_a_database_by_wal(wal_format: WalFormat) -> None:
    info = wal_format.dbase_create_wal_log
    assert info is not None
    assert found(wal_format, layout.RM_DBASE, info, db_oid=16385, spc_oid=1663) == [(1663, 16385, 0, 0, 0)]


@every_version
@pytest.mark.parametrize("tablespaces", [[], [1663], [16400, 1663, 16401]])
def test_the_end_of_a_database(wal_format: WalFormat, tablespaces: list[int]) -> None:
    dropped = found(wal_format, layout.RM_DBASE, wal_format.dbase_drop, db_oid=16385, spc_oids=tablespaces)
    assert dropped == [(spc_oid, 16385, 0, 0, 0) for spc_oid in tablespaces]


def test_the_same_code_means_a_drop_up_to_14_and_a_creation_from_15_on() -> None:
    drop, create = FORMATS[1], FORMATS[2]
    assert (drop.major, create.major) == (14, 15)
    data = layout.DbaseDrop.build({"db_oid": 16385, "spc_oids": [1663]})
    assert shortenings(drop, LSN, layout.RM_DBASE, 0x10, data) == [Shortening(1663, 16385, 0, 0, 0)]
    data = layout.DbaseCreateWalLog.build({"db_oid": 16385, "spc_oid": 1})
    assert shortenings(create, LSN, layout.RM_DBASE, 0x10, data) == [Shortening(1, 16385, 0, 0, 0)]


# --- transactions -----------------------------------------------------------------------------------------


def transaction_end(**fields: Any) -> dict[str, Any]:
    xinfo = 0
    xinfo |= layout.XINFO_HAS_DBINFO if "database" in fields else 0
    xinfo |= layout.XINFO_HAS_SUBXACTS if "subxacts" in fields else 0
    xinfo |= layout.XINFO_HAS_RELFILELOCATORS if "dropped" in fields else 0
    empty: dict[str, Any] = {"time": 0, "database": None, "subxacts": None, "dropped": None}
    return empty | fields | {"xinfo": xinfo | 0x8}


def dropped_forks(locator: dict[str, int]) -> list[tuple[int, ...]]:
    return [(*locator.values(), fork, 0) for fork in (0, 2, 3)]


@every_version
@pytest.mark.parametrize("operation", layout.XACT_ENDS, ids=hex)
@pytest.mark.parametrize("database", [{}, {"database": {"db_oid": 5, "spc_oid": 1663}}], ids=["", "dbinfo"])
@pytest.mark.parametrize("subxacts", [{}, {"subxacts": [7, 8, 9]}], ids=["", "subxacts"])
def test_the_end_of_a_transaction_drops_relations(
    wal_format: WalFormat, operation: int, database: dict[str, Any], subxacts: dict[str, Any]
) -> None:
    info = operation | layout.XACT_HAS_INFO
    ended = transaction_end(**database, **subxacts, dropped=[TABLE, INDEX])
    assert found(wal_format, layout.RM_XACT, info, **ended) == dropped_forks(TABLE) + dropped_forks(INDEX)
    assert found(wal_format, layout.RM_XACT, info, **transaction_end(**database, **subxacts)) == []


@every_version
def test_what_follows_the_dropped_relations_is_passed_over(wal_format: WalFormat) -> None:
    info = layout.XACT_COMMIT | layout.XACT_HAS_INFO
    data = payload(wal_format, layout.RM_XACT, info, **transaction_end(dropped=[TABLE])) + b"\xff" * 50
    answer = shortenings(wal_format, LSN, layout.RM_XACT, info, data)
    assert [tuple(shortening) for shortening in answer] == dropped_forks(TABLE)


@every_version
@pytest.mark.parametrize("info", [0x00, 0x20, 0x10, 0x90, 0x50, 0xD0, 0x60, 0xE0])
def test_other_transaction_records_drop_nothing(wal_format: WalFormat, info: int) -> None:
    assert shortenings(wal_format, LSN, layout.RM_XACT, info, b"") == []


@every_version
def test_other_resource_managers_shorten_nothing(wal_format: WalFormat) -> None:
    for rmid in set(range(256)) - {layout.RM_SMGR, layout.RM_DBASE, layout.RM_XACT}:
        assert all(shortenings(wal_format, LSN, rmid, info, b"") == [] for info in range(0, 256, 16))


# --- what is not understood -------------------------------------------------------------------------------


@every_version
@pytest.mark.parametrize("rmid", [layout.RM_SMGR, layout.RM_DBASE])
def test_unknown_records_of_those_who_own_files(wal_format: WalFormat, rmid: int) -> None:
    known = {info for known_rmid, info in layout.payloads(wal_format) if known_rmid == rmid}
    for info in set(range(0, 256, 16)) - known:
        with pytest.raises(UnknownRecord, match=f"rmgr {rmid}, info {info:#04x}.*PostgreSQL {wal_format.major}"):
            shortenings(wal_format, LSN, rmid, info, bytes(100))


def special_records(wal_format: WalFormat) -> list[tuple[int, int, bytes]]:
    ended = transaction_end(database={"db_oid": 5, "spc_oid": 1663}, subxacts=[7], dropped=[TABLE, INDEX])
    kinds: list[tuple[int, int, dict[str, Any]]] = [
        (layout.RM_SMGR, layout.SMGR_CREATE, {"locator": TABLE, "fork": 0}),
        (layout.RM_SMGR, layout.SMGR_TRUNCATE, {"block_no": 1, "locator": TABLE, "flags": 7}),
        (layout.RM_DBASE, wal_format.dbase_drop, {"db_oid": 5, "spc_oids": [1663, 1]}),
        *((layout.RM_XACT, operation | layout.XACT_HAS_INFO, ended) for operation in layout.XACT_ENDS),
    ]
    return [(rmid, info, payload(wal_format, rmid, info, **fields)) for rmid, info, fields in kinds]


@every_version
def test_a_record_that_is_cut_off(wal_format: WalFormat) -> None:
    for rmid, info, data in special_records(wal_format):
        for length in range(len(data)):
            with pytest.raises(FormatError, match=r"16/B374D848.*too short"):
                shortenings(wal_format, LSN, rmid, info, data[:length])


@given(st.sampled_from(FORMATS), st.sampled_from([1, 2, 4]), st.integers(0, 255), st.binary(max_size=80))
def test_any_bytes_give_shortenings_or_a_format_error(wal_format: WalFormat, rmid: int, info: int, data: bytes) -> None:
    try:
        answer = shortenings(wal_format, LSN, rmid, info, data)
    except FormatError:
        return
    assert all(0 <= shortening.fork <= 3 for shortening in answer)


def test_an_absurd_count_is_only_as_long_as_the_record() -> None:
    data = bytes(8) + (0x4).to_bytes(4, "little") + b"\xff\xff\xff\x7f" + bytes(120)
    with pytest.raises(FormatError, match="too short"):
        shortenings(FORMATS[-1], LSN, layout.RM_XACT, layout.XACT_HAS_INFO, data)


# --- wal_level --------------------------------------------------------------------------------------------

PARAMETERS = dict.fromkeys(
    ("max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_xacts", "max_locks_per_xact"), 10
) | {"wal_log_hints": True, "track_commit_timestamp": False}
RECOVERY = {"time": 0, "timeline_id": 2, "prev_timeline_id": 1}


@every_version
@pytest.mark.parametrize("level", [0, 1, 2])
def test_the_wal_level_that_is_announced(wal_format: WalFormat, level: int) -> None:
    def announced(info: int, **fields: Any) -> int | None:
        data = payload(wal_format, layout.RM_XLOG, info, **fields)
        return wal_level_of(wal_format, LSN, info, data)

    assert announced(layout.XLOG_PARAMETER_CHANGE, **PARAMETERS, wal_level=level) == level
    checkpoint = checkpoint_fields(wal_format.major) | {"redo_lsn": LSN, "wal_level": level}
    since_17 = level if wal_format.major >= 17 else None
    assert announced(layout.XLOG_CHECKPOINT_SHUTDOWN, **checkpoint) == since_17
    assert announced(layout.XLOG_END_OF_RECOVERY, **RECOVERY, wal_level=level) == since_17
    # Not even on 17 and later: the level of an online checkpoint is that of its redo point.
    assert announced(layout.XLOG_CHECKPOINT_ONLINE, **checkpoint) is None
    if wal_format.has_checkpoint_redo:
        assert announced(layout.XLOG_CHECKPOINT_REDO, wal_level=level) == level


@every_version
def test_other_records_announce_none(wal_format: WalFormat) -> None:
    others = (0x20, layout.XLOG_SWITCH, 0x70, layout.XLOG_FPW_CHANGE, 0xA0, 0xB0, layout.XLOG_OVERWRITE_CONTRECORD)
    for info in others:
        assert wal_level_of(wal_format, LSN, info, bytes(100)) is None


@every_version
def test_structures_have_the_sizes_of_the_server(wal_format: WalFormat) -> None:
    checkpoint = payload(
        wal_format, layout.RM_XLOG, layout.XLOG_CHECKPOINT_SHUTDOWN, **checkpoint_fields(wal_format.major)
    )
    assert len(checkpoint) == (96 if wal_format.major >= 19 else 88)
    assert len(payload(wal_format, layout.RM_SMGR, layout.SMGR_CREATE, locator=TABLE, fork=0)) == 16
    assert layout.ShortPageHeader.sizeof() == 24
    assert layout.LongPageHeader.sizeof() == 40
    assert layout.RecordHeader.sizeof() == 24
