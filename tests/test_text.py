"""Names and labels of any kind, under any locale, with a pipe as output: no command ends for its text."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from pgwal_process import PGWAL, environment

from pgwal_cli.throwaway_server import ThrowawayServer

LOCALES = {
    "C": {"LC_ALL": "C"},
    "ASCII": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ISO-8859-1": {"LC_ALL": "C", "PYTHONIOENCODING": "iso-8859-1:strict"},
    "strict UTF-8": {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8:strict"},
}


def run(*args: str | bytes | Path, locale: str) -> subprocess.CompletedProcess[bytes]:
    command = [os.fsencode(arg) for arg in (*PGWAL, *args)]
    return subprocess.run(command, env=environment(**LOCALES[locale]), capture_output=True, cwd="/", timeout=120)


@pytest.mark.postgres(18)
@pytest.mark.parametrize("locale", LOCALES)
def test_every_command_works_under_any_locale(server: ThrowawayServer, scratch: Path, locale: str) -> None:
    repo = scratch / "repo-\u00fc\u4e2d"
    for name in ("umlaut-\u00fc".encode(), b"latin-\xfc", "cjk-\u4e2d".encode()):
        with open(os.fsencode(server.data_directory) + b"/" + name, "wb") as file:  # noqa: PTH123 (bytes)
            file.write(b"content")
    where: list[str | Path] = ["--repo", repo]
    # Over SQL, names that are no text in the database's encoding are refused.
    taking: list[str | Path] = [*where, "-d", server.conninfo, "-c", "fast", "--pgdata", server.data_directory]
    taken = run("full", *taking, "-l", "L\u00e4bel \u4e2d".encode(), "--json", locale=locale)
    assert taken.returncode == 0, taken.stderr
    backup = json.loads(taken.stdout)["id"]
    target, combined = scratch / "target-\u00fc", scratch / "combined-\u00fc"
    for command in (
        ["list", *where],
        ["list", *where, "--json"],
        ["show", backup, *where],
        ["show", backup, *where, "--json"],
        ["status", *where, "-d", server.conninfo],
        ["verify", *where],
        ["combine", backup, *where, "-o", combined],
        ["restore", backup, *where, "-D", target],
        ["incremental", *taking, "--dry-run"],
        ["expire", *where, "--keep-full", "1"],
    ):
        outcome = run(*command, locale=locale)
        assert outcome.returncode == 0, (command, outcome)
        assert b"Traceback" not in outcome.stderr
    for name in ("umlaut-\u00fc".encode(), b"latin-\xfc", "cjk-\u4e2d".encode()):
        assert Path(os.fsdecode(os.fsencode(target) + b"/" + name)).read_bytes() == b"content"


@pytest.mark.parametrize("locale", ["C", "ASCII"])
def test_bytes_that_are_no_text_are_refused_where_text_is_needed(tmp_path: Path, locale: str) -> None:
    no_text = b"\xfc"
    for command in (
        ["full", "--repo", tmp_path / "repo", "-l", no_text],
        ["full", "--repo", tmp_path / "repo", "-U", no_text],
        ["check", "-d", no_text],
        ["stream", "--repo", tmp_path / "repo", "-S", no_text, "-h", "/nonexistent"],
        ["show", no_text, "--repo", tmp_path],
        ["grants", "--role", no_text, "-h", "/nonexistent"],
    ):
        outcome = run(*command, locale=locale)
        assert outcome.returncode in (1, 2, 3), outcome
        assert all(line.startswith(b"pgwal: ") for line in outcome.stderr.splitlines()), outcome.stderr
