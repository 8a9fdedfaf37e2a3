"""pg_control, built; those of real servers are read in the tests that run servers."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgwal.checksum import crc32c
from pgwal.control_file import CONTROL_FILE_SIZE, MAJOR_BY_CATALOG_VERSION, ControlFile, ControlStamp
from pgwal.errors import ChecksumMismatch, FormatError, TruncatedInput, UnsupportedVersion
from pgwal.lsn import Lsn

CATALOG_VERSIONS = {major: catalog for catalog, major in MAJOR_BY_CATALOG_VERSION.items()}
MAJORS = sorted(CATALOG_VERSIONS)


def build(major: int, *, version: int | None = None, catalog: int | None = None) -> bytes:
    """Return a pg_control as a server of this major version writes it."""
    content = bytearray(CONTROL_FILE_SIZE)
    pg_control_version = version or {17: 1700, 18: 1800}.get(major, 1300)
    struct.pack_into(
        "<QIII", content, 0, 7_000_000_000_000_000_001, pg_control_version, catalog or CATALOG_VERSIONS[major], 6
    )
    struct.pack_into("<qQ", content, 24, 1_790_000_000, 0x3000080)
    struct.pack_into("<q", content, 104, 1_789_999_999)
    struct.pack_into("<QIIB", content, 40, 0x3000028, 2, 1, 1)
    struct.pack_into("<QI", content, 136, 0x3000148, 3)
    struct.pack_into("<i", content, 172, 1)
    struct.pack_into("<IIII", content, 216, 8192, 131072, 8192, 16 << 20)
    struct.pack_into("<I", content, 252, 1)
    crc_offset = 292 if pg_control_version == 1800 else 288
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
    assert control_file.checkpoint == struct.pack("<QIIB47xq16x", 0x3000028, 2, 1, 1, 1_789_999_999)
    assert (control_file.min_recovery_lsn, control_file.min_recovery_timeline_id) == (Lsn(0x3000148), 3)
    assert control_file.wal_level == 1
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
    covered = 296 if major == 18 else 292
    for bit in range(8 * covered):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((ChecksumMismatch, UnsupportedVersion)):
            ControlFile.decode(bytes(damaged))


@pytest.mark.parametrize("length", [0, 8, 291, 295])
def test_a_file_that_is_cut_off(length: int) -> None:
    with pytest.raises(TruncatedInput):
        ControlFile.decode(build(18)[:length])


@pytest.mark.parametrize(("version", "catalog"), [(1902, 202605131), (1201, 201909212), (0x14050000, 202007201)])
def test_other_versions(version: int, catalog: int) -> None:
    with pytest.raises(UnsupportedVersion, match=f"{version}, catalog version {catalog}"):
        ControlFile.decode(build(13, version=version, catalog=catalog))


@given(st.binary(max_size=400))
def test_any_bytes_give_a_format_error(content: bytes) -> None:
    with pytest.raises(FormatError):
        ControlFile.decode(content)
