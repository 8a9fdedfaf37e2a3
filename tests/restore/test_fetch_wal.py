"""What fetch-wal hands out: whole segments that are what they are called, partial ones, and nothing that is broken."""

from __future__ import annotations

import lzma
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lz4.frame
import pytest
import zstandard
from pgwal_process import run_pgwal
from restore.made_repository import SEGMENT_SIZE, SYSTEM_IDENTIFIER, MadeRepository

from pgwal.engine.fetch_wal import fetch as fetch_in_process
from pgwal.errors import FormatError
from pgwal.lsn import Lsn
from pgwal.repository import wal_directory
from pgwal.repository.address import Address, place_at
from pgwal.repository.local_place import LocalPlace
from pgwal_cli.restore_command import FATAL, NOT_FOUND, restore_command

PAGE = 8192
NAME = "000000010000000000000003"
OF_TIMELINE_2 = "000000020000000000000003"


def segment(timeline_id: int = 1, *, number: int = 3, pages: int = SEGMENT_SIZE // PAGE, identifier: int = 0) -> bytes:
    """Return a segment with right page headers; what follows ``pages`` pages is zeros."""
    rng = random.Random(number)
    made = []
    for page in range(pages):
        address = number * SEGMENT_SIZE + page * PAGE
        header = struct.pack("<HHIQI4x", 0xD118, 0 if page else 2, timeline_id, address, 0)
        if not page:
            header += struct.pack("<QII", identifier or SYSTEM_IDENTIFIER, SEGMENT_SIZE, PAGE)
        made.append(header + rng.randbytes(PAGE - len(header)))
    return b"".join(made).ljust(SEGMENT_SIZE, b"\0")


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return MadeRepository(tmp_path / "repo").path


def fetch(repo: Path, name: str = NAME) -> tuple[int, bytes | None, str]:
    """Fetch a file and return the exit code, what is there afterwards, and the messages."""
    destination = repo.parent / "RECOVERYXLOG"
    destination.unlink(missing_ok=True)
    outcome = run_pgwal("fetch-wal", "--repo", repo, name, destination)
    assert [path.name for path in repo.parent.iterdir() if path != repo and path != destination] == []
    return outcome.code, destination.read_bytes() if destination.exists() else None, outcome.stderr


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        ("", bytes),
        (".zst", lambda content: zstandard.ZstdCompressor().compress(content)),
        (".lz4", lz4.frame.compress),
    ],
    ids=["plain", "zstd", "lz4"],
)
def test_whole_segment(repo: Path, suffix: str, compress: type[bytes]) -> None:
    (repo / "wal" / f"{NAME}{suffix}").write_bytes(compress(segment()))
    # What was whole is preferred.
    (repo / "wal" / f"{NAME}.partial").write_bytes(segment(pages=2))
    assert fetch(repo)[:2] == (0, segment())


def test_segment_that_ends_with_a_switch(repo: Path) -> None:
    (repo / "wal" / NAME).write_bytes(segment(pages=5))
    assert fetch(repo)[:2] == (0, segment(pages=5))


def test_partial_segment_is_handed_out_at_full_size(repo: Path) -> None:
    content = segment(pages=7)
    (repo / "wal" / f"{NAME}.partial").write_bytes(content)
    assert fetch(repo)[:2] == (0, content)


def test_partial_segment_without_anything_in_it_is_not_there(repo: Path) -> None:
    (repo / "wal" / f"{NAME}.partial").write_bytes(bytes(SEGMENT_SIZE))
    assert fetch(repo)[:2] == (NOT_FOUND, None)


def test_what_the_parent_timeline_has_more_of_a_segment(repo: Path) -> None:
    """The new timeline's first segment begins with WAL of the old one, which is received a second time."""
    switch = Lsn(3 * SEGMENT_SIZE + 20 * PAGE + 500)
    old = segment(pages=40)
    (repo / "wal" / "00000002.history").write_bytes(f"1\t{switch}\tno recovery target specified\n".encode())
    (repo / "wal" / f"{NAME}.partial").write_bytes(old)
    (repo / "wal" / f"{OF_TIMELINE_2}.partial").write_bytes(old[: 10 * PAGE].ljust(SEGMENT_SIZE, b"\0"))
    cut = 20 * PAGE + 500
    assert fetch(repo, OF_TIMELINE_2)[:2] == (0, old[:cut].ljust(SEGMENT_SIZE, b"\0"))
    beyond = old[:cut] + segment(2)[cut : 30 * PAGE]
    (repo / "wal" / f"{OF_TIMELINE_2}.partial").write_bytes(beyond.ljust(SEGMENT_SIZE, b"\0"))
    assert fetch(repo, OF_TIMELINE_2)[:2] == (0, beyond.ljust(SEGMENT_SIZE, b"\0"))


def test_history_file(repo: Path) -> None:
    content = b"1\t0/3000028\tno recovery target specified\n"
    (repo / "wal" / "00000002.history").write_bytes(content)
    assert fetch(repo, "00000002.history")[:2] == (0, content)
    assert fetch(repo, "00000003.history")[:2] == (NOT_FOUND, None)
    (repo / "wal" / "00000003.history").write_bytes(b"rubbish\n")
    assert fetch(repo, "00000003.history")[:2] == (FATAL, None)


@pytest.mark.parametrize("name", ["000000010000000000000003.00000028.backup", "postgresql.conf", "../pgwal.json"])
def test_other_files_are_not_there(repo: Path, name: str) -> None:
    assert fetch(repo, name)[:2] == (NOT_FOUND, None)


def changed(at: int, new: bytes) -> bytes:
    content = segment()
    return content[:at] + new + content[at + len(new) :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (segment()[:-1], "ends 1 bytes before the end"),
        (b"", "before the end of a segment"),
        (segment(number=4), "not that of the segment at 0/300000"),
        (segment(identifier=5), "of the cluster with system identifier 5"),
        (segment(2), "is of timeline 2"),
        (changed(9 * PAGE + 8, b"\xff"), f"page at byte {9 * PAGE}"),
        (changed(9 * PAGE, bytes(PAGE)), f"page at byte {9 * PAGE}"),
        (changed(50 * PAGE, b"\0"), f"page at byte {50 * PAGE}"),
        (bytes(SEGMENT_SIZE), "not that of the segment"),
    ],
    ids=["short", "empty", "another", "cluster", "timeline", "address", "zeros-between", "magic", "zeros"],
)
def test_broken_segments_stop_recovery(repo: Path, content: bytes, message: str) -> None:
    (repo / "wal" / NAME).write_bytes(content)
    code, fetched, messages = fetch(repo)
    assert (code, fetched) == (FATAL, None)
    assert message in messages
    assert "Traceback" not in messages


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of one MB are read in one piece otherwise."""
    monkeypatch.setattr(wal_directory, "PART_BYTES", 3 * PAGE)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("pages", [1, 3, 4, 15, SEGMENT_SIZE // PAGE])
def test_a_segment_is_checked_in_pieces(repo: Path, pages: int) -> None:
    destination = repo.parent / "RECOVERYXLOG"
    content = segment(pages=pages)
    (repo / "wal" / NAME).write_bytes(content)
    fetch_in_process(LocalPlace(repo), NAME, destination)
    assert destination.read_bytes() == content
    destination.unlink()
    for at in {*range(8, pages * PAGE, PAGE), min(pages * PAGE, SEGMENT_SIZE - PAGE) + 5 * PAGE}:
        if at > SEGMENT_SIZE:
            continue
        (repo / "wal" / NAME).write_bytes(content[:at] + b"\xaa" + content[at + 1 :])
        with pytest.raises(FormatError, match=r"page at byte|not that of the segment"):
            fetch_in_process(LocalPlace(repo), NAME, destination)
        # Neither the file nor the start of it.
        assert list(repo.parent.iterdir()) == [repo]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("received", [1, 2, 3, 4, 6, 7, 19, 20])
def test_a_parent_timeline_is_compared_in_pieces(repo: Path, received: int) -> None:
    destination = repo.parent / "RECOVERYXLOG"
    switch = Lsn(3 * SEGMENT_SIZE + 20 * PAGE + 500)
    cut = 20 * PAGE + 500
    old = segment(pages=40)
    (repo / "wal" / "00000002.history").write_bytes(f"1\t{switch}\tno recovery target specified\n".encode())
    (repo / "wal" / f"{NAME}.partial").write_bytes(old)
    own = repo / "wal" / f"{OF_TIMELINE_2}.partial"
    own.write_bytes(old[: received * PAGE].ljust(SEGMENT_SIZE, b"\0"))
    fetch_in_process(LocalPlace(repo), OF_TIMELINE_2, destination)
    assert destination.read_bytes() == old[:cut].ljust(SEGMENT_SIZE, b"\0")
    # What differs, or goes on elsewhere, is its own.
    for at in (received * PAGE - 9, received * PAGE + 4 * PAGE):
        if at < cut:
            other = bytearray(own.read_bytes())
            other[at] ^= 1
            own.write_bytes(other)
            fetch_in_process(LocalPlace(repo), OF_TIMELINE_2, destination)
            assert destination.read_bytes() == other
            other[at] ^= 1
            own.write_bytes(other)


def test_broken_compression_stops_recovery(repo: Path) -> None:
    content = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(segment()))
    content[len(content) // 2] ^= 1
    (repo / "wal" / f"{NAME}.zst").write_bytes(content)
    assert fetch(repo)[:2] == (FATAL, None)
    (repo / "wal" / f"{NAME}.zst").write_bytes(lzma.compress(segment()))
    assert fetch(repo)[:2] == (FATAL, None)


def test_repository_that_is_not_there_stops_recovery(tmp_path: Path) -> None:
    outcome = run_pgwal("fetch-wal", "--repo", tmp_path / "nowhere", NAME, tmp_path / "x")
    assert outcome.code == FATAL
    assert "there is no repository" in outcome.errors[0]


def test_destination_that_cannot_be_written_stops_recovery(repo: Path) -> None:
    (repo / "wal" / NAME).write_bytes(segment())
    outcome = run_pgwal("fetch-wal", "--repo", repo, NAME, repo / "nowhere" / "x")
    assert outcome.code == FATAL
    assert "cannot write" in outcome.errors[0]


def test_the_long_command_line_does_the_same(repo: Path) -> None:
    (repo / "wal" / NAME).write_bytes(segment())
    destination = repo.parent / "x"
    assert run_pgwal("fetch-wal", NAME, destination, env={"PGWAL_REPO": str(repo)}).code == 0
    assert destination.read_bytes() == segment()
    assert run_pgwal("fetch-wal", NAME, env={"PGWAL_REPO": str(repo)}).code == FATAL


def test_restore_command_imports_no_more_than_it_needs(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server waits for each segment: the whole command line would take several times as long."""
    # Where another test has left a key, it is looked whether that is this repository's.
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (repo / "wal" / NAME).write_bytes(segment())
    command = restore_command(place_at(repo)).replace("%f", NAME).replace("%p", str(repo.parent / "x"))
    command = command.replace(f"{sys.executable} ", f"{sys.executable} -X importtime ", 1)
    finished = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in finished.stderr.splitlines()}
    assert "pgwal.engine.fetch_wal" in imported
    assert not imported & {"typer", "rich", "psycopg", "construct", "pydantic", "pyroaring", "hashlib", "logging"}


# ---- ahead of what is asked for


class ServerInRecovery:
    """Asks for segments as a server does: through a shell, in its data directory, for pg_wal/RECOVERYXLOG."""

    def __init__(self, repo: Path, address: Address | None = None) -> None:
        """``repo`` is where the data directory is put beside, ``address`` where WAL comes from, if not from there."""
        self.directory = repo.parent / "data"
        (self.directory / "pg_wal").mkdir(parents=True)
        self.spool = self.directory / "pg_wal" / "RECOVERYXLOG.pgwal"
        (self.directory / "recovery.signal").touch()
        self._command = restore_command(place_at(repo if address is None else address))

    def ask_python_alone(self) -> None:
        """Ask as if what is there had come since the shell looked."""
        self._command = self._command.partition(" || ")[2]

    def accept_gaps(self, repo: Path) -> None:
        """Ask as a server that was restored with --to-gap."""
        self._command = restore_command(place_at(repo), to_gap=True)

    def ask(self, name: str, file_name: str = "RECOVERYXLOG", *, without_python: bool = False) -> tuple[int, bytes]:
        """Return the exit code, and what is there afterwards."""
        destination = self.directory / "pg_wal" / file_name
        destination.unlink(missing_ok=True)
        command = self._command.replace("%f", name).replace("%p", f"pg_wal/{file_name}")
        if without_python:
            command = command.replace(sys.executable, "false")
        finished = subprocess.run(command, shell=True, cwd=self.directory, capture_output=True, timeout=60)
        return finished.returncode, destination.read_bytes() if destination.exists() else b""

    def waiting(self) -> list[str]:
        """Return the segments that are at hand."""
        try:
            return sorted(path.name for path in self.spool.iterdir() if len(path.name) == 24)
        except FileNotFoundError:
            return []

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, f"at hand are {self.waiting()}"
            time.sleep(0.01)

    def end_recovery(self) -> None:
        (self.directory / "recovery.signal").unlink()
        self.wait_until(lambda: not self.spool.exists())


@pytest.fixture
def server(repo: Path) -> Iterator[ServerInRecovery]:
    server = ServerInRecovery(repo)
    yield server
    (server.directory / "recovery.signal").unlink(missing_ok=True)
    server.wait_until(lambda: not server.spool.exists())


def segment_name(number: int, timeline_id: int = 1) -> str:
    return f"{timeline_id:08X}00000000{number:08X}"


def archive(repo: Path, *numbers: int) -> None:
    for number in numbers:
        (repo / "wal" / segment_name(number)).write_bytes(segment(number=number))


def test_segments_that_follow_are_at_hand(repo: Path, server: ServerInRecovery) -> None:
    archive(repo, *range(3, 90))
    assert server.ask(segment_name(3)) == (0, segment(number=3))
    # One at first, and more with each that is taken, up to 64 MB.
    for number in range(4, 20):
        ahead = [segment_name(n) for n in range(number, number + min(1 << (number - 4), 64))]
        server.wait_until(lambda ahead=ahead: server.waiting() == ahead)  # type: ignore[misc]
        assert server.ask(segment_name(number), without_python=True) == (0, segment(number=number))
    server.end_recovery()


def test_nothing_partial_and_nothing_behind_a_gap_is_fetched_ahead(repo: Path, server: ServerInRecovery) -> None:
    archive(repo, 3, 4, 5, 7)
    (repo / "wal" / f"{segment_name(6)}.partial").write_bytes(segment(number=6, pages=3))
    assert server.ask(segment_name(3))[0] == 0
    server.wait_until(lambda: server.waiting() == [segment_name(4)])
    assert server.ask(segment_name(4), without_python=True)[0] == 0
    server.wait_until(lambda: server.waiting() == [segment_name(5)])
    assert server.ask(segment_name(5), without_python=True)[0] == 0
    # With nothing more to be had the process ends, and leaves nothing.
    server.wait_until(lambda: not server.spool.exists())
    # Recovery would end with the partial one, and it must not while there is more.
    assert server.ask(segment_name(6)) == (FATAL, b"")
    assert server.ask(segment_name(7)) == (0, segment(number=7))
    assert server.ask(segment_name(8))[0] == NOT_FOUND


def test_a_gap_stops_recovery_unless_it_was_accepted(repo: Path, server: ServerInRecovery) -> None:
    archive(repo, 3, 5)
    (repo / "wal" / f"{segment_name(7)}.partial").write_bytes(segment(number=7, pages=3))
    (repo / "wal" / "00000002.history").write_bytes(b"1\t0/780000\tno recovery target specified\n")
    for number, code in ((3, 0), (4, FATAL), (5, 0), (6, FATAL), (7, 0), (8, NOT_FOUND)):
        assert server.ask(segment_name(number))[0] == code
    (repo / "wal" / segment_name(7, 2)).write_bytes(segment(2, number=7))
    (repo / "wal" / segment_name(9, 2)).write_bytes(segment(2, number=9))
    # The beginning of timeline 2 is in segment 7.
    for number, code in ((6, NOT_FOUND), (7, 0), (8, FATAL), (9, 0), (10, NOT_FOUND)):
        assert server.ask(segment_name(number, 2))[0] == code
    outcome = run_pgwal("fetch-wal", "--repo", repo, segment_name(4), repo.parent / "x")
    assert (outcome.code, outcome.hints) == (
        FATAL,
        ["Bring the segment back. A restore with --to-gap accepts that recovery ends there."],
    )
    server.accept_gaps(repo)
    for number in (4, 6, 8):
        assert server.ask(segment_name(number))[0] == NOT_FOUND
    assert server.ask(segment_name(8, 2))[0] == NOT_FOUND
    words = ["fetch-wal", segment_name(4), repo.parent / "x", "--to-gap", "--repo", repo]
    assert run_pgwal(*words).code == NOT_FOUND


def test_what_comes_while_python_starts_is_taken(repo: Path, server: ServerInRecovery) -> None:
    archive(repo, 3, 4)
    assert server.ask(segment_name(3))[0] == 0
    server.wait_until(lambda: segment_name(4) in server.waiting())
    (repo / "wal" / segment_name(4)).unlink()
    server.ask_python_alone()
    assert server.ask(segment_name(4)) == (0, segment(number=4))
    assert server.ask(segment_name(4))[0] == NOT_FOUND


def test_damage_ahead_is_met_when_it_is_asked_for(repo: Path, server: ServerInRecovery) -> None:
    archive(repo, 3, 4, 6)
    (repo / "wal" / segment_name(5)).write_bytes(segment(number=6))
    for number in (3, 4):
        assert server.ask(segment_name(number)) == (0, segment(number=number))
    assert server.ask(segment_name(5)) == (FATAL, b"")
    assert server.ask(segment_name(6)) == (0, segment(number=6))


def test_process_ahead_follows_to_where_the_server_goes(repo: Path, server: ServerInRecovery) -> None:
    archive(repo, *range(3, 200))
    (repo / "wal" / segment_name(100, 2)).write_bytes(segment(2, number=100))
    (repo / "wal" / segment_name(101, 2)).write_bytes(segment(2, number=101))
    server.ask(segment_name(3))
    server.wait_until(lambda: server.waiting() == [segment_name(4)])
    server.ask(segment_name(100, 2))
    server.wait_until(lambda: server.waiting() == [segment_name(101, 2)])
    assert server.ask(segment_name(60)) == (0, segment(number=60))
    server.wait_until(lambda: server.waiting()[:1] == [segment_name(61)])


def test_what_a_killed_process_left_is_removed(repo: Path, server: ServerInRecovery) -> None:
    server.spool.mkdir()
    for name in (segment_name(9), f"{segment_name(10)}.unfinished", "asked"):
        (server.spool / name).write_bytes(b"left")
    assert server.ask("00000002.history", "RECOVERYHISTORY")[0] == NOT_FOUND
    assert not server.spool.exists()
    server.spool.mkdir()
    (server.spool / segment_name(9)).write_bytes(b"left")
    archive(repo, 3, 4)
    assert server.ask(segment_name(3)) == (0, segment(number=3))
    server.wait_until(lambda: server.waiting() == [segment_name(4)])


def test_process_ahead_ends_when_nobody_takes_anything(repo: Path, server: ServerInRecovery) -> None:
    """A server that was killed leaves all the signs of recovery."""
    archive(repo, 3, 4)
    server.ask(segment_name(3))
    server.wait_until(lambda: server.waiting() == [segment_name(4)])
    server.wait_until(lambda: not server.spool.exists())


def test_nothing_is_fetched_ahead_for_who_does_not_look(repo: Path, server: ServerInRecovery) -> None:
    """pg_rewind wants each file under its own name."""
    archive(repo, 3, 4, 5)
    assert server.ask(segment_name(3), segment_name(3)) == (0, segment(number=3))
    assert [path.name for path in (server.directory / "pg_wal").iterdir()] == [segment_name(3)]


def test_process_ahead_that_is_told_to_end_leaves_nothing(repo: Path, server: ServerInRecovery) -> None:
    archive(repo, 3, 4)
    server.ask(segment_name(3))
    server.wait_until(lambda: server.waiting() == [segment_name(4)])
    subprocess.run(["pkill", "-TERM", "-f", f"fetch-wal --repo {repo} --prefetch"], check=True)
    server.wait_until(lambda: not server.spool.exists())


def test_what_cannot_be_imported_stops_recovery(repo: Path, tmp_path: Path) -> None:
    """A package that is being replaced, say; with exit code 1 the server would take its WAL to end here."""
    (tmp_path / "broken" / "pgwal").mkdir(parents=True)
    (tmp_path / "broken" / "pgwal" / "__init__.py").write_text("raise ImportError('half of it is there')")
    (repo / "wal" / NAME).write_bytes(segment())
    words = [sys.executable, "-m", "pgwal_cli", "fetch-wal", "--repo", repo, NAME, tmp_path / "x"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "broken")}
    finished = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (FATAL, "pgwal: error: ImportError: half of it is there\n")


def test_spool_that_cannot_be_made_is_done_without(repo: Path, server: ServerInRecovery) -> None:
    archive(repo, 3, 4)
    server.spool.touch()
    for number in (3, 4):
        assert server.ask(segment_name(number)) == (0, segment(number=number))
    server.spool.unlink()
