"""The variables that a configuration file gives a cluster's commands: those of object stores, and where WAL waits."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pgwal_cli.configuration_file import ConfigurationFile, Keys, holds_a_secret

ENVIRONMENT = "environment"
"""The table of them, of a cluster or for all."""
SPOOL = "PGWAL_SPOOL"
"""Set by the key ``spool``, for a backup that receives WAL itself has no such option."""

_NAME = re.compile(r"(?:AWS|GOOGLE|AZURE)_[A-Z0-9_]+")
_SECRET_NAME = re.compile(r"(?:SECRET|PASSWORD|TOKEN|SAS|KEY(?!_ID|_ENABLED))(?!.*_FILE$)")
_MOST_BYTES = 64 << 10
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Variable(NamedTuple):
    """A variable's value, or where it comes from: ``kind`` is text, file or command."""

    kind: str
    value: str
    keys: Keys

    def __str__(self) -> str:
        """Return what may be shown of it."""
        program, _, arguments = self.value.partition(" ")
        if self.kind == "command":
            return f"printed by {program}{' ...' if arguments else ''}"
        return self.value if self.kind == "text" else f"in {self.value}"

    def read(self, file: ConfigurationFile) -> str:
        """Return the value; raises ConfigurationError."""
        if self.kind == "command":
            result = subprocess.run(self.value, shell=True, stdout=subprocess.PIPE, check=False)
            if result.returncode != 0:
                raise file.error(self.keys, f"is not known: its command ended with code {result.returncode}")
            return _text(result.stdout, file, self.keys)
        return _text(self._private_bytes(file), file, self.keys) if self.kind == "file" else self.value

    def _private_bytes(self, file: ConfigurationFile) -> bytes:
        try:
            with Path(self.value).open("rb") as secret:
                mode = os.fstat(secret.fileno()).st_mode
                if stat.S_ISREG(mode) and mode & _OTHERS:
                    raise file.error(
                        self.keys,
                        f"is in {self.value}, which others than its owner can read",
                        f"chmod 600 {self.value}",
                    )
                return secret.read(_MOST_BYTES + 1)
        except OSError as error:
            raise file.error(self.keys, f"cannot be read: {self.value}: {os.strerror(error.errno or 0)}") from error


def _text(content: bytes, file: ConfigurationFile, keys: Keys) -> str:
    text = content.decode("utf-8", "replace").strip()
    if not text or len(content) > _MOST_BYTES or "\0" in text:
        raise file.error(keys, "is not a value: it is empty, too long, or has a zero byte")
    return text


def parse_variable(name: str, value: Any, keys: Keys) -> Variable | tuple[str, str | None]:
    """Read what a file says of a variable; return what is wrong with it, and the way out, where something is."""
    if not _NAME.fullmatch(name):
        return "is no variable of an object store", "Their names begin with AWS_, GOOGLE_ or AZURE_."
    if isinstance(value, Mapping) and len(value) == 1:
        ((kind, source),) = value.items()
        if kind in ("file", "command") and isinstance(source, str) and "\0" not in source:
            if kind == "file" and not source.startswith("/"):
                return f"is in {source!r}, which begins with no /", None
            return Variable(kind, source, keys)
    if not isinstance(value, str) or "\0" in value:
        return "is no text", 'Write "...", { file = "/..." } or { command = "..." }.'
    if _SECRET_NAME.search(name) or holds_a_secret(value):
        return "is a secret, which has no place in a file", 'Write { file = "/..." } or { command = "..." }.'
    return Variable("text", value, keys)


class ClusterEnvironment:
    """The variables that a command finds, as long as it runs; those that are set already stay as they are."""

    def __init__(self, file: ConfigurationFile, variables: Mapping[str, Variable]) -> None:
        self._file = file
        self._variables = {name: variable for name, variable in variables.items() if not os.environ.get(name)}

    def enter(self) -> None:
        """Set them; raises ConfigurationError."""
        values = {name: variable.read(self._file) for name, variable in self._variables.items()}
        os.environ.update(values)

    def leave(self) -> None:
        """Take them away again."""
        for name in self._variables:
            os.environ.pop(name, None)
