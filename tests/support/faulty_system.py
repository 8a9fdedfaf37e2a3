"""A file system and a network that refuse something while a pgwal command runs: any one call, or all from there on.

``faulty_system.c`` stands between the command and the C library, so that compiled code and libpq meet it as well.
An ``Operation`` names what is done by what it is done to, with numbers left out: it is the same in every run, whatever
threads do in between.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple, Self

from pgwal_process import Outcome, environment
from support.fork_server import ForkServer

_SUPPORT = Path(__file__).parent
SHORT = -1
"""No error: the operation does a part of what was asked for."""
TIMEOUT_S = 30.0
"""Commands end within a second or two, but machines are busy."""

_SINGLE = {
    "open": (errno.EACCES, errno.EMFILE, errno.EIO),
    "read": (errno.EIO, SHORT),
    "write": (errno.EIO, SHORT),
    "fsync": (errno.EIO,),
    "rename": (errno.EIO,),
    "connect": (errno.ECONNREFUSED,),
    "thread": (errno.EAGAIN,),
    "recv": (errno.ECONNRESET, SHORT),
    "send": (errno.EPIPE, SHORT),
}
_LASTING = {
    "write": errno.ENOSPC,
    "open": errno.EROFS,
    "fsync": errno.EIO,
    "connect": errno.ECONNREFUSED,
    "thread": errno.EAGAIN,
}


class Operation(NamedTuple):
    """Calls of one kind on files of one name, or on sockets."""

    kind: str
    name: str


class Fault(NamedTuple):
    """The ``nth`` call of an operation ends with an error of errno's; ``lasts`` has all of the kind do so after it."""

    operation: Operation
    nth: int
    error: int
    lasts: bool = False

    def __str__(self) -> str:
        error = "short" if self.error == SHORT else errno.errorcode[self.error]
        return f"{self.operation.kind} {self.operation.name} {self.nth}: {error}{' from there on' * self.lasts}"


def choose_faults(operations: Counter[Operation], count: int, random: Random) -> list[Fault]:
    """Choose faults of all kinds of calls, and of as many operations as ``count`` has room for."""
    by_kind: dict[str, list[Operation]] = {}
    for operation in sorted(operations):
        by_kind.setdefault(operation.kind, []).append(operation)
    for found in by_kind.values():
        random.shuffle(found)
    chosen: list[Fault] = []
    while by_kind and len(chosen) < count:
        for kind in list(by_kind):
            operation = by_kind[kind].pop()
            if not by_kind[kind]:
                del by_kind[kind]
            nth = random.choice((1, random.randint(1, operations[operation])))
            lasts = kind in _LASTING and random.random() < 0.5
            error = _LASTING[kind] if lasts else random.choice(_SINGLE[kind])
            chosen.append(Fault(operation, nth, error, lasts))
    return chosen[:count]


class FaultySystem:
    """Runs pgwal commands whose calls on files below ``roots``, and on sockets, may fail; a context."""

    def __init__(self, scratch: Path, roots: Sequence[Path]) -> None:
        self._scratch = scratch
        self._roots = roots

    def __enter__(self) -> Self:
        library = self._scratch / "faulty_system.so"
        compiler = shutil.which("cc") or shutil.which("gcc")
        assert compiler is not None, "a C compiler is needed, as for pgwal's own scanner"
        source = _SUPPORT / "faulty_system.c"
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        self._commands = ForkServer(environment(LD_PRELOAD=str(library)))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._commands.close()

    def run(self, arguments: Sequence[str | Path], fault: Fault | None = None, *, log: Path | None = None) -> Outcome:
        """Run a command to its end; fails with the stacks of its threads where it takes too long."""
        ended = self._commands.run(
            arguments,
            environment(),
            TIMEOUT_S,
            roots=[os.path.realpath(root) for root in self._roots],
            fault=None if fault is None else [*fault.operation, *fault[1:]],
            log=None if log is None else str(log),
        )
        assert ended.by_itself, f"{arguments} hangs after {fault}:\n{ended.stderr}"
        return Outcome(ended.code, ended.stdout, ended.stderr)

    def operations(self, arguments: Sequence[str | Path]) -> Counter[Operation]:
        """Run a command, which must succeed, and return what it does."""
        log = self._scratch / "operations"
        outcome = self.run(arguments, log=log)
        assert outcome.code == 0, (arguments, outcome.stdout, outcome.stderr)
        return Counter(_logged(log))


def _logged(log: Path) -> Iterator[Operation]:
    for line in log.read_text().splitlines():
        kind, _, name = line.partition(" ")
        yield Operation(kind, name)
