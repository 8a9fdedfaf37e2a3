"""backup_label and tablespace_map."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgwal.backup.label import BackupLabel, PriorStart, TablespaceMap
from pgwal.errors import FormatError, TruncatedInput
from pgwal.lsn import Lsn

FULL = b"""\
START WAL LOCATION: 0/6000028 (file 000000010000000000000006)
CHECKPOINT LOCATION: 0/6000080
BACKUP METHOD: streamed
BACKUP FROM: primary
START TIME: 2026-11-22 12:49:32 UTC
LABEL: pg_basebackup base backup
START TIMELINE: 1
"""
INCREMENTAL = FULL + b"INCREMENTAL FROM LSN: 0/4000028\nINCREMENTAL FROM TLI: 1\n"


def test_a_full_backup() -> None:
    label = BackupLabel.decode(FULL)
    assert label.encode() == FULL
    assert (label.start_lsn, label.start_segment_name) == (Lsn(0x6000028), "000000010000000000000006")
    assert (label.checkpoint_lsn, label.start_timeline_id) == (Lsn(0x6000080), 1)
    assert (label.backup_method, label.backup_from) == ("streamed", "primary")
    assert (label.start_time, label.label) == ("2026-11-22 12:49:32 UTC", "pg_basebackup base backup")
    assert label.incremental_from is None


def test_an_incremental_backup() -> None:
    assert BackupLabel.decode(INCREMENTAL).incremental_from == PriorStart(Lsn(0x4000028), 1)


def test_the_incremental_lines_come_and_go_and_the_rest_stays() -> None:
    label = BackupLabel.decode(FULL)
    assert label.with_incremental_from(Lsn(0x4000028), 1, 17).content == INCREMENTAL
    assert label.without_incremental() == label
    incremental = BackupLabel.decode(INCREMENTAL)
    assert incremental.without_incremental() == label
    assert incremental.with_incremental_from(Lsn(0x4000028), 1, 17) == incremental
    other = incremental.with_incremental_from(Lsn(0x16_B374D848), 7, 17)
    assert other.incremental_from == PriorStart(Lsn(0x16_B374D848), 7)


def test_unknown_lines_are_kept_behind_the_incremental_ones() -> None:
    # Servers of 17 and later look for them right after START TIMELINE.
    extended = b"STOP TIME: never\n" + FULL + b"SOMETHING NEW\nOTHER: 1\r\n"
    label = BackupLabel.decode(extended)
    added = label.with_incremental_from(Lsn(0x4000028), 1, 17)
    assert added.content == b"STOP TIME: never\n" + INCREMENTAL + b"SOMETHING NEW\nOTHER: 1\r\n"
    assert added.without_incremental() == label


@pytest.mark.parametrize("text", [b"", b": ", b"\xff\xfe", "größer".encode(), b"a\rb", b"LABEL: x", b" two "])
def test_any_text_can_be_a_label(text: bytes) -> None:
    content = FULL.replace(b"pg_basebackup base backup", text)
    label = BackupLabel.decode(content)
    assert label.label.encode("utf-8", "surrogateescape") == text
    assert label.with_incremental_from(Lsn(40), 1, 17).without_incremental().content == content


def test_a_label_with_lines_of_its_own_changes_nothing_or_is_refused() -> None:
    assert BackupLabel.decode(FULL.replace(b"base backup", b"\nanything\n")).label == "pg_basebackup "
    for line in (b"START TIMELINE: 2", b"LABEL: x", b"START WAL LOCATION: 0/1 (file 000000010000000000000000)"):
        with pytest.raises(FormatError):
            BackupLabel.decode(FULL.replace(b"base backup", b"\n" + line + b"\n"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"START TIMELINE: 1\n", b""),
        (b"LABEL: ", b"LABEL:"),
        (b"0/6000028 (file", b"6000028 (file"),
        (b"000000010000000000000006)", b"00000001000000000000000G)"),
        (b"000000010000000000000006)", b"000000020000000000000006)"),
        (b"CHECKPOINT LOCATION: 0/6000080", b"CHECKPOINT LOCATION: here"),
        (b"START TIMELINE: 1\n", b"START TIMELINE: 0\n"),
        (b"START TIMELINE: 1\n", b"START TIMELINE: 1x\n"),
        (b"START TIMELINE: 1\n", b"START TIMELINE: 4294967297\n"),
        (b"INCREMENTAL FROM LSN: 0/4000028\n", b""),
        (b"INCREMENTAL FROM TLI: 1\n", b""),
        (b"INCREMENTAL FROM TLI: 1\n", b"INCREMENTAL FROM TLI: -1\n"),
        (b"FROM LSN: 0/4000028", b"FROM LSN: 0/"),
    ],
)
def test_what_is_missing_or_invalid_is_refused(old: bytes, new: bytes) -> None:
    assert old in INCREMENTAL
    with pytest.raises(FormatError):
        BackupLabel.decode(INCREMENTAL.replace(old, new))


def test_every_truncation_is_seen_but_the_one_that_makes_it_full() -> None:
    for length in range(len(INCREMENTAL)):
        if length != len(FULL):
            with pytest.raises(FormatError):
                BackupLabel.decode(INCREMENTAL[:length])


def test_every_flipped_bit_gives_a_label_or_a_declared_error() -> None:
    for bit in range(len(INCREMENTAL) * 8):
        damaged = bytearray(INCREMENTAL)
        damaged[bit // 8] ^= 1 << bit % 8
        with suppress(FormatError):
            BackupLabel.decode(bytes(damaged)).with_incremental_from(Lsn(40), 1, 17)


# -- tablespace_map

PATHS = st.text(st.sampled_from("/ab \\\n\r\udcff"), max_size=12).map(lambda rest: "/" + rest)


def test_a_tablespace_map() -> None:
    content = b"16400 /srv/one\n16401 /srv/with space\n"
    locations = TablespaceMap.decode(content, 17)
    assert locations == {16400: "/srv/one", 16401: "/srv/with space"}
    assert locations.encode(13) == locations.encode(17) == content
    assert TablespaceMap.decode(b"", 17) == {}


def test_escapes_of_13_and_of_later_versions() -> None:
    locations = TablespaceMap({16400: "/a\\b\nc\rd"})
    assert locations.encode(13) == b"16400 /a\\b\\\nc\\\rd\n"
    assert locations.encode(14) == b"16400 /a\\\\b\\\nc\\\rd\n"
    for major in (13, 14):
        assert TablespaceMap.decode(locations.encode(major), major) == locations
    # What 13 means as two backslashes is one to 14.
    assert TablespaceMap.decode(b"1 /a\\\\b\n", 13) == {1: "/a\\\\b"}
    assert TablespaceMap.decode(b"1 /a\\\\b\n", 14) == {1: "/a\\b"}
    assert TablespaceMap.decode(b"1 /a\\\\\nb\n", 13) == {1: "/a\\\nb"}


def test_lines_may_end_as_on_windows() -> None:
    assert TablespaceMap.decode(b"1 /a\r\n2 /b\r\n", 17) == {1: "/a", 2: "/b"}


def test_13_cannot_express_a_backslash_at_the_end() -> None:
    with pytest.raises(FormatError):
        TablespaceMap({1: "/a\\"}).encode(13)
    assert TablespaceMap.decode(TablespaceMap({1: "/a\\"}).encode(14), 14) == {1: "/a\\"}


@given(st.dictionaries(st.integers(1, 0xFFFFFFFF), PATHS, max_size=4), st.sampled_from([13, 14, 18]))
def test_decode_undoes_encode(locations: dict[int, str], major: int) -> None:
    if major == 13:
        locations = {oid: path.rstrip("\\") for oid, path in locations.items()}
    encoded = TablespaceMap(locations).encode(major)
    assert TablespaceMap.decode(encoded, major) == locations


@pytest.mark.parametrize(
    "content",
    [
        b"16400\n",
        b"x /a\n",
        b"0 /a\n",
        b"-1 /a\n",
        b"4294967296 /a\n",
        b"1 a\n",
        b"1 \n",
        b"1 /a\n1 /b\n",
        b"1 /\0\n",
    ],
)
def test_invalid_lines_are_refused(content: bytes) -> None:
    for major in (13, 17):
        with pytest.raises(FormatError):
            TablespaceMap.decode(content, major)


@pytest.mark.parametrize("content", [b"1", b"1 /a", b"1 /a\\\n", b"1 /a\n2 /b\\"])
def test_a_line_that_does_not_end_is_seen(content: bytes) -> None:
    for major in (13, 17):
        with pytest.raises(TruncatedInput):
            TablespaceMap.decode(content, major)


@given(st.binary(max_size=40), st.sampled_from([13, 17]))
def test_any_bytes_give_only_declared_errors(content: bytes, major: int) -> None:
    for candidate in (content, b"1 /a" + content + b"\n"):
        with suppress(FormatError):
            TablespaceMap.decode(candidate, major)


@pytest.mark.parametrize("path", ["a", "", "/a\0"])
def test_invalid_paths_are_not_written(path: str) -> None:
    with pytest.raises(FormatError):
        TablespaceMap({1: path}).encode(17)
