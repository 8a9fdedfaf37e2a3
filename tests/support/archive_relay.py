"""Run archive_command for a server whose user cannot run this Python: as this process's user, one at a time.

What the server hands over is an empty file, named as the segment is; the answer is the exit code, and what the command
said goes to ``messages``.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pgwal_cli.throwaway_server import ThrowawayServer, give_to_server

_SCRIPT = """\
: >"{place}/asked/$1"
while [ ! -e "{place}/answers/$1" ]; do
    [ -e {place}/open ] || exit 1
    sleep 0.01
done
read -r code <"{place}/answers/$1"
rm -f "{place}/asked/$1"
exit "$code"
"""


class ArchiveRelay:
    """``command`` is run with the absolute path of what a server hands over; ``setting`` is its archive_command."""

    def __init__(self, directory: Path, command: Sequence[str]) -> None:
        self.command = list(command)
        self.messages: list[str] = []
        self.codes: list[tuple[str, int]] = []
        self._place = directory
        for name in ("", "asked"):
            (directory / name).mkdir()
            give_to_server(directory / name)
        (directory / "answers").mkdir()
        (directory / "open").touch()
        script = directory / "archive.sh"
        script.write_text(_SCRIPT.format(place=shlex.quote(str(directory))))
        script.chmod(0o755)
        self.setting = f"sh {shlex.quote(str(script))} %f"
        self._server: ThrowawayServer | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def serve(self, server: ThrowawayServer) -> None:
        """Take what this server hands over."""
        self._server = server

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        (self._place / "open").unlink()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            for asked in (self._place / "asked").iterdir():
                answer = self._place / "answers" / asked.name
                if self._server is not None and re.fullmatch(r"[0-9A-Za-z.]+", asked.name) and not answer.exists():
                    self._answer(asked.name, answer)
            for answer in (self._place / "answers").iterdir():
                if not (self._place / "asked" / answer.name).exists():
                    answer.unlink()

    def _answer(self, name: str, answer: Path) -> None:
        assert self._server is not None
        # As the server runs it: in the data directory, with a path below that.
        finished = subprocess.run(
            [*self.command, f"pg_wal/{name}"], cwd=self._server.data_directory, capture_output=True, text=True
        )
        self.codes.append((name, finished.returncode))
        if finished.stderr:
            self.messages.append(finished.stderr)
        unfinished = self._place / f"{name}.code"
        unfinished.write_text(f"{finished.returncode}\n")
        unfinished.chmod(0o644)
        unfinished.replace(answer)
