"""Which options a configuration file may hold, in which of its tables, and of what type."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import typer
from typer.core import TyperOption

from pgwal_cli.cluster_environment import ENVIRONMENT, SPOOL, Variable, parse_variable
from pgwal_cli.configuration_file import (
    CLUSTER,
    DEFAULT,
    ConfigurationError,
    ConfigurationFile,
    Keys,
    holds_a_secret,
    nearest,
)
from pgwal_cli.options import parse_rate, parse_size

CLUSTER_OPTIONS = frozenset({
    "audit", "bindir", "checkpoint", "checksum-failure", "compress", "create-slot", "dbname", "drop-slot", "executor",
    "format", "host", "identity", "identity-command", "if-not-exists", "jobs", "keep-daily", "keep-days", "keep-full",
    "keep-hourly", "keep-monthly", "keep-wal-days", "keep-wal-for", "keep-weekly", "keep-yearly", "label",
    "log-times", "manifest-checksums", "max-age", "max-rate", "max-retained", "max-rewrite", "max-spool", "merge",
    "metadata-key", "metrics", "no-loop", "no-password", "partial-interval", "pgdata", "port", "progress", "quiet",
    "recipient", "repo", "restore-dir", "role", "slot", "spool", "status-interval", "synchronous", "username",
})  # fmt: skip
"""What says how a cluster is reached, backed up and kept: it counts for all commands with an option of that name."""
CALL_OPTIONS = frozenset({
    "accept-new-history", "allow-tablespaces-in-place", "archive-mode", "block", "cascade", "clone", "copy",
    "copy-file-range", "database", "delta", "derived", "dry-run", "endpos", "fork", "from", "individual", "json",
    "keep", "link", "no-manifest", "no-sync", "once", "output", "percent", "pgdata-size", "prefetch",
    "primary-conninfo", "primary-slot", "relation", "report", "require-incremental", "restore", "restore-command",
    "rmgr", "rounds", "seed", "since", "standby", "stats", "tablespace-mapping", "target-action",
    "target-exclusive", "target-immediate", "target-lsn", "target-name", "target-time", "target-timeline",
    "target-xid", "timeline", "to", "to-gap", "wal", "why", "with-wal", "yes",
})  # fmt: skip
"""What says what one call does: it stands in the table of a command, and counts for that alone."""
OF_ANOTHER_MEANING = {
    "pgdata": {"restore"},
    "recipient": {"key add", "key remove", "copy"},
    "username": {"verify"},
}
"""Commands whose option of a name is not the cluster's: where to restore to, whose keys to change, a superuser."""
_OF_NO_CLUSTER = {"demo"}
_OF_THE_COMMAND_LINE = {"help", "version", "config", "cluster", "all"}
_KEY_VARIABLES = {
    "identity": "PGWAL_IDENTITY",
    "identity_command": "PGWAL_IDENTITY_COMMAND",
    "metadata_key": "PGWAL_METADATA_KEY",
}
"""Variables that are read where keys are looked for, and not as those of other options."""
_ONE_OF = ("identity", "identity_command")


def own_variable(option: TyperOption) -> str | None:
    """Return the variable that says an option, None where none does."""
    declared = _KEY_VARIABLES.get(str(option.name), option.envvar)
    names = [declared] if isinstance(declared, str) else declared or []
    return next((name for name in names if os.environ.get(name)), None)


def is_overridden(option: TyperOption) -> bool:
    """Tell whether a variable counts for an option of keys, and not the file; of others click itself knows."""
    names = _ONE_OF if option.name in _ONE_OF else (str(option.name),)
    return any(os.environ.get(_KEY_VARIABLES.get(name, "")) for name in names)


@dataclass(frozen=True, slots=True)
class CommandOptions:
    """A command by its words, such as ``key add``, and its options by their names."""

    words: Keys
    by_name: Mapping[str, TyperOption]

    @classmethod
    def of(cls, words: Iterable[str], parameters: Iterable[Any]) -> CommandOptions:
        """Return those of a command with some parameters, without what the command line alone says."""
        named = {
            spelling.removeprefix("--"): parameter
            for parameter in parameters
            if isinstance(parameter, TyperOption)
            for spelling in parameter.opts
            if spelling.startswith("--")
        }
        return cls(tuple(words), {name: option for name, option in named.items() if name not in _OF_THE_COMMAND_LINE})

    def for_cluster(self, name: str) -> TyperOption | None:
        """Return the option that a cluster's key counts for, None where it counts for none of this command."""
        command = " ".join(self.words)
        if command in _OF_NO_CLUSTER or command in OF_ANOTHER_MEANING.get(name, ()):
            return None
        return self.by_name.get(name)


@dataclass(frozen=True, slots=True)
class Setting:
    """A value in the file: for which option, where it stands, and how far from the command it is, the least nearest."""

    option: TyperOption
    value: Any
    keys: Keys
    distance: int


class CommandSettings:
    """What a file says for one command, on one cluster or on none: ``found`` by the names that functions know.

    ``problems`` has what is not understood, in the order of the file's tables: all of it that concerns the command.
    """

    def __init__(
        self, file: ConfigurationFile, cluster: str | None, command: CommandOptions, commands: Iterable[str]
    ) -> None:
        self.file = file
        self.found: dict[str, Setting] = {}
        self.problems: list[ConfigurationError] = []
        self.variables: dict[str, Variable] = {}
        """What is to be in the environment."""
        self._command = command
        self._commands = frozenset(commands)
        """The first words of all commands: tables have their names."""
        levels: list[Keys] = [(DEFAULT,), *([] if cluster is None else [(CLUSTER, cluster)])]
        self.problems += file.foreign_tables()
        distance = 2 * len(levels)
        for level in levels:
            self._take_level(level, distance)
            distance -= 2

    def _refuse(self, keys: Keys, message: str, hint: str | None) -> None:
        self.problems.append(self.file.error(keys, message, hint))

    def _take_level(self, level: Keys, distance: int) -> None:
        words = self._command.words
        try:
            shared = self.file.table(*level)
            # An option may have the name of a command.
            own = self.file.table(*level, *words) if isinstance(shared.get(words[0]), dict) else {}
        except ConfigurationError as error:
            self.problems.append(error)
            return
        for key, value in shared.items():
            self._take_shared((*level, key), value, distance)
        for key, value in own.items():
            self._take_own((*level, *words, key), value, distance - 1)
        for name, value in self._environment_of(level, shared):
            found = parse_variable(name, value, keys := (*level, ENVIRONMENT, name))
            if isinstance(found, Variable):
                self.variables[name] = found
            else:
                self._refuse(keys, *found)
        if isinstance(shared.get("spool"), str):
            self.variables[SPOOL] = Variable("text", shared["spool"], (*level, "spool"))

    def _environment_of(self, level: Keys, shared: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
        table = shared.get(ENVIRONMENT, {})
        if isinstance(table, dict):
            return table.items()
        self._refuse((*level, ENVIRONMENT), "is no table", f"Write [{'.'.join((*level, ENVIRONMENT))}].")
        return ()

    def _take_shared(self, keys: Keys, value: Any, distance: int) -> None:
        key = keys[-1]
        name = _singular(key, CLUSTER_OPTIONS)
        if key == ENVIRONMENT:
            return
        if isinstance(value, dict):
            if key not in self._commands:
                known = {*self._commands, *CLUSTER_OPTIONS, ENVIRONMENT}
                self._refuse(keys, "is a table, and no command has that name", nearest(key, known))
        elif name == "password":
            self._refuse(keys, "has no place in a file", _PASSWORD_HINT)
        elif name in CLUSTER_OPTIONS:
            option = self._command.for_cluster(name)
            if option is not None:
                self._take(option, value, keys, distance)
        elif name in self._command.by_name or name in CALL_OPTIONS or name in _all_options():
            where = ".".join((*keys[:-1], "COMMAND"))
            self._refuse(keys, "says what one call does, and stands for no cluster", f"Put it into [{where}].")
        else:
            self._refuse(keys, "is no option", nearest(key, CLUSTER_OPTIONS | self._command.by_name.keys()))

    def _take_own(self, keys: Keys, value: Any, distance: int) -> None:
        key, command = keys[-1], " ".join(self._command.words)
        name = _singular(key, self._command.by_name)
        if name == "password":
            self._refuse(keys, "has no place in a file", _PASSWORD_HINT)
        elif name in self._command.by_name:
            self._take(self._command.by_name[name], value, keys, distance)
        else:
            hint = nearest(key, self._command.by_name) or _elsewhere(name)
            self._refuse(keys, f"is no option of pgwal {command}", hint)

    def _take(self, option: TyperOption, value: Any, keys: Keys, distance: int) -> None:
        problem = problem_with(option, value)
        if problem is not None:
            message, hint = problem
            if hint is None and distance % 2 == 0:
                where = ".".join((*keys[:-1], "COMMAND"))
                hint = f"So says pgwal {' '.join(self._command.words)}; what is for one command stands in [{where}]."
            self._refuse(keys, message, hint)
            return
        name = str(option.name)
        if name in self.found and self.found[name].distance == distance:
            self._refuse(keys, f"stands there as {self.found[name].keys[-1]} as well", None)
        self.found[name] = Setting(option, _as_given(option, value), keys, distance)


_PASSWORD_HINT = "Give it in .pgpass, by PGPASSFILE, or in a service file; -W asks for it."


def _singular(key: str, names: Iterable[str]) -> str:
    """Return the option that is meant: what may be given more than once may be written in the plural."""
    return key[:-1] if key not in names and key == "recipients" else key


def _all_options() -> set[str]:
    """Return the names of the options of all commands, which takes a while to import."""
    return {name for command in all_commands() for name in command.by_name}


def _elsewhere(name: str) -> str | None:
    """Return the hint that names the commands that have an option."""
    commands = ", ".join(" ".join(command.words) for command in all_commands() if name in command.by_name)
    return f"It is one of pgwal {commands}." if commands else None


@cache
def all_commands() -> list[CommandOptions]:
    """Return all commands with their options, which takes a while to import."""
    from typer.main import get_command

    from pgwal_cli.main import make_app

    found = []
    for word, command in getattr(get_command(make_app()), "commands", {}).items():
        for below, each in getattr(command, "commands", {"": command}).items():
            found.append(CommandOptions.of([word, below] if below else [word], each.params))
    return found


# ---- types


def problem_with(option: TyperOption, value: Any) -> tuple[str, str | None] | None:
    """Return what is wrong with a value for an option, and the way out; None where nothing is."""
    wanted = _wanted(option)
    texts = value if isinstance(value, list) and option.multiple else [value]
    if not all(_is(wanted, each, option) for each in texts):
        plural = f", or a list: [{wanted[1]}, ...]" if option.multiple else ""
        return f"= {value!r} is not {wanted[0]}", f"Write {wanted[1]}{plural}."
    for text in texts:
        if isinstance(text, str) and "\0" in text:
            return "has a zero byte in it, which no command line could have", None
        if isinstance(text, str) and holds_a_secret(text):
            return "has a password in it, which has no place in a file", _PASSWORD_HINT
        if isinstance(text, str) and _is_path(option, text) and not text.startswith("/"):
            return f"= {text!r} begins with no /: it would be another place for each working directory", None
    try:
        option.type_cast_value(_NO_CONTEXT, _as_given(option, value))
    except typer.BadParameter as error:
        return f"= {value!r}: {error.message}", None
    return None


_NO_CONTEXT: Any = None
_TEXT, _NUMBER, _COUNT, _FLAG = (
    ("text", '"..."'),
    ("a number", "a number such as 2.5"),
    ("a whole number", "a number such as 4"),
    ("true or false", "true or false"),
)


def _wanted(option: TyperOption) -> tuple[str, str]:
    if option.is_flag:
        return _FLAG
    kind = option.type.name.removesuffix(" range")
    return {"int": _COUNT, "integer": _COUNT, "float": _NUMBER}.get(kind, _TEXT)


def _is(wanted: tuple[str, str], value: Any, option: TyperOption) -> bool:
    if wanted is _FLAG or isinstance(value, bool):
        return wanted is _FLAG and isinstance(value, bool)
    if wanted is _TEXT:
        # A port is text for libpq, and a number for people; so are sizes without a suffix.
        is_number = option.name == "port" or getattr(option.type, "func", None) in (parse_size, parse_rate)
        return isinstance(value, str) or (is_number and isinstance(value, int))
    return isinstance(value, int) or (wanted is _NUMBER and isinstance(value, float))


def _as_given(option: TyperOption, value: Any) -> Any:
    """Return a value as the command line would give it."""
    if option.multiple and not isinstance(value, list):
        return [value]
    return str(value) if _wanted(option) is _TEXT and isinstance(value, int) else value


def _is_path(option: TyperOption, text: str) -> bool:
    return option.type.name in ("path", "file", "directory", "filename") or (
        option.name == "repo" and "://" not in text
    )
