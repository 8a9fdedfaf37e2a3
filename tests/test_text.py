"""Names and labels of any kind, under any locale, with a pipe as output: no command ends for its text."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pgwal_process import PGWAL, environment

from pgwal_cli.throwaway_server import ThrowawayServer

LOCALES = {
    "C": {"LC_ALL": "C"},
    "ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ISO-8859-1": {"LC_ALL": "pgwal.ISO-8859-1"},
    "ISO-8859-1 output": {"LC_ALL": "C", "PYTHONIOENCODING": "iso-8859-1:strict"},
    "strict UTF-8": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8:strict"},
}


@pytest.fixture(scope="session")
def locales(session_scratch: Path) -> Path:
    """Where the C library finds the locale that few machines have: one of a single-byte encoding."""
    localedef = shutil.which("localedef")
    if localedef is None:
        pytest.skip("no localedef, which makes locales")
    directory = session_scratch / "locales"
    directory.mkdir()
    # It makes a locale with warnings of what hardly matters, and then ends with 1.
    made = subprocess.run(
        [localedef, "--no-archive", "-c", "-i", "POSIX", "-f", "ISO-8859-1", directory / "pgwal.ISO-8859-1"],
        capture_output=True,
        check=False,
    )
    if not (directory / "pgwal.ISO-8859-1").exists():
        pytest.skip(f"localedef has no ISO-8859-1 here: {made.stderr!r}")
    # On musl and macOS, say, it is not found there: then nothing would be tested.
    query = "import locale; locale.setlocale(locale.LC_ALL, ''); print(locale.nl_langinfo(locale.CODESET))"
    variables = environment(**LOCALES["ISO-8859-1"], LOCPATH=str(directory))
    found = subprocess.run([sys.executable, "-c", query], env=variables, capture_output=True, text=True, check=False)
    if found.stdout.strip() != "ISO-8859-1":
        pytest.skip(f"the C library does not take a locale from LOCPATH: {found}")
    return directory


@pytest.fixture(params=LOCALES if "PGWAL_LARGE_TESTS" in os.environ else ["ASCII", "ISO-8859-1 output", "strict UTF-8"])
def variables(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment of one of the locales."""
    chosen: dict[str, str] = LOCALES[request.param]
    if request.param == "ISO-8859-1":
        return chosen | {"LOCPATH": str(request.getfixturevalue("locales"))}
    return chosen


def run(*args: str | bytes | Path, variables: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    command = [os.fsencode(arg) for arg in (*PGWAL, *args)]
    return subprocess.run(command, env=environment(**variables), capture_output=True, cwd="/", timeout=120)


@pytest.mark.postgres(18)
def test_every_command_works_under_any_locale(
    server: ThrowawayServer, scratch: Path, variables: dict[str, str]
) -> None:
    repo = scratch / "repo-\u00fc\u4e2d"
    for name in ("umlaut-\u00fc".encode(), b"latin-\xfc", "cjk-\u4e2d".encode()):
        with open(os.fsencode(server.data_directory) + b"/" + name, "wb") as file:  # noqa: PTH123 (bytes)
            file.write(b"content")
    where: list[str | Path] = ["--repo", repo]
    # Over SQL, names that are no text in the database's encoding are refused.
    taking: list[str | Path] = [*where, "-d", server.conninfo, "-c", "fast", "--pgdata", server.data_directory]
    taken = run("full", *taking, "-l", "L\u00e4bel \u4e2d".encode(), "--json", variables=variables)
    assert taken.returncode == 0, taken.stderr
    backup = json.loads(taken.stdout)["id"]
    target, combined = scratch / "target-\u00fc", scratch / "combined-\u00fc"
    for command in (
        ["list", *where],
        ["list", *where, "--json"],
        ["show", backup, *where],
        ["show", backup, *where, "--json"],
        ["status", *where, "-d", server.conninfo],
        ["report", *where, "-o", scratch / "report-\u00fc.html", "-d", server.conninfo],
        ["check", "-d", server.conninfo],
        ["grants", "--role", "r\u00f6le-\u4e2d", "-d", server.conninfo],
        ["stream", *where, "-d", server.conninfo, "--once"],
        ["summarize", repo / "wal", "-o", scratch / "summaries-\u00fc"],
        ["verify", *where],
        ["combine", backup, *where, "-o", combined],
        ["restore", backup, *where, "-D", target],
        ["incremental", *taking, "--dry-run"],
        ["expire", *where, "--keep-full", "1"],
    ):
        outcome = run(*command, variables=variables)
        assert outcome.returncode == 0, (command, outcome)
        assert b"Traceback" not in outcome.stderr
    for name in ("umlaut-\u00fc".encode(), b"latin-\xfc", "cjk-\u4e2d".encode()):
        assert Path(os.fsdecode(os.fsencode(target) + b"/" + name)).read_bytes() == b"content"


def test_bytes_that_are_no_text_are_refused_where_text_is_needed(tmp_path: Path, variables: dict[str, str]) -> None:
    no_text = b"\xfc"
    for command in (
        ["full", "--repo", tmp_path / "repo", "-l", no_text],
        ["full", "--repo", tmp_path / "repo", "-U", no_text],
        ["check", "-d", no_text],
        ["stream", "--repo", tmp_path / "repo", "-S", no_text, "-h", "/nonexistent"],
        ["show", no_text, "--repo", tmp_path],
        ["grants", "--role", no_text, "-h", "/nonexistent"],
    ):
        outcome = run(*command, variables=variables)
        assert outcome.returncode in (1, 2, 3), outcome
        assert all(line.startswith(b"pgwal: ") for line in outcome.stderr.splitlines()), outcome.stderr


def test_control_characters_do_not_steer_a_terminal(tmp_path: Path) -> None:
    name = "\x1b[2Jcleared\x07"
    (tmp_path / "pgwal.json").write_text("{}")
    for command in (["show", name, "--repo", tmp_path / name], ["restore", "-D", name, "--repo", tmp_path / name]):
        outcome = run(*command, variables={})
        assert outcome.returncode == 1, outcome
        assert b"\\x1b[2Jcleared\\x07" in outcome.stderr
        assert b"\x1b" not in outcome.stderr
