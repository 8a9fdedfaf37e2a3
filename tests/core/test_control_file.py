"""pg_control, built; those of real servers are read in the tests that run servers."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgwal.checksum import crc32c
from pgwal.control_file import CONTROL_FILE_SIZE, ControlFile, ControlStamp
from pgwal.errors import ChecksumMismatch, FormatError, TruncatedInput, UnsupportedVersion
from pgwal.lsn import Lsn

# As the headers of each version have them, not as the code under test does.
CATALOG_VERSIONS = {
    13: 202007201, 14: 202107181, 15: 202209061, 16: 202307071, 17: 202406281, 18: 202506291, 19: 202610061,
}  # fmt: skip
MAJORS = sorted(CATALOG_VERSIONS)


def crc_offset_of(major: int) -> int:
    return 308 if major >= 19 else 292 if major == 18 else 288


def build(major: int, *, version: int | None = None, catalog: int | None = None) -> bytes:
    """Return a pg_control as a server of this major version writes it."""
    content = bytearray(CONTROL_FILE_SIZE)
    pg_control_version = version or {17: 1700, 18: 1800, 19: 1905}.get(major, 1300)
    # The copy of the checkpoint's record is longer, and a number stands between the sizes.
    longer, between = (8, 4) if major >= 19 else (0, 0)
    struct.pack_into(
        "<QIII", content, 0, 7_000_000_000_000_000_001, pg_control_version, catalog or CATALOG_VERSIONS[major], 6
    )
    struct.pack_into("<qQ", content, 24, 1_790_000_000, 0x3000080)
    struct.pack_into("<q", content, 104 + longer, 1_789_999_999)
    struct.pack_into("<QIIB", content, 40, 0x3000028, 2, 1, 1)
    struct.pack_into("<QI", content, 136 + longer, 0x3000148, 3)
    struct.pack_into("<i", content, 172 + longer, 1)
    struct.pack_into("<5i", content, 180 + longer, 100, 8, 10, 3, 64)
    struct.pack_into("<II", content, 216 + longer, 8192, 131072)
    struct.pack_into("<II", content, 224 + longer + between, 8192, 16 << 20)
    if major >= 19:
        # slru_pages_per_segment, and data_checksum_version_init, which says what initdb chose.
        struct.pack_into("<I", content, 232, 32)
        struct.pack_into("<I", content, 264, 77)
    struct.pack_into("<I", content, 268 if major >= 19 else 252, 1)
    crc_offset = crc_offset_of(major)
    struct.pack_into("<I", content, crc_offset, crc32c(bytes(content[:crc_offset])))
    return bytes(content)


@pytest.mark.parametrize("major", MAJORS)
def test_the_fields(major: int) -> None:
    control_file = ControlFile.decode(build(major))
    assert control_file.major == major
    assert control_file.system_identifier == 7_000_000_000_000_000_001
    assert (control_file.redo_lsn, control_file.timeline_id) == (Lsn(0x3000028), 2)
    assert (control_file.state, control_file.in_recovery) == (6, False)
    assert control_file.checkpoint_lsn == Lsn(0x3000080)
    fields = "<QIIB55xq16x" if major >= 19 else "<QIIB47xq16x"
    assert control_file.checkpoint == struct.pack(fields, 0x3000028, 2, 1, 1, 1_789_999_999)
    assert (control_file.min_recovery_lsn, control_file.min_recovery_timeline_id) == (Lsn(0x3000148), 3)
    assert control_file.wal_level == 1
    assert control_file.recovery_settings == {
        "max_connections": 100,
        "max_worker_processes": 8,
        "max_wal_senders": 10,
        "max_prepared_transactions": 3,
        "max_locks_per_transaction": 64,
    }
    assert (control_file.block_size, control_file.blocks_per_file) == (8192, 131072)
    assert (control_file.wal_page_size, control_file.segment_size) == (8192, 16 << 20)
    assert control_file.data_checksum_version == 1


@pytest.mark.parametrize("major", MAJORS)
def test_the_stamp(major: int) -> None:
    stamp = ControlStamp.decode(build(major))
    assert stamp == ControlStamp(1_790_000_000, Lsn(0x3000080), Lsn(0x3000028), 2, 1_789_999_999, Lsn(0x3000148))


@pytest.mark.parametrize("major", MAJORS)
def test_no_flipped_bit_passes(major: int) -> None:
    content = build(major)
    covered = crc_offset_of(major) + 4
    for bit in range(8 * covered):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((ChecksumMismatch, UnsupportedVersion)):
            ControlFile.decode(bytes(damaged))


@pytest.mark.parametrize("length", [0, 8, 291, 295, 311])
def test_a_file_that_is_cut_off(length: int) -> None:
    with pytest.raises(TruncatedInput):
        ControlFile.decode(build(19)[:length])


@pytest.mark.parametrize(
    ("version", "catalog"),
    [(1902, 202605131), (1905, 202611301), (1800, 202610061), (1201, 201909212), (0x14050000, 202007201)],
)
def test_other_versions(version: int, catalog: int) -> None:
    with pytest.raises(UnsupportedVersion, match=f"{version}, catalog version {catalog}"):
        ControlFile.decode(build(13, version=version, catalog=catalog))


@given(st.binary(max_size=400))
def test_any_bytes_give_a_format_error(content: bytes) -> None:
    with pytest.raises(FormatError):
        ControlFile.decode(content)
