"""Run the real ``pgwal`` command as a process of its own, and check how it failed."""

from __future__ import annotations

import atexit
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from support.fork_server import ForkServer
from support.json_documents import hold_to_schemas

from pgwal_cli.output import ERROR_LINE

PGWAL = [sys.executable, "-P", "-m", "pgwal_cli"]
TIMEOUT_S = 60

_one_at_a_time = threading.Lock()

_PEAK = """
import resource, sys
from pathlib import Path
from pgwal_cli.main import run

assert run(sys.argv[1:]) == 0
status = Path("/proc/self/status")
if status.exists():
    # What getrusage() says begins with the memory of the process that started this one.
    print(int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20))
"""


@dataclass(frozen=True)
class Outcome:
    """What a process ended with."""

    code: int
    stdout: str
    stderr: str

    @property
    def errors(self) -> list[str]:
        return self._after("pgwal: error: ") + [str(error["message"]) for error in self._as_json()]

    @property
    def hints(self) -> list[str]:
        return self._after("pgwal: hint: ") + [str(error["hint"]) for error in self._as_json() if error["hint"]]

    def _as_json(self) -> list[dict[str, object]]:
        return [json.loads(line)["error"] for line in self.stderr.splitlines() if line.startswith(ERROR_LINE)]

    def _after(self, prefix: str) -> list[str]:
        return [line.removeprefix(prefix) for line in self.stderr.splitlines() if line.startswith(prefix)]


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without what would change where or as whom pgwal connects."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "PGWAL"))}
    return kept | {"LC_ALL": "C", "HOME": "/nonexistent"} | variables


def start_pgwal(
    *args: str | Path, env: Mapping[str, str] | None = None, prefix: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """Start pgwal without a terminal, and away from the checkout."""
    return subprocess.Popen(
        [*prefix, *PGWAL, *map(str, args)],
        env=environment(**env or {}),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout_s: float = TIMEOUT_S) -> Outcome:
    """Wait for a process that was started."""
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert isinstance(process.args, list)
    words = process.args[process.args.index(PGWAL[-1]) + 1 :] if PGWAL[-1] in process.args else []
    hold_to_schemas(words, process.returncode, stdout, stderr)
    return Outcome(process.returncode, stdout, stderr)


def run_pgwal(*args: str | Path, env: Mapping[str, str] | None = None, prefix: Sequence[str] = ()) -> Outcome:
    """Run pgwal to its end; ``prefix`` is a command that runs the one that follows it."""
    # What Python or the system react to when a process starts needs a process that starts.
    can_be_forked = not prefix and all(name.startswith("PG") and name != "PGWAL_SCAN" for name in env or {})
    if not can_be_forked or not sys.platform.startswith("linux") or not _one_at_a_time.acquire(blocking=False):
        return finish(start_pgwal(*args, env=env, prefix=prefix))
    try:
        ended = _fork_server().run(args, environment(**env or {}), TIMEOUT_S)
    finally:
        _one_at_a_time.release()
    assert ended.by_itself, f"{args} hangs:\n{ended.stderr}"
    return Outcome(ended.code, ended.stdout, ended.stderr)


@cache
def _fork_server() -> ForkServer:
    server = ForkServer(environment())
    atexit.register(server.close)
    return server


def succeed(*args: str | Path, env: Mapping[str, str] | None = None) -> str:
    """Run pgwal, which must succeed, and return what it printed."""
    outcome = run_pgwal(*args, env=env)
    assert outcome.code == 0, outcome.stderr
    return outcome.stdout


def assert_failed(outcome: Outcome, code: int, cause: str, hint: str | None = None) -> None:
    """Check exit code and messages: one error that names the cause, a hint with the way out, and nothing raw.

    ``cause`` and ``hint`` are patterns that are searched for.
    """
    assert outcome.code == code, f"exit code {outcome.code}\n{outcome.stderr}"
    assert_nothing_raw(outcome)
    assert len(outcome.errors) == 1, outcome.stderr
    assert re.search(cause, outcome.errors[0]), outcome.stderr
    assert len(outcome.hints) <= 1, outcome.stderr
    if hint is not None:
        assert outcome.hints, f"no hint\n{outcome.stderr}"
        assert re.search(hint, outcome.hints[0]), outcome.stderr


def assert_nothing_raw(outcome: Outcome) -> None:
    """Check that stderr has messages of pgwal alone: no traceback, no warning of Python's, no broken line."""
    assert all(line.startswith(("pgwal: ", ERROR_LINE)) for line in outcome.stderr.splitlines()), outcome.stderr


def peak_mb(*command: str | Path) -> float:
    """Return the most memory that a pgwal process had."""
    process = [sys.executable, "-c", _PEAK, *map(str, command)]
    return float(subprocess.check_output(process, env=environment(), cwd="/", text=True).splitlines()[-1])
