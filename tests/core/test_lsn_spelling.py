"""19 pads the low half of an LSN to eight digits: both spellings are read, and backups of each version hold its own."""

from __future__ import annotations

import pytest

from pgwal.backup.label import BackupLabel, PriorStart
from pgwal.backup.manifest import ManifestWriter
from pgwal.backup.manifest_reader import read_manifest
from pgwal.backup.recovery import RecoveryTarget
from pgwal.lsn import Lsn, LsnRange
from pgwal.timeline import TimelineHistory

SHORT, PADDED = "0/6000028", "0/06000028"
START = Lsn(0x6000028)
LABEL = """\
START WAL LOCATION: {} (file 000000010000000000000006)
CHECKPOINT LOCATION: {}
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-11-29 12:49:32 UTC
LABEL: one
START TIMELINE: 1
"""

either = pytest.mark.parametrize("text", [SHORT, PADDED])


@either
def test_a_label_is_read(text: str) -> None:
    label = BackupLabel.decode(LABEL.format(text, text).encode())
    assert (label.start_lsn, label.checkpoint_lsn) == (START, START)
    incremental = f"INCREMENTAL FROM LSN: {text}\nINCREMENTAL FROM TLI: 1\n"
    label = BackupLabel.decode((LABEL.format(text, text) + incremental).encode())
    assert label.incremental_from == PriorStart(START, 1)


@pytest.mark.parametrize(("major", "text"), [(17, SHORT), (18, SHORT), (19, PADDED)])
def test_a_label_is_written_as_the_server_does(major: int, text: str) -> None:
    label = BackupLabel.decode(LABEL.format(text, text).encode())
    added = label.with_incremental_from(START, 1, major).content.decode()
    assert added == LABEL.format(text, text) + f"INCREMENTAL FROM LSN: {text}\nINCREMENTAL FROM TLI: 1\n"


@pytest.mark.parametrize(("major", "text"), [(13, SHORT), (18, SHORT), (19, PADDED)])
def test_a_manifest_is_written_as_the_server_does_and_read(major: int, text: str) -> None:
    writer, wal_range = ManifestWriter(major, 7), LsnRange(1, START, Lsn(START + 0x1_0000_0000))
    content = writer.header() + writer.finish([wal_range])
    assert f'"Start-LSN": "{text}", "End-LSN": "1{text[1:]}"'.encode() in content
    assert read_manifest(content).wal_ranges == (wal_range,)


@either
def test_a_history_file_is_read(text: str) -> None:
    history = TimelineHistory.decode(2, f"1\t{text}\tno recovery target specified\n".encode())
    assert [switch.switch_lsn for switch in history.switches] == [START]


@either
def test_positions_that_people_give_are_read(text: str) -> None:
    assert Lsn.parse(text) == START
    assert RecoveryTarget(lsn=Lsn.parse(text)).lsn == START
