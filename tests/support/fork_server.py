"""Run pgwal commands as forks of one process that has imported everything already: see forked_commands.py.

Importing is most of what a command of the tests costs.  A fork is a process as any other: it has arguments, environment
and exit code of its own, and ends as processes do.  Linux only: elsewhere libraries may not live on in a fork.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from support.json_documents import hold_to_schemas

PROGRAM = Path(__file__).with_name("forked_commands.py")


class Ended(NamedTuple):
    """How a command ended; not ``by_itself`` when it took too long, and the stacks of its threads are on stderr."""

    code: int
    stdout: str
    stderr: str
    by_itself: bool


class ForkServer:
    """Runs one command at a time; a context, or to be closed."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="pgwal-forks-")
        # Of a session of its own: an interruption of the tests is not one of their commands.
        self._process = subprocess.Popen(
            [sys.executable, "-P", PROGRAM],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            start_new_session=True,
        )
        assert self._answer() == "ready\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.communicate()
        self._directory.cleanup()

    def run(
        self, arguments: Sequence[str | Path], environment: Mapping[str, str], timeout_s: float, **faults: Any
    ) -> Ended:
        """Run a command to its end; ``faults`` are FaultySystem's."""
        stdout, stderr = (Path(self._directory.name, name) for name in ("stdout", "stderr"))
        request = {
            "arguments": [str(argument) for argument in arguments],
            "environment": dict(environment),
            "umask": _umask(),
            "stdout": str(stdout),
            "stderr": str(stderr),
            "timeout_s": timeout_s,
            **faults,
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._answer())
        ended = Ended(answer["code"], stdout.read_text(), stderr.read_text(), answer["ended"])
        if ended.by_itself:
            hold_to_schemas(request["arguments"], ended.code, ended.stdout, ended.stderr)
        return ended

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def _umask() -> int:
    """Return the umask of this process, which can be asked for without being changed."""
    fields = Path("/proc/self/status").read_text().splitlines()
    return next(int(value, 8) for name, _, value in (field.partition(":") for field in fields) if name == "Umask")
