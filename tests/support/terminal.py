"""A terminal of any width for a command, and what it shows there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from functools import cache
from pathlib import Path

from pgwal_process import PGWAL, environment
from rich.cells import cell_len

STYLE = re.compile(r"\x1b\[([0-9;]*)m")
"""What switches bold, faint and colours on and off."""


@cache
def on_terminal(columns: int, *args: str | Path, **env: str) -> str:
    """Return what a command prints on a terminal of so many columns."""
    terminal, other_end = pty.openpty()
    try:
        fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        variables = {name: value for name, value in environment(**env).items() if name not in ("COLUMNS", "LINES")}
        process = subprocess.Popen(
            [*PGWAL, *map(str, args)],
            env={"TERM": "xterm-256color"} | variables,
            stdin=other_end,
            stdout=other_end,
            stderr=subprocess.DEVNULL,
        )
    finally:
        os.close(other_end)
    output = b""
    # Linux says by an error that nobody holds the other end any more.
    while piece := _read(terminal):
        output += piece
    os.close(terminal)
    assert process.wait() in (0, 3)
    return output.decode().replace("\r\n", "\n")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""


def plain(text: str) -> str:
    return STYLE.sub("", text)


def widest(text: str) -> int:
    return max(cell_len(line) for line in plain(text).split("\n"))
