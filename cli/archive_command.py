"""A short way to run the command that a server archives its WAL with.

A server runs it for each segment, and waits; the command line in general takes several times as long to import.
"""

from __future__ import annotations

import os
import sys

# Not from typing: it takes as long to import as all else that most calls need.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pgwal.repository.compression import Compression
    from pgwal.repository.place import Place

_COMMAND = "archive-wal"
_OPTIONS = {
    "--repo": "repo",
    "-Z": "compress",
    "--compress": "compress",
    "--identity": "identity",
    "--identity-command": "identity_command",
    "--metadata-key": "metadata_key",
}


def run_short(arguments: Sequence[str]) -> int | None:
    """Run a command line that says no more than where to and what, and return the exit code; None for any other."""
    words = _words(arguments)
    if words is None:
        return None
    from pgwal.engine.archived_marks import ArchivedMarks

    marks = ArchivedMarks(words["path"], words["repo"])
    name = words["path"].rpartition("/")[2]
    if marks.will_have(name):
        marks.drop_before(name)
        return 0
    return _archive(words)


def _words(arguments: Sequence[str]) -> dict[str, str] | None:
    """Return the values of a command line that has no others than these, by names; None for any other."""
    if arguments[:1] != [_COMMAND]:
        return None
    found: dict[str, str] = {}
    left = list(arguments[1:])
    while left:
        word, equals, value = left.pop(0).partition("=")
        if word.startswith("-"):
            if word not in _OPTIONS or (equals and not word.startswith("--")) or not (equals or left):
                return None
            name, value = _OPTIONS[word], value if equals else left.pop(0)
        else:
            name, value = "path", word + equals + value
        # What is said twice, or is nothing, is for the command line to judge.
        if name in found or not value:
            return None
        found[name] = value
    found.setdefault("repo", os.environ.get("PGWAL_REPO", ""))
    return found if found["repo"] and "path" in found else None


def _archive(words: dict[str, str]) -> int | None:
    from pathlib import Path

    from pgwal.encryption.key_sources import KeySources
    from pgwal.errors import FormatError
    from pgwal.repository.address import place_at
    from pgwal.repository.compression import Compression

    if "identity" in words and "identity_command" in words:
        return None
    from pgwal_cli.configuration_file import may_be_configured

    if may_be_configured():
        # It may say how segments are compressed, or where keys are.
        return None
    try:
        place, compression = place_at(words["repo"]), Compression.parse(words.get("compress", "zstd"))
    except FormatError:
        return None
    identity, metadata_key = (Path(words[name]) if name in words else None for name in ("identity", "metadata_key"))
    keys = KeySources(identity, words.get("identity_command"), metadata_key)
    return archive_or_explain(place.with_keys(keys), words["repo"], Path(words["path"]), compression)


def archive_or_explain(place: Place, repo: str, path: Path, compression: Compression) -> int:
    """Archive a file and return the exit code, never above 125, which a server takes for more than a failure.

    What went wrong is on stderr, and so in the server's log.
    """
    try:
        from pgwal.engine.archive_ahead import archive
        from pgwal.errors import PgwalError

        try:
            archive(place, repo, path, compression)
        except PgwalError as error:
            from pgwal_cli.output import print_error

            print_error(error)
            return error.exit_code
    except KeyboardInterrupt:
        # The process ends by the signal, as the server does that has sent it.
        raise
    except BaseException as error:
        print(f"pgwal: error: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0
