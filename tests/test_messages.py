"""What is logged: with times or not, quietly, and how far a command is where no bar can be drawn."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
from pathlib import Path

import pytest
from keeping.stored_repository import build_chains
from pgwal_process import PGWAL, environment, run_pgwal

from pgwal_cli import progress
from pgwal_cli.output import log_to_stderr

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d pgwal: "


def test_quietly_and_with_times(tmp_path: Path) -> None:
    repo = build_chains(tmp_path / "repo").root
    command = ["restore", "latest", "--repo", repo]
    plain = run_pgwal(*command, "-D", tmp_path / "plain")
    assert (plain.code, plain.stderr.startswith("pgwal: restoring backup")) == (0, True)
    timed = run_pgwal(*command, "-D", tmp_path / "timed", "--log-times")
    assert all(re.match(TIME, line) for line in timed.stderr.splitlines()), timed.stderr
    quiet = run_pgwal(*command, "-D", tmp_path / "quiet", "-q")
    assert (quiet.code, "restoring backup" in quiet.stderr) == (0, False)


def test_a_line_now_and_then_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log_to_stderr()
    monkeypatch.setattr(progress, "PROGRESS_LINE_S", 0.0)
    with progress.progress_bar("copying", True) as show:
        assert show is not None
        show(5 << 20, 50 << 20)
    assert capsys.readouterr().err == "pgwal: copying: 5120 kB of 50 MB\n"


def test_messages_stand_above_the_bar_of_a_terminal(tmp_path: Path) -> None:
    repo = build_chains(tmp_path / "repo").root
    leader, follower = pty.openpty()
    command = [*PGWAL, "restore", "latest", "--repo", repo, "-D", tmp_path / "restored", "-P"]
    variables = environment(TERM="xterm", COLUMNS="200")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=follower, env=variables) as ran:
        os.close(follower)
        shown = b""
        while select.select([leader], [], [], 60)[0]:
            try:
                shown += os.read(leader, 4096)
            except OSError:
                break  # So a terminal ends on Linux.
    os.close(leader)
    assert ran.returncode == 0, shown
    # Nothing of the bar is before the message, in its line.
    lines = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown).replace(b"\r", b"\n").splitlines()
    assert any(line.startswith(b"pgwal: restoring backup") for line in lines), shown
