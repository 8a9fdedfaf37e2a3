"""The configuration file: which one it is, whom it may belong to, and on which line what stands."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from pgwal_cli.exit_codes import UsageError

SYSTEM_PATH = Path("/etc/pgwal.toml")
VARIABLE = "PGWAL_CONFIG"
CLUSTER, DEFAULT = "cluster", "default"
"""The tables that a file has: one for each cluster below the first, and one for all."""

_MOST_BYTES = 1 << 20
_ROOT = 0

Keys = tuple[str, ...]
"""Where a value stands: the names of the tables that it is in, and its own."""


class ConfigurationError(UsageError):
    """The configuration file cannot be read or trusted, or says what is not understood, on ``line`` if on one."""

    line = 0


class ConfigurationFile:
    """A file that has been read; ``document`` is what TOML makes of it."""

    def __init__(self, path: Path, text: str, document: dict[str, Any]) -> None:
        self.path = path
        self.document = document
        self._text = text

    @classmethod
    def read(cls, path: Path) -> ConfigurationFile:
        """Read a file; raises ConfigurationError, also where others than its owner may write it."""
        # Not above: few have such a file, and every command would pay for it.
        import tomllib

        try:
            text = _trusted_bytes(path).decode()
            return cls(path, text, tomllib.loads(text))
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise ConfigurationError(
                f"{path}: {error}", hint="The file is TOML: see toml.io.", path=str(path)
            ) from None
        except UnicodeDecodeError:
            raise ConfigurationError(f"{path} is no text in UTF-8, as TOML is", path=str(path)) from None

    @classmethod
    def find(cls, named: Path | None) -> ConfigurationFile | None:
        """Read the file that is named, by the option or by PGWAL_CONFIG, or else the user's own or the system's.

        Returns None where there is none; raises ConfigurationError.
        """
        if named is None and os.environ.get(VARIABLE):
            named = Path(os.environ[VARIABLE])
        if named is not None:
            return cls.read(named)
        for path in (*_own_path(), SYSTEM_PATH):
            if os.path.exists(path):  # noqa: PTH110 (what may not be looked at is none of this user's)
                return cls.read(path)
        return None

    @property
    def clusters(self) -> dict[str, dict[str, Any]]:
        """The table of each cluster, in the order of the file."""
        return self._table((CLUSTER,))

    def table(self, *keys: str) -> dict[str, Any]:
        """Return what a table holds, nothing for one that is not there; raises ConfigurationError for no table."""
        return self._table(keys)

    def _table(self, keys: Keys) -> dict[str, Any]:
        found: Any = self.document
        for depth, key in enumerate(keys):
            found = found.get(key, {})
            if not isinstance(found, dict):
                raise self.error(keys[: depth + 1], f"is no table: write [{'.'.join(keys[: depth + 1])}]")
        return dict(found)

    def foreign_tables(self) -> Iterator[ConfigurationError]:
        """Yield what is wrong with whatever is of no cluster and not for all."""
        for key in self.document:
            if key not in (CLUSTER, DEFAULT):
                hint = nearest(key, (CLUSTER, DEFAULT))
                yield self.error((key,), f"is neither in [{CLUSTER}.NAME] nor in [{DEFAULT}]", hint)

    def require_cluster(self, name: str) -> None:
        """Raise ConfigurationError, with the nearest name, where there is no such cluster."""
        if name in self.clusters:
            return
        for error in self.foreign_tables():
            raise error
        names = ", ".join(self.clusters)
        raise ConfigurationError(
            f"there is no cluster {name!r} in {self.path}",
            hint=nearest(name, self.clusters) or (f"It has {names}." if names else f"Add a table [{CLUSTER}.{name}]."),
            path=str(self.path),
        )

    def error(self, keys: Keys, message: str, hint: str | None = None) -> ConfigurationError:
        """Return the error of what stands somewhere, with its line."""
        line = self.line_of(keys)
        error = ConfigurationError(f"{self.path}:{line}: {'.'.join(keys)} {message}", hint=hint, path=str(self.path))
        error.line = line
        return error

    def line_of(self, keys: Keys) -> int:
        """Return the line, from 1, on which a key or the head of a table stands, or what it is in."""
        return next((self._lines[keys[:depth]] for depth in range(len(keys), 0, -1) if keys[:depth] in self._lines), 1)

    @cached_property
    def _lines(self) -> dict[Keys, int]:
        """The first line of each table and key.

        The library does not tell; but it knows where each statement ends, which it reads alone as well.
        """
        import tomllib

        found: dict[Keys, int] = {}
        table: Keys = ()
        statement, start = "", 1
        for number, line in enumerate(self._text.split("\n"), 1):
            statement += line + "\n"
            try:
                document = tomllib.loads(statement)
            except tomllib.TOMLDecodeError:
                continue  # in the middle of a value of many lines
            paths = list(_paths(document))
            if line.lstrip().startswith("[") and number == start:
                table = max(paths, key=len)
            else:
                paths = [(*table, *path) for path in paths]
            for path in paths:
                found.setdefault(path, start)
            statement, start = "", number + 1
        return found


def _paths(document: dict[str, Any]) -> Iterator[Keys]:
    for key, value in document.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, *path) for path in _paths(value))


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the hint that names what may have been meant, None where nothing is like it."""
    from difflib import get_close_matches

    found = get_close_matches(name, list(names), 1)
    return f"Is {found[0]} meant?" if found else None


# ---- which file, and whether it can be trusted


def may_be_configured() -> bool:
    """Tell whether there is a file that is read where none is named."""
    found = (os.path.exists(path) for path in (*_own_path(), SYSTEM_PATH))  # noqa: PTH110 (see ConfigurationFile.find)
    return bool(os.environ.get(VARIABLE)) or any(found)


def _own_path() -> list[Path]:
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111 (no error without a home)
    return [Path(home) / "pgwal" / "pgwal.toml"] if os.path.isabs(home) else []  # noqa: PTH117


def _trusted_bytes(path: Path) -> bytes:
    """Return what a file holds that only its owner may write, who is root or runs this: it names commands to run."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode):
                _require_trusted(path, status)
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"the configuration file {path} cannot be read: {os.strerror(error.errno or 0)}",
            hint=f"Name another one with --config or {VARIABLE}; /dev/null stands for none.",
            path=str(path),
        ) from error
    if len(content) > _MOST_BYTES:
        raise ConfigurationError(f"{path} is larger than any configuration file", path=str(path))
    return content


def _require_trusted(path: Path, status: os.stat_result) -> None:
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigurationError(
            f"{path} can be written by others than its owner, and says what is run and removed",
            hint=f"Check that its content is yours, then run: chmod go-w {path}",
            path=str(path),
        )
    if status.st_uid not in (_ROOT, os.geteuid()):
        raise ConfigurationError(
            f"{path} belongs to user {status.st_uid}, who could have this user run anything",
            hint=f"It must belong to root or to user {os.geteuid()}; --config /dev/null stands for none.",
            path=str(path),
        )


# ---- what must not be in it

_SECRET_KEYWORDS = "password|sslpassword|oauth_client_secret|scram_client_key|scram_server_key"
_SECRET = re.compile(rf"(?:^|[\s?&;'\"])(?:{_SECRET_KEYWORDS})\s*=|\w://[^\s/@:]*:[^\s/@]+@", re.IGNORECASE)


def holds_a_secret(text: str) -> bool:
    """Tell whether a connection string, a URL or a command has a password in it."""
    return _SECRET.search(text) is not None
