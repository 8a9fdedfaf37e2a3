"""A server, or what stands before it, that answers what no server would: a clear error, soon, and nothing is harmed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from fix_servers import ServerFactory, Templates
from pgwal_process import Outcome, assert_failed, assert_nothing_raw, run_pgwal, succeed
from support.lying_server import (
    Change,
    LyingServer,
    end_of_timeline_answer,
    message,
    row_body,
    row_values,
    rows_answer,
)

from pgwal_cli.server_installation import ServerInstallation
from pgwal_cli.throwaway_server import ThrowawayServer

pytestmark = pytest.mark.postgres(18)

FAILED = 1
SMALL_SEGMENTS = ("--wal-segsize=1",)


@pytest.fixture(scope="module")
def server(
    installation: ServerInstallation, server_templates: Templates, session_scratch: Path
) -> Iterator[ThrowawayServer]:
    with ServerFactory(installation, server_templates, session_scratch / "lying") as factory:
        yield factory(initdb_args=SMALL_SEGMENTS, settings={"wal_keep_size": "100MB"})


@pytest.fixture
def repo(server: ThrowawayServer, tmp_path: Path) -> Path:
    """A repository with WAL in whole segments."""
    streaming = ["stream", "--repo", tmp_path / "repo", "-d", server.conninfo, "--once", "-Z", "none"]
    with server.connect() as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS t (i int)")
        # At the very start of a segment, there is nothing to receive yet.
        connection.execute("INSERT INTO t VALUES (1)")
        succeed(*streaming)
        for _ in range(2):
            connection.execute("INSERT INTO t SELECT generate_series(1, 100)")
            connection.execute("SELECT pg_switch_wal()")
    succeed(*streaming)
    return tmp_path / "repo"


def contents(repo: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (repo / "wal").iterdir() if not path.suffix}


IDENTITY = ("systemid", "timeline", "xlogpos", "dbname")
NO_NUMBERS = (b"", b"many", b"-1", b"0x7", b"99999999999999999999999", b"\xff\xfe", "٣".encode(), b"1e3", None)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize("column", range(3), ids=IDENTITY[:3])
def test_an_identity_that_is_none(server: ThrowawayServer, tmp_path: Path, column: int, value: bytes | None) -> None:
    def change(query: str, kind: bytes, body: bytes) -> bytes:
        if query != "IDENTIFY_SYSTEM" or kind != b"D":
            return body
        values = row_values(body)
        values[column] = value
        return row_body(values)

    with LyingServer(server, change=change) as liar:
        outcome = run_pgwal("stream", "--repo", tmp_path / "repo", "-d", liar.conninfo, "--once")
    assert_failed(outcome, FAILED, "IDENTIFY_SYSTEM|invalid LSN")
    assert not (tmp_path / "repo").exists()


def on_timeline(timeline_id: bytes) -> Change:
    """Have the server say that it is on a timeline."""

    def change(query: str, kind: bytes, body: bytes) -> bytes:
        if query != "IDENTIFY_SYSTEM" or kind != b"D":
            return body
        return row_body([row_values(body)[0], timeline_id, *row_values(body)[2:]])

    return change


def test_a_timeline_above_2_31_as_older_servers_have_it(server: ThrowawayServer, tmp_path: Path) -> None:
    """13 to 15 answer with a signed number."""
    with LyingServer(server, change=on_timeline(b"-2147483647")) as liar:
        outcome = run_pgwal("stream", "--repo", tmp_path / "repo", "-d", liar.conninfo, "--once")
    assert_failed(outcome, FAILED, "80000001.history")
    assert "TIMELINE_HISTORY 2147483649" in liar.queries


@pytest.mark.parametrize(("next_timeline"), [b"1", b"0", b"7", b"x", b"4294967296"])
def test_a_timeline_that_ends_where_none_does(server: ThrowawayServer, repo: Path, next_timeline: bytes) -> None:
    before = contents(repo)
    for lsn in (b"0/0", b"0/1", b"FFFFFFFF/FFFFFFFF", b"elsewhere"):

        def answer(query: str, lsn: bytes = lsn) -> list[bytes] | None:
            if not query.startswith("START_REPLICATION"):
                return None
            return end_of_timeline_answer(next_timeline, lsn)

        # What a server says that is just being promoted is no reason to end, but where nothing is tried again.
        once = ["-n"] if next_timeline == b"0" else []
        with LyingServer(server, answer) as liar:
            outcome = run_pgwal("stream", "--repo", repo, "-d", liar.conninfo, "-Z", "none", *once)
        assert outcome.code in (FAILED, 4), outcome
        assert ("is just being promoted" in outcome.stderr) == (next_timeline == b"0"), outcome
        assert_nothing_raw(outcome)
        assert len(liar.queries) < 50
    assert contents(repo) == before


def test_a_history_that_sends_the_receiver_back(server: ThrowawayServer, repo: Path) -> None:
    """The server is on timeline 2, says that it ends, and that 1 follows: what is here whole is not written again."""
    first = min(contents(repo))
    second = "00000002" + first[8:]
    (repo / "wal" / second).write_bytes((repo / "wal" / first).read_bytes())
    before = contents(repo)
    start = f"0/{int(first[16:], 16) << 20:X}".encode()

    def answer(query: str) -> list[bytes] | None:
        if query == "IDENTIFY_SYSTEM":
            with server.connect() as connection:
                (identifier,) = connection.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone()
            return rows_answer(IDENTITY, [identifier.encode(), b"2", b"0/FFFFFF0", None])
        if query.startswith("TIMELINE_HISTORY"):
            history = b"1\t" + start + b"\tno reason\n"
            return rows_answer(["filename", "content"], [b"00000002.history", history])
        if query.startswith("START_REPLICATION"):
            return end_of_timeline_answer(b"1", start)
        return None

    with LyingServer(server, answer) as liar:
        outcome = run_pgwal("stream", "--repo", repo, "-d", liar.conninfo, "-Z", "none")
    assert outcome.code in (FAILED, 4), outcome
    assert_nothing_raw(outcome)
    assert len(liar.queries) < 50
    assert {name: content for name, content in contents(repo).items() if name in before} == before


def test_histories_that_are_none(server: ThrowawayServer, repo: Path) -> None:
    for history in (b"\xff", b"1\t0/x\n", b"2\t0/1\n", b"1\t0/1\n" * 3, None, b"1 0/1\n" + b"#" * (200 << 20)):

        def answer(query: str, history: bytes | None = history) -> list[bytes] | None:
            if query.startswith("TIMELINE_HISTORY"):
                return rows_answer(["filename", "content"], [b"x", history])
            return None

        with LyingServer(server, answer, on_timeline(b"2")) as liar:
            outcome = run_pgwal("stream", "--repo", repo, "-d", liar.conninfo, "--once")
        assert outcome.code in (FAILED, 4), (history and history[:20], outcome)
        assert_nothing_raw(outcome)


def test_a_history_of_gigabytes(server: ThrowawayServer, repo: Path) -> None:
    """Three of them, in rows, are neither held in memory nor waited for; a single row libpq may read at once."""
    described, sent = rows_answer(["filename", "content"])[0], [0]
    piece = message(b"D", row_body([b"x", bytes(1 << 20)]))

    def pieces() -> Iterator[bytes]:
        yield described
        while sent[0] < 3 << 30:
            yield piece
            sent[0] += len(piece)

    def answer(query: str) -> Iterator[bytes] | None:
        return pieces() if query.startswith("TIMELINE_HISTORY") else None

    with LyingServer(server, answer, on_timeline(b"2")) as liar:
        outcome = run_pgwal("stream", "--repo", repo, "-d", liar.conninfo, "--once")
    assert_failed(outcome, FAILED, "the server sends more than 134217728 bytes at once")
    assert sent[0] < 1 << 30


LIES = (None, b"", b"\xff\xfe", b"9" * 30, b"-1", b"0", b"x" * 5000)


def lie_at_random(random: Random, chance: float) -> Change:
    def change(_: str, kind: bytes, body: bytes) -> bytes:
        if kind != b"D" or random.random() > chance:
            return body
        values = row_values(body)
        if values:
            at = random.randrange(len(values))
            values[at] = random.choice(
                (None, b"", b"\xff\xfe", b"9" * 30, b"-1", b"0", b"x" * 5000, random.randbytes(8))
            )
        return row_body(values)

    return change


@pytest.mark.parametrize("command", ["check", "grants", "status", "stream", "full", "incremental", "backup"])
def test_answers_at_random(server: ThrowawayServer, repo: Path, command: str) -> None:
    arguments: dict[str, list[str | Path]] = {
        "check": ["check"],
        "grants": ["grants", "--role", "postgres"],
        "status": ["status", "--repo", repo],
        "stream": ["stream", "--repo", repo, "--once", "-n"],
    }
    taking: list[str | Path] = [command, "--repo", repo, "-c", "fast", "-j", "2"]
    if command not in arguments:
        succeed("full", "--repo", repo, "-d", server.conninfo, "-c", "fast")
    for seed in range(5):
        random = Random(f"{command} {seed}")
        with LyingServer(server, change=lie_at_random(random, random.choice((0.02, 0.2, 1)))) as liar:
            outcome = run_pgwal(*arguments.get(command, taking), "-d", liar.conninfo)
        check(outcome, f"{command}, seed {seed}")


def check(outcome: Outcome, what: str) -> None:
    assert outcome.code in (0, 1, 3, 4, 5, 6), (what, outcome)
    assert "Traceback" not in outcome.stderr, (what, outcome.stderr)
    assert_nothing_raw(outcome)
