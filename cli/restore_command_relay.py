"""Run restore_command as this process's user for a server that runs as another one."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pgwal.budget import RELAY_POLL_S, RELAYED_REQUESTS
from pgwal_cli.server_account import give_to_server, require_reachable, server_account

if TYPE_CHECKING:
    from types import TracebackType

# The server takes an exit code above 125 for "restoring is impossible", any other for "there is no such file".
_FAILED = 255

# A request is an empty file: its name says all.
_REQUEST = re.compile(r"(?P<name>[0-9A-F]{24}|[0-9A-F]{8}\.history)\.[A-Za-z0-9]{6}")

_RELAY_SCRIPT = """\
# Usage: sh relay.sh NAME DESTINATION
# Asks the process that owns this directory to fetch a WAL file, copies it, and exits with the exit code of that.
spool={spool}
request=$(mktemp "$spool/requests/$1.XXXXXX") || exit {failed}
answer=$spool/answers/${{request##*/}}
while [ ! -e "$answer.code" ]; do
    [ -e "$spool/open" ] && [ -e "$request" ] || exit {failed}
    sleep 0.02
done
read -r code <"$answer.code"
if [ "$code" = 0 ]; then cp "$answer" "$2" || code={failed}; fi
rm -f "$request"
exit "$code"
"""


class RestoreCommandRelay:
    """Let a server fetch WAL with a command that only the user of this process can run.

    ``command`` is what ``restore_command`` would be without its last two arguments.  Each call of the server is
    handed to a thread of this process, which really runs the command with the file's name and a destination of its
    own, and returns the exit code; the server's user then copies the file to where the server wants it.  Output of the
    command goes to ``relay.log`` in ``directory``, which the server's user must be able to enter.

    The server's user can write in one directory alone, ``requests``.  Of that this process reads nothing but names,
    takes only those of WAL segments and timeline histories, and opens none of them.
    """

    def __init__(self, command: list[str], directory: Path) -> None:
        self.command = command
        self.directory = directory.absolute()
        self.answered: list[tuple[str, int]] = []
        """Name and exit code of every call so far."""
        self._under_way: dict[str, None] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="restore-command-relay", daemon=True)

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        require_reachable(self.directory)
        # A directory of its own each time: relays may share the outer one.
        self._spool = Path(tempfile.mkdtemp(prefix="relay-", dir=self.directory))
        self._requests, self._answers = self._spool / "requests", self._spool / "answers"
        self._requests.mkdir(mode=0o700)
        self._answers.mkdir(mode=0o700)
        (self._spool / "fetched").mkdir(mode=0o700)
        (self._spool / "relay.sh").write_text(_RELAY_SCRIPT.format(spool=shlex.quote(str(self._spool)), failed=_FAILED))
        (self._spool / "open").touch()
        for path, mode in ((self._spool / "relay.sh", 0o640), (self._spool / "open", 0o640), (self._answers, 0o750)):
            _show_to_server(path, mode)
        self._names = os.open(self._requests, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        give_to_server(self._requests)
        _show_to_server(self._spool, 0o750)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()
        os.close(self._names)
        for directory in (self._answers, self._spool / "fetched"):
            shutil.rmtree(directory, ignore_errors=True)

    @property
    def restore_command(self) -> str:
        """The value for the server's ``restore_command``."""
        script = shlex.quote(str(self._spool / "relay.sh")).replace("%", "%%")
        return f'/bin/sh {script} "%f" "%p"'

    @property
    def log_file(self) -> Path:
        """Where the output of the command is."""
        return self.directory / "relay.log"

    def _serve(self) -> None:
        try:
            while not self._closing.wait(RELAY_POLL_S):
                # By the open directory, not by a path: nobody can put another one in its place.
                waiting = set(os.listdir(self._names))  # noqa: PTH208
                for done in self._under_way.keys() - waiting:
                    self._forget(done)
                for request in sorted(waiting - self._under_way.keys()):
                    self._answer(request)
        finally:
            # What still waits must fail: without an answer the server would wait for ever.
            (self._spool / "open").unlink(missing_ok=True)

    def _answer(self, request: str) -> None:
        match = _REQUEST.fullmatch(request)
        if match is None:
            self._refuse(request)
            return
        if len(self._under_way) >= RELAYED_REQUESTS:
            oldest = next(iter(self._under_way))
            self._refuse(oldest)
            self._forget(oldest)
        self._under_way[request] = None
        fetched = self._spool / "fetched" / request
        code = self._run(match["name"], fetched)
        self.answered.append((match["name"], code))
        if code == 0:
            _show_to_server(fetched, 0o640)
            fetched.rename(self._answers / request)
        fetched.unlink(missing_ok=True)
        unfinished = self._spool / "fetched" / f"{request}.code"
        unfinished.write_text(f"{code}\n")
        _show_to_server(unfinished, 0o640)
        unfinished.rename(self._answers / unfinished.name)

    def _forget(self, request: str) -> None:
        self._under_way.pop(request)
        for name in (request, f"{request}.code"):
            (self._answers / name).unlink(missing_ok=True)

    def _run(self, name: str, destination: Path) -> int:
        with self.log_file.open("ab") as log:
            try:
                finished = subprocess.run(
                    [*self.command, name, str(destination)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            except OSError as error:
                log.write(f"{error}\n".encode())
                return _FAILED
            if finished.returncode == 0 and not destination.is_file():
                log.write(f"{name} was not fetched, though the command succeeded\n".encode())
                return _FAILED
        # As a shell reports a command that a signal ended.
        return finished.returncode if finished.returncode >= 0 else 128 - finished.returncode

    def _refuse(self, request: str) -> None:
        # Where it is a directory, or has gone, nobody waits for an answer.
        with suppress(OSError):
            os.unlink(request, dir_fd=self._names)


def _show_to_server(path: Path, mode: int) -> None:
    """Let the server's group read what stays this process's own; it lies where nobody else can write."""
    account = server_account()
    if account is None:
        path.chmod(mode & 0o700)
        return
    os.chown(path, -1, account.pw_gid, follow_symlinks=False)
    path.chmod(mode)
