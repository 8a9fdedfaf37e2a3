"""What the configuration of a restored data directory says of other places: settings that lead out, and archiving.

Source of the grammar: src/backend/utils/misc/guc-file.l, PostgreSQL 13 to 18.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_NAMES = ("postgresql.conf", "postgresql.auto.conf")
_MOST_BYTES = 1 << 20
_DEEPEST = 10

_LINE = re.compile(r"\s*(?P<name>[A-Za-z_][\w$.]*)\s*=?\s*(?P<value>'(?:[^'\\\n]|\\.|'')*'|[^\s#']+)?")
_INCLUDES = ("include", "include_if_exists", "include_dir")

_FILES = frozenset((
    "hba_file", "ident_file", "external_pid_file", "log_directory", "stats_temp_directory", "ssl_cert_file",
    "ssl_key_file", "ssl_ca_file", "ssl_crl_file", "ssl_crl_dir", "ssl_dh_params_file", "krb_server_keyfile",
))  # fmt: skip
"""Settings with a path, which is relative to the data directory."""


def settings_leading_out(data_directory: Path) -> list[str]:
    """Return a sentence for each setting in a data directory's files that names a place outside of it."""
    root = Path(os.path.realpath(data_directory))
    found = []
    for name, value in _settings(root).items():
        outside = value and not Path(os.path.realpath(root / value)).is_relative_to(root)
        if name == "data_directory" and value and Path(os.path.realpath(value)) != root:
            found.append(
                f"data_directory is {value}: a server that is started with -D {data_directory} runs on that directory"
                f" instead, unless it is started with -c data_directory={data_directory} or the setting is removed"
            )
        elif name in _FILES and outside:
            found.append(f"{name} is {value}, outside of {data_directory}, and so not restored")
        elif name.startswith(_INCLUDES) and outside:
            found.append(f"{value} is included, outside of {data_directory}, and so not restored")
    return found


def archiving(data_directory: Path) -> str | None:
    """Return how a server on a data directory archives its WAL, by what its files say; None when it does not."""
    settings = _settings(Path(os.path.realpath(data_directory)))
    if settings.get("archive_mode", "off").lower() not in ("on", "always", "true", "yes", "1"):
        return None
    for name in ("archive_library", "archive_command"):
        if settings.get(name):
            return f"{name} = {settings[name]!r}"
    return "no archive_command"


def _settings(root: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _NAMES:
        found.update(_of_file(root, root / name, 0))
    return found


def _of_file(root: Path, path: Path, depth: int) -> Iterator[tuple[str, str]]:
    """Yield the settings of a file and of those that it includes below ``root``; a place outside counts as one."""
    try:
        if not path.is_file():
            return
        with path.open("rb") as file:
            text = os.fsdecode(file.read(_MOST_BYTES))
    except OSError:
        return
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        name, value = match["name"].lower(), _unquoted(match["value"] or "")
        if name not in _INCLUDES:
            yield name, value
            continue
        place = path.parent / value
        if not Path(os.path.realpath(place)).is_relative_to(root):
            # As many as there may be, each by its own name.
            yield f"{name} {value}", value
        elif depth < _DEEPEST:
            for each in sorted(place.glob("*.conf")) if name == "include_dir" else [place]:
                yield from _of_file(root, each, depth + 1)


def _unquoted(value: str) -> str:
    if not value.startswith("'"):
        return value
    return re.sub(r"\\(.)|''", lambda match: match[1] or "'", value[1:-1])
