"""Bytes that are almost what is stored or sent, and bytes that are not: each decoder reads them or says what is wrong.

Ten thousand inputs for each, of one seed; PGWAL_FUZZ_SEED gives others.  Where a checksum guards a format, it is made
to hold, so that what is behind it is reached as well.  A decoder that no row of the table reaches is found by its name.
"""

from __future__ import annotations

import ast
import os
import re
import struct
import sys
import time
import tracemalloc
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from types import FrameType

import pytest
import typer
import zstandard
from core.test_control_file import build as build_control_file
from encryption.golden_objects import KEYRING, METADATA_KEY
from fuzz.wal_decoders import WAL_DECODERS
from keeping.stored_repository import entry_of
from restore.made_repository import LABEL, Blocks, MadeRepository, block

import pgwal
import pgwal_cli
from pgwal.backup.backup_file import BackupFile, BackupTotals, decode_file, encode_file, load_json
from pgwal.backup.backup_id import parse_backup_id
from pgwal.backup.entry import MergeNote
from pgwal.backup.entry_document import (
    decode_contents,
    decode_entry,
    decode_head,
    decode_packs,
    encode_entry,
    skim_packs,
)
from pgwal.backup.incomplete_mark import IncompleteMark
from pgwal.backup.incremental_file import IncrementalHeader
from pgwal.backup.label import BackupLabel, TablespaceMap
from pgwal.backup.manifest import ManifestWriter
from pgwal.backup.manifest_reader import ManifestReader
from pgwal.backup.moved_frames import (
    FrameMoves,
    MovedFrames,
    Origin,
    decode_moved_frames,
    encode_moved_frames,
)
from pgwal.backup.pack_table import (
    FRAME_SIZE,
    Extent,
    Frame,
    Pack,
    PackedContents,
    PackReader,
    check_extents,
)
from pgwal.backup.page_check import PageCheck
from pgwal.backup.recovery import RecoveryTarget, parse_target_time, recovery_settings, with_settings
from pgwal.backup.stored_path import check_path, decode_path
from pgwal.checksum import content_digest, crc32c
from pgwal.control_file import CONTROL_FILE_SIZE, ControlStamp
from pgwal.datadir.postmaster_file import PostmasterFile
from pgwal.encryption.container import Header, SealedFor
from pgwal.encryption.keyring import StoredKeyring
from pgwal.errors import FormatError, PgwalError
from pgwal.lsn import Lsn, LsnRange
from pgwal.postgres.binary_copy import BinaryCopyReader
from pgwal.postgres.connection import ConnectionParameters
from pgwal.postgres.replication_answer import AnswerRow
from pgwal.relation import BLOCK_SIZE, parse_database_directory, parse_relation_path
from pgwal.replication.messages import decode_server_message, decode_status_update
from pgwal.repository.cloud_place import CloudPlace
from pgwal.repository.compression import Compression
from pgwal.repository.frame_codec import FrameDecoder, FrameEncoder
from pgwal.repository.layout import RepositoryIdentity
from pgwal.repository.repository import ReceiverState
from pgwal.repository.storage_format import FileFormat, StorageFormat
from pgwal.repository.wal_file_name import split_segment_name
from pgwal.segment import WalGeometry, is_segment_name, parse_segment_size
from pgwal.summary.block_map import BlockMap, RelationFork
from pgwal.summary.codec import decode_link, decode_summary, encode_summary, parse_summary_file_name
from pgwal.timeline import TimelineHistory
from pgwal_cli.cluster_environment import parse_variable
from pgwal_cli.executor import parse_executor
from pgwal_cli.grants import parse_role
from pgwal_cli.init import _parse_compression as _parse_compression_of_packs
from pgwal_cli.inspect_wal import _parse_relation
from pgwal_cli.options import (
    parse_compression,
    parse_label,
    parse_lsn,
    parse_percent,
    parse_place,
    parse_rate,
    parse_size,
    parse_timeline,
)
from pgwal_cli.rebuilding import parse_tablespaces
from pgwal_cli.stream import _parse_address

COUNT = 10_000
SEED = int(os.environ.get("PGWAL_FUZZ_SEED", "1"))
LONGEST_S = 10.0
"""One input takes microseconds; that it takes seconds shows work without a bound."""

DECODER_NAME = re.compile(r"_?(decode|parse)(_(?!args$)|$)|feed$|split_segment_name$")

INTERESTING = (
    b"", b"\0", b"\xff", b"-1", b"0", b"1e999", b"NaN", b"Infinity", b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"null",
    b"true", b'"x"', b"[]", b"{}", b"\\ud800", b"\xc3\x28", b"18446744073709551616", b"4294967296",
    b"-9223372036854775809",
    b"/", b"..", b"\n", b"\r\n", b"\t", b"\"", b"\xd9\xa3", b"0/0", b"FFFFFFFF/FFFFFFFF", struct.pack("<I", 0xFFFFFFFF),
    struct.pack("<Q", 1 << 63), struct.pack(">I", 0x7FFFFFFF),
)  # fmt: skip


def mutated(sample: bytes, random: Random) -> bytes:
    """Return a sample with some changes, or bytes of any kind."""
    if random.random() < 0.02:
        return random.randbytes(random.randint(0, 300))
    content = bytearray(sample)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        at, size = random.randint(0, len(content)), random.choice((0, 1, 1, 4, 8, 50))
        change = random.random()
        if change < 0.3 and content:
            content[at % len(content)] = random.randrange(256)
        elif change < 0.7:
            content[at : at + size] = random.choice(INTERESTING)
        elif change < 0.8:
            del content[at:]
        elif change < 0.9:
            content[at:at] = content[at : at + size]
        else:
            other = random.randint(0, len(content))
            content[at : at + size] = content[other : other + size]
    return bytes(content)


# ---- what is decoded, and used as its callers do


def read_summary(content: bytes) -> None:
    decode_link(content, "x")
    content += struct.pack("<I", crc32c(content))
    for key, changes in decode_summary(content, "x").entries():
        assert all(0 <= number <= 0xFFFFFFFE for number in list(changes.blocks)[:10]), key


def read_head(content: bytes) -> None:
    entry = decode_head(content)
    assert entry.start_lsn <= entry.stop_lsn
    assert entry.prior_id is None or parse_backup_id(entry.prior_id)
    assert f"{entry.start_timeline_id:08X}{entry.system_identifier:d}{entry.totals.size_bytes:d}"


def read_file(content: bytes) -> None:
    file = decode_file(content)
    assert file.stored_path.encode("utf-8", "surrogateescape")
    assert f"{file.size_bytes:d}{file.stored_size_bytes:d}"
    parse_relation_path(file.path)


def read_entry(content: bytes) -> None:
    for _ in decode_entry(content.splitlines(keepends=True))[1]:
        pass


def read_packed_entry(content: bytes) -> None:
    """Read an entry with packs, whose digest is right, as all its readers do."""
    kept = content.splitlines(keepends=True)[:-1]
    lines = [*kept, f'"digest": "xxh3-128:{content_digest(b"".join(kept))}"}}\n'.encode()]
    entry, contents, files = decode_contents(lines)
    assert sum(pack.size_bytes for pack in contents.packs) == entry.packed_size_bytes
    for file in files:
        with suppress(FormatError):
            check_extents(file.extents, contents.packs, file.stored_path)
    names = [pack.name for pack in contents.packs]
    assert [pack.name for pack in decode_packs(lines)] == names
    assert [pack.name for pack in skim_packs(lines, lambda _: False)] == names
    for _ in decode_entry(lines)[1]:
        pass


def read_packs(content: bytes) -> None:
    reader = PackReader()
    for line in content.split(b"\n"):
        reader.feed(load_json(line))
    for pack in reader.finish():
        assert all(pack.find(pack.position(number)) == (number, 0) for number in range(len(pack)))
        assert pack.end <= len(pack) * FRAME_SIZE


def read_moved_frames(content: bytes) -> None:
    """Read a table whose digest is right."""
    kept = b"".join(content.splitlines(keepends=True)[:-1])
    moved = decode_moved_frames(kept + f'"digest": "xxh3-128:{content_digest(kept)}"}}\n'.encode())
    moves = FrameMoves([moved])
    for name, offsets in moved.origins:
        assert all([place.pack_name for place in moves.places(name, at)] == [name, moved.pack.name] for at in offsets)


def made_moved_frames() -> bytes:
    pack = Pack("e" * 32)
    for number in range(4):
        pack.add(Frame(pack.size_bytes, 100 + number, 1000, bytes([number]) * 16))
        pack.size_bytes += 100 + number
    origins = [Origin("a" * 32, array("Q", [24, 900])), Origin("b" * 32, array("Q", [24, 1 << 33]))]
    return b"".join(encode_moved_frames(MovedFrames(pack, origins)))


def read_frame(content: bytes) -> None:
    """Read a frame whose digest is right, of as many bytes of files as the first four bytes say."""
    (size_bytes,), stored = struct.unpack("<I", content[:4].ljust(4, b"\0")), content[4:]
    frame = Frame(24, len(stored), size_bytes, bytes.fromhex(content_digest(stored)))
    assert len(FrameDecoder().decode(stored, frame, 0, "x")) == size_bytes


def read_format(content: bytes) -> None:
    found = StorageFormat.decode(content)
    assert StorageFormat.decode(found.encode()) == found
    assert found.level is None or 1 <= found.level <= 22


def read_manifest(content: bytes) -> None:
    reader = ManifestReader()
    for at in range(0, len(content), 100):
        for file in reader.feed(content[at : at + 100]):
            assert f"{file.size:d}"
    reader.finish()


def read_incremental(content: bytes) -> None:
    prefix = IncrementalHeader.decode_prefix(content[:12])
    IncrementalHeader.decode(content[: prefix.header_size], len(content))


def read_control_file(content: bytes) -> None:
    at = 292
    content = content[:at] + struct.pack("<I", crc32c(content[:at])) + content[at + 4 :]
    stamp = ControlStamp.decode(content[:CONTROL_FILE_SIZE])
    assert f"{stamp.timeline_id:08X}"


def read_history(content: bytes) -> None:
    history = TimelineHistory.decode(5, content)
    history.ranges_between(Lsn(0), Lsn(1 << 40))


def read_state(content: bytes) -> None:
    state = ReceiverState.decode(content)
    assert f"{state.timeline_id:08X}{state.written_lsn + 1:d}"
    assert state.slot is None or state.slot + ""
    assert 0 <= (state.updated_at or 0) + (state.level_at or 0) <= 1e12


def read_identity(content: bytes) -> None:
    identity = RepositoryIdentity.decode(content)
    assert 0 < identity.system_identifier < 1 << 64
    assert identity.geometry.segment_no(1 << 40)


def read_keyring(content: bytes) -> None:
    keyring = StoredKeyring.decode(content, KEYRING.name).keyring
    assert keyring.content
    assert keyring.name == KEYRING.name


def read_sealed_header(content: bytes) -> None:
    header = Header.decode(content, SealedFor.RECIPIENTS, "an object")
    assert len(header.wrapped) <= 512


def read_copy(content: bytes) -> None:
    reader = BinaryCopyReader()
    for at in range(0, len(content), 50):
        for value in reader.feed(content[at : at + 50]):
            assert value is None or len(value) <= len(content)
    reader.finish()


def read_names(content: bytes) -> None:
    name = content.decode("utf-8", "surrogateescape")
    parse_summary_file_name(name)
    parse_relation_path(name)
    parse_database_directory(name)
    with suppress(PgwalError):
        assert decode_path(check_path(name)) == name
    base, _, _ = split_segment_name(name)
    if is_segment_name(base):
        WalGeometry(16 << 20).parse_file_name(base)


def read_texts(content: bytes) -> None:
    # Arguments of a command hold no zero bytes.
    text = content.replace(b"\0", b"").decode("utf-8", "surrogateescape")
    for parse in TEXTS:
        with suppress(PgwalError, typer.BadParameter):
            parse(text)


def read_row(content: bytes) -> None:
    """Read what a server answers to a command of replication."""
    row = AnswerRow("IDENTIFY_SYSTEM", {"xlogpos": content, "timeline": content})
    with suppress(PgwalError):
        assert 0 < row.timeline("timeline") < 1 << 32
    assert f"{row.lsn('xlogpos') + 1:X}"


def read_pages(content: bytes) -> None:
    content = content[: 2 * BLOCK_SIZE]
    file = parse_relation_path("base/5/16384.1")
    assert file is not None
    check = PageCheck(file, Lsn(1 << 40))
    check.feed(content)
    assert set(check.bad_blocks) <= set(range(len(content) // BLOCK_SIZE))


def read_settings(content: bytes) -> None:
    settings = list(recovery_settings(RecoveryTarget(), "fetch", 18))
    written = with_settings(content, settings)
    assert with_settings(written, settings) == written
    assert len(written) < len(content) + 5000


def made_manifest() -> bytes:
    writer = ManifestWriter(18, 7710976684590823411)
    header = writer.header()
    entries = [writer.file_entry(f"base/5/{number}", 8192, 1795351772, "CRC32C", "671449c2") for number in range(2)]
    return header + b"".join(entries) + writer.finish([LsnRange(1, Lsn(0x6000028), Lsn(0x6000120))])


def made_summary() -> bytes:
    block_map = BlockMap()
    block_map.mark(RelationFork(1663, 5, 16384, 0), [*range(0, 9000, 2), 70000])
    block_map.set_limit(RelationFork(1663, 5, 16385, 1), 7)
    return encode_summary(block_map)[:-4]


def made_entry(path: Path) -> bytes:
    made = MadeRepository(path)
    made.add({"base/5/1": block("a")})
    made.add({"base/5/1": Blocks(1, {0: block("b")})})
    return (path / "backups" / made.ids[1] / "backup.json").read_bytes()


def made_packed_entry() -> bytes:
    first, second = Pack("1f" * 16), Pack("2e" * 16)
    for pack, sizes in ((first, ((100, 8192), (8192, 8192))), (second, ((50, 5000),))):
        for stored_size_bytes, size_bytes in sizes:
            pack.add(Frame(pack.size_bytes, stored_size_bytes, size_bytes, bytes(range(16))))
            pack.size_bytes += stored_size_bytes
    files = [
        BackupFile("base/5/16384", 16384, 16384, 0o600, 1795344930, "5" * 32, extents=(Extent(0, 0, 0, 16384),)),
        BackupFile("base/5/PG_VERSION", 5000, 5000, 0o600, 0, "6" * 32, extents=(Extent(1, 0, 0, 5000),)),
    ]
    contents = PackedContents([first, second], ["base", "base/5", "pg_tblspc"])
    totals = BackupTotals(2, 0, 21384, 21384)
    entry = entry_of("20261122T101530Z_full", None, Lsn(1), Lsn(2), totals, contents.size_bytes)
    entry = replace(entry, merge_note=MergeNote(entry.started_at, (entry.backup_id[:-4] + "incr", entry.backup_id)))
    return b"".join(encode_entry(entry, map(encode_file, files), contents))


def made_packs() -> bytes:
    lines = made_packed_entry().splitlines()
    ends = (number for number, line in enumerate(lines) if line.startswith(b"], "))
    return b"\n".join(line.rstrip(b",") for line in lines[1 : next(ends)])


def made_frame() -> bytes:
    content = bytes(range(250)) * 20
    with closing(FrameEncoder(1)) as encoder:
        return struct.pack("<I", len(content)) + encoder.encode(content).stored


COPY = b"PGCOPY\n\xff\r\n\0" + bytes(8) + struct.pack(">hI", 1, 5) + b"hello" + struct.pack(">hi", 1, -1) + b"\xff\xff"
STATE = (
    b'{"timeline_id": 1, "written_lsn": "0/3000028", "flushed_lsn": "0/3000028", "summarised_lsn": "0/3000000",'
    b' "slot": "pgwal", "updated_at": 1795351772.5, "level_at": null}'
)
SERVER_MESSAGE = b"w" + struct.pack(">QQq", 0x3000000, 0x3000100, 7) + b"data"
TEXTS: tuple[Callable[[str], object], ...] = (
    Lsn.parse, parse_segment_size, parse_target_time, parse_backup_id, parse_label, parse_lsn, parse_rate,
    parse_timeline, parse_place, parse_size, _parse_address, parse_compression, _parse_compression_of_packs,
    _parse_relation, parse_executor, parse_role,
    lambda text: str(ConnectionParameters.from_options(text)), lambda text: parse_tablespaces([text]),
    lambda text: CloudPlace.parse(f"s3://{text}"), parse_percent, lambda text: parse_variable("AWS_REGION", text, ()),
)  # fmt: skip
DECODERS: dict[str, tuple[Callable[[bytes], object], bytes | None]] = {
    "head of an entry": (read_head, None),
    "file of an entry": (read_file, None),
    "entry": (read_entry, None),
    "packed entry": (read_packed_entry, made_packed_entry()),
    "packs of an entry": (read_packs, made_packs()),
    "moved frames": (read_moved_frames, made_moved_frames()),
    "frame": (read_frame, made_frame()),
    "format.json": (read_format, StorageFormat(FileFormat.PACKED, Compression.parse("zstd:3")).encode()),
    "manifest": (read_manifest, made_manifest()),
    "label": (BackupLabel.decode, LABEL),
    "tablespace map": (lambda content: TablespaceMap.decode(content, 18), b"16384 /srv/a\n16385 /srv/b\\\nc\n"),
    "incremental file": (read_incremental, IncrementalHeader(4, array("I", [1, 3, 4])).encode() + bytes(3 * 8192)),
    "pg_control": (read_control_file, build_control_file(18)),
    "summary": (read_summary, made_summary()),
    "history": (read_history, b"1\t0/3000000\tbefore\n2\t0/5000000\tafter\n"),
    "receiver.json": (read_state, STATE),
    "pgwal.json": (read_identity, RepositoryIdentity(7710976684590823411, 16 << 20, 18).encode()),
    "pgwal.json, encrypted": (
        read_identity,
        RepositoryIdentity(7710976684590823411, 16 << 20, 18, "00112233445566778899aabbccddeeff").encode(),
    ),
    "keys": (read_keyring, KEYRING.encode(METADATA_KEY)),
    "header of an encrypted object": (
        read_sealed_header,
        Header(SealedFor.RECIPIENTS, 1, 65536, bytes(range(16)), b"age-encryption.org/v1\n" * 12).encode(),
    ),
    "mark of a restore": (IncompleteMark.decode, IncompleteMark(7710976684590823411, {16384: "/a"}).encode("x")),
    "postmaster.pid": (PostmasterFile.decode, b"12\n/data\n1795351772\n5432\n/tmp\n*\n  1 2\nready   \n"),
    "server message": (decode_server_message, SERVER_MESSAGE),
    "keepalive": (decode_server_message, b"k" + struct.pack(">QqB", 0x3000100, 7, 1)),
    "status update": (decode_status_update, b"r" + struct.pack(">QQQqB", 1, 1, 1, 7, 0)),
    "binary COPY": (read_copy, COPY),
    "names": (read_names, b"000000010000000000000003.zst.partial"),
    "paths": (read_names, b"base/5/16384_vm.1"),
    "texts": (read_texts, b"20261122T101530Z_full"),
    "options": (read_texts, b"1663/5/16384"),
    "words": (read_texts, b"host=zstd:3"),
    "answer to a command": (read_row, b"0/3000028"),
    "pages": (read_pages, bytes(2 * BLOCK_SIZE)),
    "postgresql.auto.conf": (read_settings, b"# Do not edit\nrecovery_target_xid = '7'\nport = '5433'\n"),
    **WAL_DECODERS,
}
NEVER_DAMAGED = ("names", "paths", "texts", "options", "words", "pages", "postgresql.auto.conf")
"""Of these none is damaged; each is this or that, or nothing."""


def sample_of(name: str, scratch: Path) -> bytes:
    sample = DECODERS[name][1]
    if sample is None:
        lines = made_entry(scratch / "repo").splitlines(keepends=True)
        sample = {"head": lines[0], "file": lines[1].rstrip(b",\n"), "entry": b"".join(lines)}[name.split()[0]]
    return sample


@pytest.mark.parametrize("name", DECODERS)
def test_ten_thousand_inputs(name: str, tmp_path: Path) -> None:
    decode = DECODERS[name][0]
    sample = sample_of(name, tmp_path)
    decode(sample)
    read = 0
    for number in range(COUNT):
        content = mutated(sample, Random(f"{SEED} {name} {number}"))
        start_s = time.monotonic()
        try:
            decode(content)
            read, message = read + 1, ""
        except PgwalError as error:
            message = str(error)
        except BaseException as error:
            raise AssertionError(f"input {number} of seed {SEED}: {content[:400]!r}") from error
        assert message.isprintable(), (content[:400], message)
        assert time.monotonic() - start_s < LONGEST_S, content[:400]
    assert 0 < read < COUNT or name in NEVER_DAMAGED


def test_every_decoder_is_reached(tmp_path: Path) -> None:
    """What the code calls a decoder, by its name, some row calls when it reads its sample."""
    reached: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            reached.add((frame.f_code.co_filename, frame.f_code.co_qualname))

    for number, (name, (decode, _)) in enumerate(DECODERS.items()):
        sample = sample_of(name, tmp_path / str(number))
        sys.setprofile(note)
        try:
            decode(sample)
        finally:
            sys.setprofile(None)
    named = set(named_decoders())
    assert len(named) > 40
    assert named - reached == set()


def named_decoders() -> Iterator[tuple[str, str]]:
    """Yield (file, qualified name) of what is called a decoder."""
    for package in (pgwal, pgwal_cli):
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            tree = ast.parse(path.read_text())
            for node in tree.body:
                for function in node.body if isinstance(node, ast.ClassDef) else [node]:
                    if isinstance(function, ast.FunctionDef) and DECODER_NAME.match(function.name):
                        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
                        yield str(path), prefix + function.name


FRAMES_THAT_LIE = {
    "inflates to more": (lambda: zstandard.compress(bytes(5001)), 5000),
    "inflates to less": (lambda: zstandard.compress(bytes(4999)), 5000),
    "inflates to a hundred megabytes": (lambda: zstandard.compress(bytes(100 << 20)), FRAME_SIZE),
    "says that it is a hundred megabytes": (lambda: zstandard.compress(bytes(100 << 20)), 100 << 20),
    "inflates to nothing": (lambda: zstandard.compress(b""), 5000),
    "does not say its size": (lambda: zstandard.ZstdCompressor(write_content_size=False).compress(bytes(5000)), 5000),
    "has something behind it": (lambda: zstandard.compress(bytes(5000)) + b"x", 5000),
    "has another frame behind it": (lambda: zstandard.compress(bytes(5000)) + zstandard.compress(bytes(10)), 5000),
    "is cut": (lambda: zstandard.compress(bytes(5000))[:-1], 5000),
    "is a skippable frame": (lambda: struct.pack("<II", 0x184D2A50, 12) + bytes(12), 5000),
    "is not zstd": (lambda: b"nothing of the kind", 5000),
    "is empty": (lambda: b"", 5000),
}


@pytest.mark.parametrize("name", FRAMES_THAT_LIE)
def test_a_frame_that_lies_is_refused_and_takes_no_memory(name: str) -> None:
    make, size_bytes = FRAMES_THAT_LIE[name]
    stored = make()
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="frame 0 of x"):
            read_frame(struct.pack("<I", size_bytes) + stored)
        assert tracemalloc.get_traced_memory()[1] < 4 * FRAME_SIZE
    finally:
        tracemalloc.stop()
