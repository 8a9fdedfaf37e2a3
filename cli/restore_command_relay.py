"""Run restore_command as this process's user for a server that runs as another one."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pgwal_cli.throwaway_server import give_to_server, require_reachable

if TYPE_CHECKING:
    from types import TracebackType

_POLL_S = 0.01
# The server takes an exit code above 125 for "restoring is impossible", any other for "there is no such file".
_FAILED = 255

_RELAY_SCRIPT = """\
# Usage: sh relay.sh NAME DESTINATION
# Asks the process that owns this directory to fetch a WAL file, and exits with its exit code.
spool={spool}
request=$(mktemp "$spool/request.XXXXXX") || exit {failed}
printf '%s\\n%s\\n' "$1" "$2" >"$request" && mv "$request" "$request.ready" || exit {failed}
while [ ! -e "$request.answer" ]; do
    [ -e "$spool/open" ] || exit {failed}
    sleep 0.02
done
read -r code <"$request.answer"
rm -f "$request.answer"
exit "$code"
"""


class RestoreCommandRelay:
    """Let a server fetch WAL with a command that only the user of this process can run.

    ``command`` is what ``restore_command`` would be without its last two arguments.  Each call of the server is
    handed to a thread of this process, which really runs the command with the file's name and the destination
    as an absolute path, gives the result to the server's user, and returns the exit code.  Output of the
    command goes to ``relay.log`` in ``directory``, which the server's user must be able to enter.
    """

    def __init__(self, command: list[str], directory: Path, data_directory: Path) -> None:
        self.command = command
        self.directory = directory.absolute()
        self.data_directory = data_directory.absolute()
        self.answered: list[tuple[str, int]] = []
        """Name and exit code of every call so far."""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="restore-command-relay", daemon=True)

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        require_reachable(self.directory)
        # A directory of its own each time: relays may share the outer one.
        self._spool = Path(tempfile.mkdtemp(prefix="relay-", dir=self.directory))
        script = self._spool / "relay.sh"
        script.write_text(_RELAY_SCRIPT.format(spool=shlex.quote(str(self._spool)), failed=_FAILED))
        (self._spool / "open").touch()
        give_to_server(self._spool)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()

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
            while not self._closing.wait(_POLL_S):
                for request in sorted(self._spool.glob("request.*.ready")):
                    self._answer(request)
        finally:
            # What still waits must fail: without an answer the server would wait for ever.
            (self._spool / "open").unlink(missing_ok=True)

    def _answer(self, request: Path) -> None:
        name, destination = request.read_text().splitlines()
        request.unlink()
        code = self._run(name, self.data_directory / destination)
        self.answered.append((name, code))
        answer = request.with_suffix(".answer")
        unfinished = request.with_suffix(".unfinished")
        unfinished.write_text(f"{code}\n")
        give_to_server(unfinished)
        unfinished.rename(answer)

    def _run(self, name: str, destination: Path) -> int:
        with self.log_file.open("ab") as log:
            try:
                finished = subprocess.run(
                    [*self.command, name, str(destination)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
                if destination.exists():
                    give_to_server(destination)
            except OSError as error:
                log.write(f"{error}\n".encode())
                return _FAILED
        # As a shell reports a command that a signal ended.
        return finished.returncode if finished.returncode >= 0 else 128 - finished.returncode
