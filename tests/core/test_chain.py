"""Catalogue entries, and the chains that they form."""

import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgwal.backup.backup_file import BackupFile, BackupTotals, check_file, decode_file, encode_file
from pgwal.backup.backup_id import BackupKind, format_backup_id, parse_backup_id
from pgwal.backup.chain import check_link, choose_prior, require_same_cluster, resolve_chain
from pgwal.backup.entry import BackupEntry, MergeNote
from pgwal.backup.entry_document import EntryWriter, decode_entry, decode_head, encode_entry
from pgwal.errors import (
    ChainError,
    ChecksumMismatch,
    FormatError,
    MissingPriorBackup,
    ObjectNotFound,
    TimelineMismatch,
    TruncatedInput,
    UnsupportedVersion,
    WrongCluster,
)
from pgwal.lsn import Lsn
from pgwal.timeline import TimelineHistory, TimelineSwitch

DIGEST = "00112233445566778899aabbccddeeff"
WHOLE = BackupFile("PG_VERSION", 3, 3, 0o600, 1795344930, DIGEST)
PARTIAL = BackupFile("base/5/16384", 20 * 8192, 2 * 8192, 0o640, -1, DIGEST, 20, 1)
FILES = [WHOLE, PARTIAL]


def entry(backup_id: str = "20261122T111530Z_incr", prior: str | None = None, **members: Any) -> BackupEntry:
    kind = parse_backup_id(backup_id)[1]
    if kind is BackupKind.INCREMENTAL and prior is None:
        prior = "20261122T101530Z_full"
    values: dict[str, Any] = {
        "system_identifier": 7710976684590823411,
        "major": 17,
        "start_lsn": Lsn(0x6000028),
        "start_timeline_id": 1,
        "stop_lsn": Lsn(0x6000120),
        "stop_timeline_id": 1,
        "label": 'né "at" \n night',
        "started_at": "2026-11-22T11:15:30Z",
        "finished_at": "2026-11-22T11:16:00+00:00",
        "wal_segment_size": 1 << 24,
        "data_checksums": True,
        "tablespaces": {16400: "/srv/é\udcff"},
        "totals": BackupTotals(),
    }
    return BackupEntry(backup_id=backup_id, kind=kind, prior_id=prior, **(values | members))


def with_totals(value: BackupEntry, files: list[BackupFile]) -> BackupEntry:
    totals = BackupTotals()
    for file in files:
        totals = totals.plus(file)
    return replace(value, totals=totals)


ENTRY = with_totals(entry(), FILES)
DOCUMENT = b"".join(encode_entry(ENTRY, map(encode_file, FILES)))


def decode(content: bytes) -> tuple[BackupEntry, list[BackupFile]]:
    lines = content.split(b"\n")
    whole_lines = [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    value, files = decode_entry(whole_lines)
    return value, list(files)


# -- ids


def test_ids() -> None:
    started = int(datetime(2026, 11, 22, 10, 15, 30, tzinfo=UTC).timestamp())
    assert format_backup_id(started, BackupKind.FULL) == "20261122T101530Z_full"
    assert format_backup_id(started, BackupKind.INCREMENTAL) == "20261122T101530Z_incr"
    assert parse_backup_id("20261122T101530Z_incr") == (
        datetime(2026, 11, 22, 10, 15, 30, tzinfo=UTC),
        BackupKind.INCREMENTAL,
    )


@given(st.integers(0, 1 << 36), st.sampled_from(BackupKind))
def test_parsing_undoes_formatting_an_id(started: int, kind: BackupKind) -> None:
    time, parsed = parse_backup_id(format_backup_id(started, kind))
    assert (int(time.timestamp()), parsed) == (started, kind)


@pytest.mark.parametrize(
    "text",
    ["", "latest", "20261122T101530Z", "20261322T101530Z_full", "20261122T101530Z_full/", "20261122T101530Z_x"],
)
def test_other_texts_are_no_ids(text: str) -> None:
    with pytest.raises(FormatError):
        parse_backup_id(text)


# -- the document


def test_a_document() -> None:
    assert decode(DOCUMENT) == (ENTRY, FILES)
    assert decode_head(DOCUMENT[: DOCUMENT.index(b"\n") + 1]) == ENTRY
    document = json.loads(DOCUMENT)
    assert document["pgwal-backup"] == 1
    assert document["start_lsn"] == "0/6000028"
    assert [file["path"] for file in document["files"]] == ["PG_VERSION", "base/5/16384"]
    assert DOCUMENT.count(b"\n") == 5


def test_a_document_without_files() -> None:
    content = b"".join(encode_entry(entry(), []))
    assert decode(content) == (entry(), [])
    assert json.loads(content)["files"] == []


MERGE_NOTE = MergeNote("2026-11-29T02:00:00+00:00", ("20261122T101530Z_incr", "20261115T101530Z_full"))
IS_MERGED = f', "merged": {json.dumps({"at": MERGE_NOTE.merged_at, "of": MERGE_NOTE.backup_ids})}'.encode()


def test_a_merged_backup_says_so() -> None:
    taken = entry("20261122T101530Z_full")
    merged = replace(taken, merge_note=MERGE_NOTE)
    content = b"".join(encode_entry(merged, []))
    assert decode(content) == (merged, [])
    assert json.loads(content)["merged"] == {"at": MERGE_NOTE.merged_at, "of": list(MERGE_NOTE.backup_ids)}
    # One that was taken has the document that it always had.
    assert content.replace(IS_MERGED, b"").startswith(b"".join(encode_entry(taken, [])).partition(b"\n")[0])


@pytest.mark.parametrize(
    "merged",
    [
        "null",
        "{}",
        '{"at": "2026-11-29T02:00:00Z", "of": "20261122T101530Z_incr"}',
        '{"at": "2026-11-29T02:00:00Z", "of": ["20261122T101530Z_incr", 1]}',
        '{"at": "2026-11-29T02:00:00Z", "of": ["20261122T101530Z_incr"]}',
        '{"at": "2026-11-29T02:00:00", "of": ["20261122T101530Z_incr", "20261115T101530Z_full"]}',
        '{"at": 3, "of": ["20261122T101530Z_incr", "20261115T101530Z_full"]}',
        '{"at": "2026-11-29T02:00:00Z", "of": ["20261123T101530Z_incr", "20261115T101530Z_full"]}',
        '{"at": "2026-11-29T02:00:00Z", "of": ["20261122T101530Z_incr", "other"]}',
        '{"at": "2026-11-29T02:00:00Z", "of": ["20261122T101530Z_incr", "20261115T101530Z_full"], "by": ""}',
    ],
)
def test_what_no_merge_says_is_refused(merged: str) -> None:
    head = b"".join(encode_entry(entry("20261122T101530Z_full", merge_note=MERGE_NOTE), [])).split(b"\n")[0] + b"\n"
    assert IS_MERGED in head
    with pytest.raises(FormatError):
        decode_head(head.replace(IS_MERGED, f', "merged": {merged}'.encode()))


def test_an_incremental_backup_was_not_merged() -> None:
    with pytest.raises(FormatError, match="merged"):
        entry("20261122T101530Z_incr", "20261115T101530Z_full", merge_note=MERGE_NOTE)


def test_where_a_file_is_stored() -> None:
    assert (WHOLE.is_incremental, WHOLE.stored_path) == (False, "PG_VERSION")
    assert (PARTIAL.is_incremental, PARTIAL.stored_path) == (True, "base/5/INCREMENTAL.16384")


def test_totals() -> None:
    assert ENTRY.totals == BackupTotals(2, 1, 3 + 20 * 8192, 3 + 2 * 8192)


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=5) | st.binary(
    min_size=1, max_size=4
).map(lambda name: name.replace(b"/", b"a").replace(b"\0", b"a").decode("utf-8", "surrogateescape"))
PATHS = st.lists(NAMES.filter(lambda name: name not in (".", "..")), min_size=1, max_size=3).map("/".join)
SIZES = st.integers(0, (1 << 63) - 1)
WHOLE_FILES = st.tuples(
    PATHS,
    SIZES,
    SIZES,
    st.integers(0, 0o7777),
    st.integers(-(1 << 40), 1 << 40),
    st.text("0123456789abcdef", min_size=32, max_size=32),
).map(lambda values: BackupFile(*values))
FILE_LISTS = st.lists(WHOLE_FILES, max_size=5, unique_by=lambda file: file.path).filter(
    lambda files: sum(file.size_bytes for file in files) < 1 << 63 > sum(file.stored_size_bytes for file in files)
)


@given(FILE_LISTS, st.text(st.characters(exclude_categories=[])))
def test_decode_undoes_encode(files: list[BackupFile], label: str) -> None:
    value = with_totals(entry(label=label), files)
    assert decode(b"".join(encode_entry(value, map(encode_file, files)))) == (value, files)


def test_every_truncation_is_seen() -> None:
    for length in range(len(DOCUMENT)):
        with pytest.raises(TruncatedInput):
            decode(DOCUMENT[:length])


@settings(max_examples=500)
@given(st.integers(0, len(DOCUMENT) * 8 - 1))
def test_every_flipped_bit_is_seen(bit: int) -> None:
    damaged = bytearray(DOCUMENT)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FormatError):
        decode(bytes(damaged))


@given(st.binary(max_size=40), st.integers(0, len(DOCUMENT)))
def test_any_bytes_give_only_declared_errors(content: bytes, at: int) -> None:
    with pytest.raises(FormatError):
        decode(content)
    for damaged in (DOCUMENT[:at] + content + DOCUMENT[at:], content + DOCUMENT[DOCUMENT.index(b', "files"') :]):
        with suppress(FormatError):
            assert decode(damaged) == (ENTRY, FILES)
    with suppress(FormatError):
        decode_file(content)


def test_a_changed_number_is_seen_by_the_digest() -> None:
    with pytest.raises(ChecksumMismatch):
        decode(DOCUMENT.replace(b'"mode": 384', b'"mode": 385'))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"}\n', b'"}\n\n'),
        (b"},\n", b"}\n"),
        (b"],\n", b"]\n"),
        (b"}\n],\n", b"},\n],\n"),
        (b'"xxh3-128:', b'"md5:'),
        (b'"files": [\n', b'"files": [ '),
    ],
)
def test_the_lines_are_as_written(old: bytes, new: bytes) -> None:
    assert old in DOCUMENT
    with pytest.raises(FormatError):
        decode(DOCUMENT.replace(old, new))


def test_another_format_version_says_so() -> None:
    with pytest.raises(UnsupportedVersion):
        decode(DOCUMENT.replace(b'"pgwal-backup": 1', b'"pgwal-backup": 3'))


def test_a_path_that_comes_twice_is_refused_both_ways() -> None:
    value = with_totals(ENTRY, [WHOLE, WHOLE])
    with pytest.raises(FormatError, match="twice"):
        list(encode_entry(value, [encode_file(WHOLE)] * 2))


def test_totals_must_be_those_of_the_files_both_ways() -> None:
    with pytest.raises(FormatError, match="files make"):
        list(encode_entry(entry(), map(encode_file, FILES)))
    writer = EntryWriter(entry())
    unfinished = b"".join(writer.head()) + writer.file(encode_file(WHOLE))
    with pytest.raises(TruncatedInput):
        decode(unfinished + b"\n")


@pytest.mark.parametrize(
    "members",
    [
        {"path": "/etc/passwd"},
        {"path": "base/../../x"},
        {"path": ".."},
        {"path": ""},
        {"path": "a//b"},
        {"path": "a\0b"},
        {"path": "\ud800"},
        {"size_bytes": -1},
        {"size_bytes": 1 << 63},
        {"stored_size_bytes": -1},
        {"mode": -1},
        {"mode": 0o10000},
        {"mtime_epoch_s": 1 << 70},
        {"digest": ""},
        {"digest": DIGEST.upper()},
        {"truncation_block_length": 3},
    ],
)
def test_impossible_files_are_refused_both_ways(members: dict[str, Any]) -> None:
    refuse_both_ways(WHOLE._replace(**members))


@pytest.mark.parametrize(
    "members",
    [
        {"path": "PG_VERSION"},
        {"size_bytes": 20 * 8192 + 1},
        {"size_bytes": 19 * 8192},
        {"size_bytes": 22 * 8192},
        {"stored_size_bytes": 3 * 8192},
        {"truncation_block_length": -1},
        {"truncation_block_length": 18},
        {"copied_block_count": -1},
        {"copied_block_count": 21, "stored_size_bytes": 22 * 8192},
        {"size_bytes": 131073 * 8192, "truncation_block_length": 131073},
    ],
)
def test_impossible_incremental_files_are_refused_both_ways(members: dict[str, Any]) -> None:
    refuse_both_ways(PARTIAL._replace(**members))


def test_a_file_stored_whole_has_no_count_of_blocks() -> None:
    with pytest.raises(FormatError):
        check_file(WHOLE._replace(copied_block_count=3))


def refuse_both_ways(file: BackupFile) -> None:
    with pytest.raises(FormatError):
        check_file(file)
    with pytest.raises(FormatError):
        decode_file(encode_file(file))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"mode": 384', b'"mode": true'),
        (b'"mode": 384', b'"mode": "384"'),
        (b'"mode": 384', b'"mode": 3.0'),
        (b'"mode": 384', b'"mode": null'),
        (b'"mode": 384', b'"node": 384'),
        (b'"mode": 384, ', b""),
        (b'"mode": 384', b'"mode": 384, "more": 1'),
        (b'"PG_VERSION"', b"7"),
        (b'"PG_VERSION"', b"[]"),
        (b'"mode": 384', b'"mode": ' + b"1" * 5000),
        (b'"mode": 384', b'"mode": ' + b"[" * 100000),
        (b"{", b"[{"),
        (b"}", b"}x"),
    ],
)
def test_wrong_members_of_a_file_are_refused(old: bytes, new: bytes) -> None:
    content = encode_file(WHOLE)
    assert old in content
    with pytest.raises(FormatError):
        decode_file(content.replace(old, new))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", "20261122T111530Z_full"),
        ("id", "x"),
        ("id", 1),
        ("kind", "full"),
        ("kind", "other"),
        ("prior", None),
        ("prior", 1),
        ("prior", "x"),
        ("system_identifier", "0"),
        ("system_identifier", "-1"),
        ("system_identifier", 5),
        ("system_identifier", str(1 << 64)),
        ("major", "17"),
        ("major", True),
        ("start_lsn", "0/6000121"),
        ("start_lsn", "6000028"),
        ("start_timeline", 0),
        ("start_timeline", 2),
        ("stop_timeline", 1 << 32),
        ("label", None),
        ("started", "yesterday"),
        ("finished", "2026-11-22T11:16:00"),
        ("wal_segment_size", 5),
        ("data_checksums", 1),
        ("tablespaces", []),
        ("tablespaces", {"0": "/a"}),
        ("tablespaces", {"x": "/a"}),
        ("tablespaces", {"1": "a"}),
        ("tablespaces", {"1": None}),
        ("tablespaces", {"4294967296": "/a"}),
        ("totals", {}),
        ("totals", {"file_count": 2, "incremental_file_count": 1, "size_bytes": -1, "stored_size_bytes": 1}),
        ("totals", {"file_count": 2, "incremental_file_count": 1, "size_bytes": "1", "stored_size_bytes": 1}),
        ("extra", 1),
    ],
)
def test_wrong_members_of_the_head_are_refused(name: str, value: object) -> None:
    head = json.loads(DOCUMENT)
    del head["files"], head["digest"]
    assert decode_head(json.dumps(head)[:-1].encode() + b', "files": [\n') == ENTRY
    head[name] = value
    with pytest.raises(FormatError):
        decode_head(json.dumps(head)[:-1].encode() + b', "files": [\n')
    del head[name]
    if name != "extra":
        with pytest.raises(FormatError):
            decode_head(json.dumps(head)[:-1].encode() + b', "files": [\n')


# -- chains

FULL = "20261122T101530Z_full"
FIRST, SECOND = "20261122T111530Z_incr", "20261122T121530Z_incr"


def at(backup_id: str, start: int, prior: str | None = None, timeline: int = 1, **members: Any) -> BackupEntry:
    stop = members.pop("stop", start + 10)
    stop_timeline = members.pop("stop_timeline", timeline)
    return entry(
        backup_id,
        prior,
        start_lsn=Lsn(start),
        stop_lsn=Lsn(stop),
        start_timeline_id=timeline,
        stop_timeline_id=stop_timeline,
        **members,
    )


CHAIN = [at(FULL, 100), at(FIRST, 200, FULL), at(SECOND, 300, FIRST)]
ONE_TIMELINE = TimelineHistory(1)


def ids(entries: list[BackupEntry]) -> list[str]:
    return [entry.backup_id for entry in entries]


def test_a_chain_is_newest_first() -> None:
    assert ids(resolve_chain(CHAIN, SECOND)) == [SECOND, FIRST, FULL]
    assert ids(resolve_chain(iter(CHAIN), FULL)) == [FULL]


def test_a_chain_must_be_whole() -> None:
    with pytest.raises(ObjectNotFound):
        resolve_chain(CHAIN[:2], SECOND)
    with pytest.raises(MissingPriorBackup):
        resolve_chain([CHAIN[0], CHAIN[2]], SECOND)
    with pytest.raises(MissingPriorBackup):
        resolve_chain(CHAIN[1:], SECOND)


def test_a_chain_that_goes_in_a_circle_ends() -> None:
    for entries in ([at(FIRST, 200, FIRST)], [at(FIRST, 200, SECOND), at(SECOND, 200, FIRST)]):
        with pytest.raises(ChainError, match="circle"):
            resolve_chain(entries, FIRST)


@pytest.mark.parametrize(
    "members",
    [
        {"system_identifier": 1},
        {"major": 18},
        {"wal_segment_size": 1 << 20},
        {"data_checksums": False},
        {"start_lsn": Lsn(201), "stop_lsn": Lsn(202)},
        {"start_timeline_id": 2, "stop_timeline_id": 2},
        {"stop_lsn": Lsn(211)},
        {"stop_timeline_id": 2},
    ],
)
def test_a_chain_belongs_together(members: dict[str, Any]) -> None:
    with pytest.raises(ChainError):
        resolve_chain([replace(CHAIN[0], **members), *CHAIN[1:]], SECOND)


def test_a_prior_backup_may_end_after_the_start_but_not_after_the_end() -> None:
    # A standby's next restartpoint can lie before the end of the backup that was taken last.
    prior = at(FULL, 100, stop=205)
    check_link(at(FIRST, 200, FULL, stop=205), prior)
    with pytest.raises(ChainError, match="ends before"):
        check_link(at(FIRST, 200, FULL, stop=204), prior)


def test_a_standby_may_start_two_backups_at_the_same_position() -> None:
    assert len(resolve_chain([CHAIN[0], at(FIRST, 100, FULL)], FIRST)) == 2


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        ("latest", SECOND),
        (FIRST, FIRST),
        (Lsn(300), SECOND),
        (Lsn(299), FIRST),
        ("0/12B", FIRST),
        (Lsn(100), FULL),
        ("FF/0", SECOND),
    ],
)
def test_the_prior_of_a_new_backup(since: Lsn | str, expected: str) -> None:
    for entries in (CHAIN, CHAIN[::-1]):
        assert choose_prior(entries, since, ONE_TIMELINE).backup_id == expected


def test_of_two_with_the_same_start_the_later_is_taken() -> None:
    entries = [at(FULL, 100), at(FIRST, 100, FULL)]
    assert choose_prior(entries, "latest", ONE_TIMELINE).backup_id == FIRST


@pytest.mark.parametrize(
    ("entries", "since", "error"),
    [
        ([], "latest", MissingPriorBackup),
        ([], Lsn(100), MissingPriorBackup),
        (CHAIN, Lsn(99), MissingPriorBackup),
        (CHAIN[1:], "latest", MissingPriorBackup),
        (CHAIN[1:], SECOND, MissingPriorBackup),
        (CHAIN, "20261122T131530Z_full", ObjectNotFound),
        (CHAIN, "nonsense", ObjectNotFound),
        (CHAIN, "nonsense/1", FormatError),
    ],
)
def test_why_there_is_no_prior(entries: list[BackupEntry], since: Lsn | str, error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        choose_prior(entries, since, ONE_TIMELINE)
    assert getattr(raised.value, "hint", None)


# Timeline 2 left timeline 1 at 250.
BRANCHED = TimelineHistory(2, (TimelineSwitch(1, Lsn(250)),))


def test_backups_of_an_abandoned_future_are_passed_over() -> None:
    assert choose_prior(CHAIN, "latest", BRANCHED).backup_id == FIRST
    newer = at("20261122T131530Z_full", 260, timeline=2)
    assert choose_prior([*CHAIN, newer], "latest", BRANCHED) == newer
    assert choose_prior([*CHAIN, newer], Lsn(259), BRANCHED).backup_id == FIRST


@pytest.mark.parametrize("since", [SECOND, "latest", Lsn(1000)])
def test_when_none_is_on_the_history(since: Lsn | str) -> None:
    alone = [at(FULL, 260), at(SECOND, 300, FULL)]
    with pytest.raises(TimelineMismatch) as raised:
        choose_prior(alone, since, BRANCHED)
    assert raised.value.hint == "Take a full backup."
    with pytest.raises(TimelineMismatch):
        choose_prior([at(FULL, 100, timeline=3)], "latest", BRANCHED)
    with pytest.raises(TimelineMismatch):
        choose_prior([at(FULL, 249, timeline=2)], "latest", BRANCHED)


def test_a_backup_that_ended_after_the_branch_is_none_to_build_on() -> None:
    # It started before timeline 1 was left, but may hold blocks of what timeline 1 did after that.
    with pytest.raises(TimelineMismatch, match="ended at 0/FB"):
        choose_prior([at(FULL, 240, stop=251)], "latest", BRANCHED)
    assert choose_prior([at(FULL, 240, stop=250)], "latest", BRANCHED).start_lsn == 240
    assert choose_prior([at(FULL, 240, stop=260, stop_timeline=2)], "latest", BRANCHED).start_lsn == 240


CLUSTER: dict[str, Any] = {
    "system_identifier": 7710976684590823411,
    "major": 17,
    "wal_segment_size": 1 << 24,
    "data_checksums": True,
}


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ({"system_identifier": 5}, WrongCluster),
        ({"major": 18}, ChainError),
        ({"wal_segment_size": 1 << 20}, ChainError),
        ({"data_checksums": False}, ChainError),
    ],
)
def test_only_the_same_cluster_goes_on(members: dict[str, Any], error: type[Exception]) -> None:
    require_same_cluster(ENTRY, **CLUSTER)
    with pytest.raises(error):
        require_same_cluster(ENTRY, **(CLUSTER | members))
