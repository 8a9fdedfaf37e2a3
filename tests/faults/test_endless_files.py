"""Files of a repository that have no end, or another meaning than their name: read no further than is needed."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import lz4.frame
import pytest
import zstandard
from pgwal_process import assert_nothing_raw, run_pgwal
from restore.made_repository import SEGMENT_SIZE, MadeRepository, block

from pgwal.repository.local import LocalStore
from pgwal.repository.wal_archive import WalArchive
from pgwal.repository.wal_directory import SegmentReader
from pgwal.segment import WalGeometry

VERIFICATION_FAILED, FATAL = 5, 126
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


def test_a_history_without_end(made: MadeRepository, tmp_path: Path) -> None:
    with (made.path / "wal" / "00000002.history").open("wb") as file:
        file.truncate(3 << 30)
    for command in (["verify"], ["list"], ["status"], ["fetch-wal", "00000002.history", tmp_path / "out"]):
        outcome = run_pgwal(*command, "--repo", made.path, prefix=LITTLE_MEMORY)
        assert_nothing_raw(outcome)
        assert "memory" not in outcome.stderr
    assert outcome.code == FATAL
    assert "is larger than 16777216 bytes" in outcome.errors[0]
