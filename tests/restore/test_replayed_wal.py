"""What is found in WAL that a server is to replay, on WAL that is built: along its history, and no further."""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from types import ModuleType

import pytest
from core.wal_builder import RecordSpec, WalBuilder
from module_forms import both_forms
from test_record_chain import GEOMETRY, MAJORS, MB, insertion, put, repository_of

import pgwal.wal.scan
from pgwal.engine import replayed_wal
from pgwal.engine.replayed_wal import ReplayedWal, latest_transaction_end, read_replayed_wal
from pgwal.lsn import Lsn, LsnRange
from pgwal.repository.layout import WAL_DIRECTORY
from pgwal.repository.repository import Repository
from pgwal.timeline import TimelineHistory, TimelineSwitch

RM_XLOG, RM_XACT, RM_TBLSPC = 0, 1, 5
END = Lsn((1 << 64) - 1)


def creation(oid: int, path: bytes) -> RecordSpec:
    return RecordSpec(RM_TBLSPC, 0x00, 700, main_data=struct.pack("<I", oid) + path + b"\0")


def parameters(max_connections: int) -> RecordSpec:
    values = struct.pack("<6i2?2x", max_connections, 8, 10, 0, 64, 1, False, False)
    return RecordSpec(RM_XLOG, 0x60, main_data=values)


def commit(microseconds: int) -> RecordSpec:
    return RecordSpec(RM_XACT, 0x00, 700, main_data=struct.pack("<q", microseconds))


def read(repository: Repository, history: TimelineHistory, start: int) -> ReplayedWal:
    return read_replayed_wal(repository, history, Lsn(start), END)


@pytest.mark.parametrize("major", MAJORS)
@pytest.mark.parametrize("form", both_forms(pgwal.wal.scan))
def test_tablespaces_and_parameters(monkeypatch: pytest.MonkeyPatch, form: ModuleType, major: int) -> None:
    for name in ("WalScanner", "SPECIAL", "STOP", "END_OF_WAL", "NEED_DATA"):
        monkeypatch.setattr(replayed_wal, name, getattr(form, name))
    builder = WalBuilder(major=major)
    builder.append(creation(1, b"/before"))
    first = builder.append(insertion(1, 20000))
    builder.append_filler(24)
    # Over a page, with a long path, and bytes that are no UTF-8.
    long = builder.append(creation(2, b"/\xff" + b"x" * 900))
    builder.append(creation(3, b""))
    builder.append(RecordSpec(RM_TBLSPC, 0x10, 700, main_data=struct.pack("<I", 2)))
    raised = [builder.append(parameters(count)) for count in (50, 40, 60)]
    builder.append(creation(4, b"/four"))
    last = builder.append(insertion(2))
    with repository_of(major) as repository:
        put(builder, repository)
        found = read(repository, TimelineHistory(1), first.lsn)
    assert [(created.oid, created.path) for created in found.tablespaces] == [(2, "/\udcff" + "x" * 900), (4, "/four")]
    assert found.tablespaces[0].lsn == long.lsn
    assert found.last_record_lsn == last.lsn
    assert found.parameters_before(raised[0].lsn) == {}
    assert found.parameters_before(raised[2].lsn)["max_connections"] == 50
    assert found.parameters_before(END)["max_connections"] == 60


@pytest.mark.parametrize("missing", [2, 3])
def test_nothing_is_read_behind_a_gap(missing: int) -> None:
    builder = WalBuilder()
    for oid in range(1, 5):
        builder.append(creation(oid, b"/path"))
        builder.append_switch()
    with repository_of(17) as repository:
        put(builder, repository)
        repository.store.delete(f"{WAL_DIRECTORY}/{GEOMETRY.file_name(1, missing)}")
        found = read(repository, TimelineHistory(1), builder.start_lsn)
    assert [created.oid for created in found.tablespaces] == list(range(1, missing))


@pytest.mark.parametrize("has_old_copy", [True, False])
def test_a_promotion_within_a_segment(has_old_copy: bool) -> None:
    old = WalBuilder()
    old.append(creation(1, b"/one"))
    old.append_switch()
    kept = old.append(creation(2, b"/two"))
    lost = old.append(creation(3, b"/lost"))
    new = old.cut(kept.end_lsn, 2)
    assert new.next_lsn == lost.lsn
    new.append(creation(4, b"/four"))
    history = TimelineHistory(2, (TimelineSwitch(1, Lsn(kept.end_lsn)),))
    with repository_of(17) as repository:
        put(old, repository)
        put(new, repository)
        # The first segment is the old timeline's alone; of the second, a server wants the new one's copy.
        repository.store.delete(f"{WAL_DIRECTORY}/{GEOMETRY.file_name(2, 1)}")
        if not has_old_copy:
            repository.store.delete(f"{WAL_DIRECTORY}/{GEOMETRY.file_name(1, 2)}")
        found = read(repository, history, old.start_lsn)
        assert [created.oid for created in found.tablespaces] == [1, 2, 4]
        on_old = read(repository, TimelineHistory(1), old.start_lsn)
        assert [created.oid for created in on_old.tablespaces] == ([1, 2, 3] if has_old_copy else [1])


def test_the_latest_end_of_a_transaction() -> None:
    builder = WalBuilder()
    builder.append(insertion(1))
    start = builder.append(commit(5_000_000)).lsn
    builder.append(commit(9_000_001))
    builder.append(commit(7_000_000))
    end = builder.append(commit(99_000_000)).lsn
    with repository_of(17) as repository:
        put(builder, repository)
        latest = latest_transaction_end(repository, LsnRange(1, start, end))
        assert latest == datetime(2000, 1, 1, 0, 0, 9, 1, tzinfo=UTC)
        assert latest_transaction_end(repository, LsnRange(1, Lsn(builder.start_lsn), start)) is None
        assert latest_transaction_end(repository, LsnRange(1, Lsn(MB * 9), Lsn(MB * 10))) is None
