"""What ``pgwal restore --delta`` says before it overwrites anything, and asks on a terminal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import typer

from pgwal_cli.output import size_text

if TYPE_CHECKING:
    from pgwal.engine.overwritten import Overwriting


def confirm_overwriting(overwriting: Overwriting, *, asks: bool) -> None:
    """Say on stderr what is overwritten; on a terminal, ask, and raise TargetError for any answer but yes."""
    from pgwal.errors import TargetError

    for line in overwriting_lines(overwriting):
        print(line, file=sys.stderr)
    if not asks or not sys.stdin.isatty():
        # Whoever gave --delta to a program has asked for just this.
        return
    if not typer.confirm("Overwrite it?", err=True):
        raise TargetError(f"nothing in {overwriting.directory} was changed", hint="Answer y, or give --yes.")


def overwriting_lines(overwriting: Overwriting) -> list[str]:
    """Return what people are told of a directory before it is overwritten."""
    directory, unwanted = overwriting.directory, overwriting.unwanted
    lines = [f"{directory} is {overwriting.description}; it is overwritten with the backup."]
    removed = unwanted.file_count + unwanted.directory_count + len(unwanted.links)
    if removed:
        some = ", ".join(map(_shown, unwanted.some)) + (", ..." if removed > len(unwanted.some) else "")
        lines.append(
            f"Removed are {unwanted.file_count} files ({size_text(unwanted.size_bytes)}),"
            f" {unwanted.directory_count} directories and {len(unwanted.links)} links that the restored one does not"
            f" have: {some}"
        )
    if unwanted.rewritten:
        lines.append(f"Made anew in any case: {', '.join(map(_shown, sorted(unwanted.rewritten)))}.")
    lines += [
        f"What the link {_shown(path)} leads to, {_shown(place)}, stays there, and is no part of it."
        for path, place in unwanted.links.items()
    ]
    if overwriting.lost_wal is not None:
        lines.append(
            f"Its pg_wal has WAL that is not in the repository, up to segment {overwriting.lost_wal}: to keep that,"
            f" copy {directory}/pg_wal to another place first."
        )
    return lines


def _shown(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "replace")
