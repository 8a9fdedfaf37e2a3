"""Files of a repository that have no end, or another meaning than their name: read no further than is needed."""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import pytest
import zstandard
from core.wal_builder import RM_XLOG, RecordSpec, WalBuilder
from pgwal_process import assert_nothing_raw, run_pgwal
from restore.made_repository import SEGMENT_SIZE, MadeRepository, block

from pgwal.datadir.postmaster_file import read_postmaster_file
from pgwal.datadir.reader import LocalDataDirectory
from pgwal.errors import FormatError, ServerError
from pgwal.repository.local import LocalStore
from pgwal.repository.segment_reader import SegmentReader
from pgwal.repository.wal_archive import WalArchive
from pgwal.segment import WalGeometry

VERIFICATION_FAILED, FATAL = 5, 126
NOOP = 0x20
ENDLESS_BYTES = 2 << 30
LITTLE_MEMORY = ["bash", "-c", 'ulimit -v 1500000; exec "$@"', "limited"]
"""In kB, of addresses; much less than would be needed to hold what is endless."""


@pytest.fixture
def made(tmp_path: Path) -> MadeRepository:
    made = MadeRepository(tmp_path / "repo")
    made.add({"base/5/1": block("a")})
    return made


def endless(path: Path) -> None:
    """Compress more zeros than a segment has, by the method of the suffix."""
    opened = {".zst": zstandard.open, ".gz": gzip.open, ".lz4": lz4.frame.open}[path.suffix]
    zeros = bytes(64 << 20)
    with opened(path, "wb") as file:
        for _ in range(ENDLESS_BYTES // len(zeros) if path.suffix != ".gz" else 4):
            file.write(zeros)


@pytest.mark.parametrize("suffix", [".zst", ".gz", ".lz4"])
def test_a_segment_that_inflates_without_end(made: MadeRepository, tmp_path: Path, suffix: str) -> None:
    (segment,) = (made.path / "wal").iterdir()
    segment.unlink()
    endless(segment.with_name(segment.name + suffix))
    verified = run_pgwal("verify", "--repo", made.path, prefix=LITTLE_MEMORY)
    assert verified.code == VERIFICATION_FAILED, verified
    assert_nothing_raw(verified)
    assert f"{segment.name}{suffix}: it is damaged: it holds more than the {SEGMENT_SIZE} bytes" in verified.stdout
    fetched = run_pgwal("fetch-wal", segment.name, tmp_path / "out", "--repo", made.path, prefix=LITTLE_MEMORY)
    assert fetched.code == FATAL
    assert_nothing_raw(fetched)


def test_two_forms_of_a_segment_must_agree(made: MadeRepository, tmp_path: Path) -> None:
    (segment,) = (made.path / "wal").iterdir()
    content = bytearray(segment.read_bytes())
    twin = segment.with_name(f"{segment.name}.zst")
    twin.write_bytes(zstandard.compress(bytes(content)))
    # As a crash leaves them: both are there, and hold the same.
    assert "different WAL" not in run_pgwal("verify", "--repo", made.path).stdout
    content[-1] ^= 1
    twin.write_bytes(zstandard.compress(bytes(content)))
    verified = run_pgwal("verify", "--repo", made.path)
    assert verified.code == VERIFICATION_FAILED
    assert "hold different WAL" in verified.stdout
    fetched = run_pgwal("fetch-wal", segment.name, tmp_path / "out", "--repo", made.path)
    assert fetched.code == FATAL
    assert "hold different WAL" in fetched.errors[0]
    assert not (tmp_path / "out").exists()


def test_two_endless_forms_are_compared_no_further_than_a_segment(
    made: MadeRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    (segment,) = (made.path / "wal").iterdir()
    segment.unlink()
    for suffix, compress in ((".zst", zstandard.compress), (".lz4", lz4.frame.compress)):
        segment.with_name(segment.name + suffix).write_bytes(compress(bytes(20 * SEGMENT_SIZE)))
    sizes: list[int] = []

    def read(reader: SegmentReader, size: int, original: Callable[..., bytes] = SegmentReader.read) -> bytes:
        data = original(reader, size)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(SegmentReader, "read", read)
    archive = WalArchive(LocalStore(made.path), WalGeometry(SEGMENT_SIZE))
    assert archive.read_segment(segment.name) == bytes(SEGMENT_SIZE)
    assert sum(sizes) < 4 * SEGMENT_SIZE


PIPED_COMMANDS = (
    ["summarize", "{wal}", "-o", "{out}"],
    ["map", "--wal", "{wal}", "--from", "0/300000", "--to", "0/500000"],
    ["inspect", "{wal}"],
)


@pytest.mark.parametrize("name", ["000000010000000000000003", "000000010000000000000003.zst", "00000001.history"])
@pytest.mark.parametrize("command", PIPED_COMMANDS, ids=lambda command: command[0])
def test_a_pipe_in_recorded_wal_is_not_waited_for(tmp_path: Path, command: list[str], name: str) -> None:
    wal = tmp_path / "wal"
    wal.mkdir()
    builder = WalBuilder(18, segment_size=SEGMENT_SIZE, start_lsn=2 * SEGMENT_SIZE)
    while builder.end_lsn < 5 * SEGMENT_SIZE:
        builder.append(RecordSpec(RM_XLOG, NOOP, main_data=bytes(5000)))
    content = builder.wal_to_segment_end()
    for number in range(4):
        at = number * SEGMENT_SIZE
        (wal / f"00000001{number + 2:016X}").write_bytes(content[at : at + SEGMENT_SIZE])
    (wal / name).unlink(missing_ok=True)
    os.mkfifo(wal / name)
    outcome = run_pgwal(*(word.format(wal=wal, out=tmp_path / "out") for word in command))
    assert_nothing_raw(outcome)
    if name.endswith(".history"):
        # Timeline 1 has none, whatever is there.
        assert "not a regular file" not in outcome.stderr
    else:
        assert outcome.code != 0
        assert re.search("is not a regular file|segments are missing", outcome.errors[0]), outcome.stderr


@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_a_segment_of_a_repository_that_is_no_file(made: MadeRepository, tmp_path: Path, kind: str) -> None:
    (segment,) = (made.path / "wal").iterdir()
    segment.unlink()
    if kind == "pipe":
        os.mkfifo(segment)
    elif kind == "device":
        segment.symlink_to("/dev/zero")
    else:
        segment.mkdir()
    for command in (
        ["verify"],
        ["list"],
        ["status"],
        ["expire", "--keep-full", "1", "--dry-run"],
        ["map", "--from", "0/100028", "--to", "0/100100", "--timeline", "1"],
        ["fetch-wal", segment.name, tmp_path / "out"],
    ):
        outcome = run_pgwal(*command, "--repo", made.path)
        assert_nothing_raw(outcome)
        assert "Traceback" not in outcome.stdout
    assert outcome.code == FATAL
    assert re.search("not a regular file|it is a symbolic link", outcome.errors[0]), outcome


LISTED = ("backup_label", "PG_VERSION", "global/pg_control")


@pytest.mark.parametrize("name", [*LISTED, "backup_manifest", "../backup.json"])
@pytest.mark.parametrize("kind", ["pipe", "endless", "endless line"])
def test_files_of_a_backup_that_have_no_end(made: MadeRepository, name: str, kind: str) -> None:
    path = made.data(made.ids[0]) / name
    before = path.read_bytes() if path.exists() else b""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        with path.open("wb") as file:
            file.write(before)
            if kind == "endless line":
                file.write(b" " * (40 << 20))
            file.truncate(3 << 30)
    verified = run_pgwal("verify", "--repo", made.path, prefix=LITTLE_MEMORY)
    assert verified.code == VERIFICATION_FAILED, verified
    assert_nothing_raw(verified)
    assert Path(name).name in verified.stdout
    assert "memory" not in verified.stderr
    restored = run_pgwal("restore", made.ids[0], "-D", made.path / "../out", "--repo", made.path, prefix=LITTLE_MEMORY)
    # A restore makes its own manifest, or none.
    assert (restored.code == 0) == (name == "backup_manifest")
    assert_nothing_raw(restored)
    assert "memory" not in restored.stderr


def test_a_summary_without_end(made: MadeRepository, tmp_path: Path) -> None:
    name = "0000000100000000001000280000000000100100.summary"
    for path in (made.path / "summaries" / name, tmp_path / name):
        with path.open("wb") as file:
            file.truncate(3 << 30)
    reading = ["map", "--repo", made.path, "--from", "0/100028", "--to", "0/100100"]
    for command in (["map", tmp_path / name], reading, ["map", "/dev/full"]):
        outcome = run_pgwal(*command, prefix=["bash", "-c", 'ulimit -v 3500000; exec "$@"', "limited"])
        assert_nothing_raw(outcome)
        assert outcome.code not in (0, -9)
        assert "larger than 1073741824 bytes" in outcome.errors[0]


@pytest.mark.parametrize("kind", ["pipe", "endless", "numbers"])
def test_a_postmaster_file_that_is_none(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "postmaster.pid"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        with path.open("wb") as file:
            file.truncate(8 << 40)
    else:
        path.write_bytes(b"1\n/data\n" + b"9" * 4000 + b"\n5432\n")
    with pytest.raises(FormatError, match=re.escape("postmaster.pid")):
        read_postmaster_file(tmp_path)


def test_a_control_file_that_is_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "global").mkdir()
    os.mkfifo(tmp_path / "global/pg_control")
    with pytest.raises(ServerError, match="not a regular file"):
        LocalDataDirectory(tmp_path).read_control_file()


def test_a_history_without_end(made: MadeRepository, tmp_path: Path) -> None:
    with (made.path / "wal" / "00000002.history").open("wb") as file:
        file.truncate(3 << 30)
    for command in (["verify"], ["list"], ["status"], ["fetch-wal", "00000002.history", tmp_path / "out"]):
        outcome = run_pgwal(*command, "--repo", made.path, prefix=LITTLE_MEMORY)
        assert_nothing_raw(outcome)
        assert "memory" not in outcome.stderr
    assert outcome.code == FATAL
    assert "is larger than 16777216 bytes" in outcome.errors[0]
