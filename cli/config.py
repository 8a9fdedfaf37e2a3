"""``pgwal config``: what the configuration file says, and whether it is understood."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from pgwal_cli import options
from pgwal_cli.cluster_command import NO_FILE_HINT, Chosen, ClusterCommand
from pgwal_cli.cluster_environment import ENVIRONMENT, SPOOL
from pgwal_cli.configuration_file import ConfigurationError, ConfigurationFile, Keys
from pgwal_cli.configured_options import CommandOptions, CommandSettings, all_commands, is_overridden, own_variable
from pgwal_cli.exit_codes import USAGE, UsageError
from pgwal_cli.output import print_json, table_lines

if TYPE_CHECKING:
    from pgwal_cli.condition_documents import (
        ConfigCheckDocument,
        ConfigShowDocument,
        ConfiguredClusterDocument,
    )

_LIBPQ = {"dbname": "PGDATABASE", "host": "PGHOST", "port": "PGPORT", "username": "PGUSER"}
"""Variables that libpq reads for what neither the command line nor the file says."""


class _CommandOnFile(ClusterCommand):
    """A command that is about the file as it is, right or not."""

    def _defaults(self, ctx: Any, said: Mapping[str, Any]) -> dict[str, Any]:
        chosen = ctx.ensure_object(Chosen)
        chosen.take(said)
        return {}


def check(context: typer.Context, json: options.Json = False) -> None:
    """Look for what is not understood in the configuration file, of all clusters or of the one named.

    Exit code 2 when there is something.
    """
    file, clusters = _file_and_clusters(context.obj)
    problems = _problems(file, clusters)
    if json:
        document: ConfigCheckDocument = {
            "version": 1,
            "path": str(file.path),
            "cluster_names": clusters,
            "mistakes": [{"message": str(problem), "hint": problem.hint} for problem in problems],
        }
        print_json(document)
    else:
        for problem in problems:
            print(f"{problem}{'' if problem.hint is None else f'. {problem.hint}'}")
        names = ", ".join(clusters) or "no cluster"
        print(f"{file.path}: {names}; {f'{len(problems)} wrong' if problems else 'nothing is wrong'}")
    if problems:
        raise typer.Exit(USAGE)


def show(context: typer.Context, json: options.Json = False) -> None:
    """Show which options count for each cluster, and where each comes from; of commands the name alone.

    The command line counts before all that, as always.
    """
    file, clusters = _file_and_clusters(context.obj)
    shown = {name: list(_effective(file, name)) for name in _names(clusters)}
    if json:
        print_json(_document(file, shown))
        return
    print(file.path)
    for name, found in shown.items():
        print(f"\n{'without a cluster' if name is None else f'cluster {name}'}")
        rows = [(option.command or "-", option.option, option.value, option.origin) for option in found]
        print("\n".join(table_lines(("COMMAND", "OPTION", "VALUE", "FROM"), rows)))


def _document(file: ConfigurationFile, shown: Mapping[str | None, list[_Effective]]) -> ConfigShowDocument:
    clusters: list[ConfiguredClusterDocument] = [
        {
            "cluster": name,
            "options": [
                {"command": each.command, "option": each.option, "value": each.value, "origin": each.origin}
                for each in found
            ],
        }
        for name, found in shown.items()
    ]
    return {"version": 1, "path": str(file.path), "clusters": clusters}


class _Effective(NamedTuple):
    """An option that counts, for one command or for all that have it."""

    command: str | None
    option: str
    value: str
    origin: str


def _file_and_clusters(chosen: Chosen) -> tuple[ConfigurationFile, list[str]]:
    file = ConfigurationFile.find(chosen.config)
    if file is None:
        raise UsageError("there is no configuration file", hint=NO_FILE_HINT)
    if chosen.cluster is not None:
        file.require_cluster(chosen.cluster)
        return file, [chosen.cluster]
    return file, list(file.clusters)


def _names(clusters: list[str]) -> list[str | None]:
    """Return whom to look at: without clusters, what counts for none."""
    return [*clusters] or [None]


def _settings(file: ConfigurationFile, cluster: str | None) -> list[tuple[CommandOptions, CommandSettings]]:
    commands = all_commands()
    words = {command.words[0] for command in commands}
    return [(command, CommandSettings(file, cluster, command, words)) for command in commands]


def _problems(file: ConfigurationFile, clusters: list[str]) -> list[ConfigurationError]:
    """Return each thing that is wrong once, in the order of the file."""
    found: dict[str, tuple[int, ConfigurationError]] = {}

    def note(problem: ConfigurationError) -> None:
        found.setdefault(str(problem), (len(found), problem))

    for name in _names(clusters):
        settings = _settings(file, name)
        for _, each in settings:
            for problem in each.problems:
                note(problem)
        if name is not None and not any("repo" in each.found for _, each in settings):
            note(file.error(("cluster", name), "has no repository", "Add: repo = ..."))
    return [problem for _, problem in sorted(found.values(), key=lambda each: (each[1].line, each[0]))]


def _effective(file: ConfigurationFile, cluster: str | None) -> Iterator[_Effective]:
    shared: dict[str, _Effective] = {}
    own: list[_Effective] = []
    for command, settings in _settings(file, cluster):
        for name, option in command.by_name.items():
            parameter = str(option.name)
            setting = settings.found.get(parameter)
            variable = own_variable(option)
            if variable is not None:
                shared[name] = _Effective(None, name, _shown(name, os.environ[variable]), variable)
            elif setting is not None and not is_overridden(option):
                origin = _origin(file, setting.keys)
                is_own = setting.distance % 2 == 1
                found = _Effective(
                    " ".join(command.words) if is_own else None, name, _shown(name, setting.value), origin
                )
                if is_own:
                    own.append(found)
                else:
                    shared[name] = found
            elif os.environ.get(_LIBPQ.get(name, "")) and command.for_cluster(name) is not None:
                shared.setdefault(name, _Effective(None, name, os.environ[_LIBPQ[name]], f"{_LIBPQ[name]}, by libpq"))
    yield from sorted(shared.values(), key=lambda each: each.option)
    yield from sorted(own)
    yield from _variables(file, cluster)


def _variables(file: ConfigurationFile, cluster: str | None) -> Iterator[_Effective]:
    """Yield the variables of object stores; of a secret where it is, and not what."""
    _, settings = _settings(file, cluster)[0]
    for name, variable in sorted(settings.variables.items()):
        if name == SPOOL:
            continue
        is_set = bool(os.environ.get(name))
        origin = "environment" if is_set else _origin(file, variable.keys)
        yield _Effective(ENVIRONMENT, name, "(as it is)" if is_set else str(variable), origin)


def _origin(file: ConfigurationFile, keys: Keys) -> str:
    return f"{file.path}:{file.line_of(keys)} [{'.'.join(keys[:-1])}]"


def _shown(name: str, value: Any) -> str:
    """Return a value as text; of a command the program alone, for what follows may be a secret."""
    if name.endswith("-command"):
        program, _, arguments = str(value).partition(" ")
        return f"{program} ..." if arguments else program
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


config = typer.Typer(
    name="config",
    help="The configuration file.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
for command in (check, show):
    config.command(command.__name__, cls=_CommandOnFile)(command)
