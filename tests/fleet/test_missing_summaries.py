"""The summaries that a repository lacks of its WAL are those of one pass, however WAL is cut into pieces."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from random import Random

import pytest
from keeping.test_verify import identity_of
from pgwal_process import assert_failed, run_pgwal, succeed

from pgwal.engine import missing_summaries, recorded
from pgwal.engine.fleet import Room
from pgwal.engine.missing_summaries import SummaryPiece, write_missing_summaries
from pgwal.engine.verify import VerifyRequest, verify
from pgwal.lsn import LsnRange
from pgwal.repository.local_place import LocalPlace
from pgwal.repository.repository import Repository
from pgwal_cli.exit_codes import FAILED, LOCKED, USAGE

WAL = Path(__file__).parent.parent.parent / "fixtures" / "wal"
IS_LARGE = "PGWAL_LARGE_TESTS" in os.environ
MAJORS = (13, 14, 15, 16, 17, 18, 19)


def repository_of(directory: Path, major: int) -> Repository:
    """Make a repository of recorded WAL, without summaries."""
    recorded_wal = WAL / f"pg{major}"
    repository = Repository.open_or_create(directory, identity_of(recorded_wal, major))
    for path in recorded_wal.iterdir():
        if path.is_file() and path.name[0] == "0":
            shutil.copy(path, directory / "wal")
    return repository


def summaries_in(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("major", MAJORS)
def test_pieces_of_any_size_give_the_summaries_of_one_pass(
    major: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = repository_of(tmp_path / "repo", major).place
    recorded.summarize_wal(WAL / f"pg{major}", tmp_path / "expected")
    expected = summaries_in(tmp_path / "expected")
    written = write_missing_summaries(place)
    in_one_pass = summaries_in(tmp_path / "repo" / "summaries")
    assert [summary.name for summary in written] == sorted(in_one_pass)
    assert in_one_pass.items() <= expected.items()
    # What is left is where WAL ends without a cut, on the last timeline.
    left = sorted(expected.keys() - in_one_pass.keys())
    assert len(left) <= 2
    assert max(expected) in left or not left
    random = Random(major)
    for segments in (1, 1, 2, 3) if IS_LARGE else (1, 2):
        kept = random.sample(sorted(in_one_pass), random.randint(0, len(in_one_pass) - 1))
        found = []
        for jobs, piece_bytes in ((1, 1 << 40), (2, segments * (16 << 20))):
            monkeypatch.setattr(missing_summaries, "SUMMARY_PIECE_BYTES", piece_bytes)
            for name in summaries_in(tmp_path / "repo" / "summaries"):
                (tmp_path / "repo" / "summaries" / name).unlink()
            for name in kept:
                (tmp_path / "repo" / "summaries" / name).write_bytes(in_one_pass[name])
            written = write_missing_summaries(place, jobs=jobs)
            found.append(summaries_in(tmp_path / "repo" / "summaries"))
            assert {summary.name for summary in written} == found[-1].keys() - set(kept)
        assert found[0] == found[1]
        assert len(kept) or found[0] == in_one_pass
    assert write_missing_summaries(place, jobs=2) == []


def test_the_command_writes_into_the_repository(tmp_path: Path) -> None:
    repository = repository_of(tmp_path / "repo", 17)
    rows = json.loads(succeed("summarize", "--repo", tmp_path / "repo", "--json"))["summaries"]
    assert [row["name"] for row in rows] == sorted(path.name for path in (tmp_path / "repo" / "summaries").iterdir())
    assert rows
    assert verify(VerifyRequest(LocalPlace(tmp_path / "repo"))).problems == []
    with repository.lock_receiver():
        assert_failed(run_pgwal("summarize", "--repo", tmp_path / "repo"), LOCKED, "receiver")


def test_what_the_command_does_not_take(tmp_path: Path) -> None:
    for arguments in (["-o", tmp_path], [tmp_path], ["--repo", tmp_path, "-o", tmp_path]):
        assert run_pgwal("summarize", *arguments).code == USAGE
    assert run_pgwal("summarize", tmp_path, "-o", tmp_path, "--executor", "process:2").code == USAGE
    empty = Repository.open_or_create(tmp_path / "repo", identity_of(WAL / "pg18", 18))
    assert_failed(run_pgwal("summarize", "--repo", str(empty.place)), FAILED, "no whole WAL segment", "pgwal import")


def test_a_piece_behind_wal_of_wal_level_minimal_is_not_summarized_before_that_ends(tmp_path: Path) -> None:
    """Before 17 WAL says which wal_level there is where it changes, which another piece may have read."""
    repository = repository_of(tmp_path / "repo", 13)
    first = repository.wal.segments()[0]
    start = repository.geometry.segment_start(first.segment_no)
    part = LsnRange(1, start, repository.geometry.segment_start(first.segment_no + 2))
    room = Room(repository)
    piece = SummaryPiece(part, part.end, is_closed=True, is_first=True, was_minimal=True)
    assert missing_summaries.last_level(room, lambda _: None, part) is None
    assert missing_summaries.summarize_piece(room, lambda _: None, piece) == []
    assert missing_summaries.summarize_piece(room, lambda _: None, piece._replace(was_minimal=None)) != []
    assert missing_summaries._carried([None, True, None, False, None]) == [None, None, True, True, False]
