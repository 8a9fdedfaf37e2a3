"""What every command has: the cluster that it is for, and the options of it that the configuration file says."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from pgwal_cli.configuration_file import ConfigurationFile
from pgwal_cli.exit_codes import UsageError
from pgwal_cli.output import set_log_times, set_quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pgwal_cli.configured_options import CommandSettings

logger = logging.getLogger("pgwal")

_CONFIG_HELP = "Configuration file; PGWAL_CONFIG."
_CLUSTER_HELP = "Cluster of the configuration file, whose options count."
Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help=_CONFIG_HELP, readable=False, show_default=False)
]
Cluster = Annotated[str | None, typer.Option("-C", "--cluster", metavar="NAME", help=_CLUSTER_HELP)]

# The names of click's sources of a value, which typer keeps to itself; the first one counts.
_SOURCES = ("COMMANDLINE", "ENVIRONMENT", "DEFAULT_MAP")
_NOT_GIVEN = 99
_EXCLUSIVE = (
    ("identity", "identity_command"),
    ("copy", "clone", "copy_file_range", "link"),
    ("target_lsn", "target_time", "target_xid", "target_name", "target_immediate"),
    ("no_password", "password"),
)


@dataclass(slots=True)
class Chosen:
    """Which cluster of which file the call is for, as it was said before the command, or ``of_all`` by --all."""

    cluster: str | None = None
    config: Path | None = None
    of_all: bool = False

    def take(self, said: Mapping[str, Any]) -> None:
        """Let what was said behind the command count before what was said in front of it."""
        self.cluster = said.get("cluster", self.cluster)
        self.config = Path(said["config"]) if "config" in said else self.config


class EachCluster(Exception):
    """The command was called with --all: it is to be run for each cluster, and nothing is wrong."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.names = names


class ClusterCommand(TyperCommand):
    """A command whose defaults are click's own map of them, filled with what the configuration file says."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        super().__init__(name, **settings)
        self.params += [
            _option("--config", metavar="FILE", text=_CONFIG_HELP),
            _option("-C", "--cluster", metavar="NAME", text=_CLUSTER_HELP),
            _option("-q", "--quiet", text="Log warnings alone.", **_flag(set_quiet)),
            _option("--log-times", text="Put the time before each message that is logged.", **_flag(set_log_times)),
        ]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse as click does, with the defaults of the cluster that the same arguments name."""
        said, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        # Help is there whatever the file says, and so is what a shell completes.
        if not said.get("help") and not ctx.resilient_parsing:
            ctx.default_map = self._defaults(ctx, said)
        try:
            return super().parse_args(ctx, args)
        except BaseException:
            # A context that has not come to be is never closed, and another cluster may have its turn.
            ctx.close()
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run the command with what is nearest to it where options exclude each other."""
        settings: CommandSettings | None = ctx.meta.get(_SETTINGS)
        if settings is not None:
            _prefer_nearer(ctx, settings, {str(option.name): option.default for option in self.params})
        return super().invoke(ctx)

    def _defaults(self, ctx: Any, said: Mapping[str, Any]) -> dict[str, Any]:
        chosen: Chosen = ctx.ensure_object(Chosen)
        chosen.take(said)
        cluster = chosen.cluster
        file = ConfigurationFile.find(chosen.config)
        if said.get("all"):
            raise EachCluster(_all_clusters(file, cluster))
        if file is None:
            if cluster is not None:
                raise UsageError(f"there is no configuration file with a cluster {cluster!r}", hint=NO_FILE_HINT)
            return {}
        if cluster is not None:
            file.require_cluster(cluster)
        settings = self._settings(ctx, file, cluster)
        if settings.problems:
            raise settings.problems[0]
        ctx.meta[_SETTINGS] = settings
        self._require_repository(said, settings, cluster)
        from pgwal_cli.cluster_environment import ClusterEnvironment
        from pgwal_cli.configured_options import is_overridden

        if any(option.name == "repo" for option in self.params):
            environment = ClusterEnvironment(file, settings.variables)
            environment.enter()
            ctx.call_on_close(environment.leave)

        # Click has variables count before its map; of keys they are read elsewhere.
        return {name: setting.value for name, setting in settings.found.items() if not is_overridden(setting.option)}

    def _settings(self, ctx: Any, file: ConfigurationFile, cluster: str | None) -> CommandSettings:
        # Not above: few have a file.
        from pgwal_cli.configured_options import CommandOptions, CommandSettings
        from pgwal_cli.main import COMMANDS

        command = CommandOptions.of(_words(ctx), self.params)
        return CommandSettings(file, cluster, command, COMMANDS)

    def _require_repository(self, said: Mapping[str, Any], settings: CommandSettings, cluster: str | None) -> None:
        """Name the clusters to whoever names none, and no repository either."""
        option = next((option for option in self.params if option.name == "repo"), None)
        if cluster is not None or option is None or not option.required or not settings.file.clusters:
            return
        if "repo" not in said and "repo" not in settings.found and not os.environ.get("PGWAL_REPO"):
            names = ", ".join(settings.file.clusters)
            raise UsageError("no cluster and no repository is named", hint=f"Name one with -C ({names}), or --repo.")


class EachClusterCommand(ClusterCommand):
    """A command that can be for each cluster in turn."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        super().__init__(name, **settings)
        self.params.append(_option("--all", is_flag=True, default=False, text="For each cluster of the file in turn."))


_SETTINGS = f"{__name__}.settings"
NO_FILE_HINT = "Write /etc/pgwal.toml, or pgwal/pgwal.toml below XDG_CONFIG_HOME, or name a file with --config."


def _words(ctx: Any) -> list[str]:
    """Return the words of the command, without the program's."""
    words: list[str] = []
    while ctx.parent is not None:
        words.insert(0, str(ctx.info_name))
        ctx = ctx.parent
    return words


def _all_clusters(file: ConfigurationFile | None, cluster: str | None) -> list[str]:
    if cluster is not None:
        raise UsageError(f"--all and --cluster {cluster} exclude each other")
    if os.environ.get("PGWAL_REPO"):
        raise UsageError(
            "PGWAL_REPO would be the repository of all clusters", hint="Unset it: the file has one for each."
        )
    if file is None:
        raise UsageError("there is no configuration file with clusters", hint=NO_FILE_HINT)
    if not file.clusters:
        raise UsageError(f"there is no cluster in {file.path}", hint="Add a table [cluster.NAME].")
    return list(file.clusters)


def _flag(act: Callable[[bool], None]) -> dict[str, Any]:
    return {"is_flag": True, "default": False, "callback": lambda _context, _option, wanted: act(wanted)}


def _option(*spellings: str, text: str, **more: Any) -> TyperOption:
    return TyperOption(param_decls=list(spellings), help=text, expose_value=False, **more)


# ---- which of two counts


def _distance(ctx: Any, settings: CommandSettings, name: str) -> int:
    """Return how far from the call a value was given: on the command line, in the environment, or where in the file."""
    source = ctx.get_parameter_source(name)
    if source is None or source.name not in _SOURCES or ctx.params.get(name) in (None, False):
        return _NOT_GIVEN
    if source.name == "DEFAULT_MAP":
        return len(_SOURCES) + settings.found[name].distance
    return _SOURCES.index(source.name)


def _prefer_nearer(ctx: Any, settings: CommandSettings, defaults: Mapping[str, Any]) -> None:
    for group in _EXCLUSIVE:
        distances = {name: _distance(ctx, settings, name) for name in group if name in ctx.params}
        nearest = min(distances.values(), default=_NOT_GIVEN)
        for name, distance in distances.items():
            if nearest < distance < _NOT_GIVEN:
                ctx.params[name] = defaults[name]
    silent = _WITHOUT_THEIR_PURPOSE.get(" ".join(_words(ctx)))
    for name in silent(ctx.params) if silent is not None else ():
        if _distance(ctx, settings, name) >= len(_SOURCES):
            ctx.params[name] = defaults[name]
    _connect_nearer(ctx, settings)
    _tell_of_repository(ctx, settings)


def _rules_without_why(values: Mapping[str, Any]) -> list[str]:
    return [] if values["why"] else [name for name in values if name.startswith("keep_")]


def _places_of_no_trial(values: Mapping[str, Any]) -> list[str]:
    return [] if values["restore"] else ["restore_dir", "bindir"]


def _compression_of_no_packs(values: Mapping[str, Any]) -> list[str]:
    from pgwal.repository.storage_format import FileFormat

    wanted = values["file_format"] or (
        FileFormat.PACKED if values["recipient"] else values["repo"].default_format.files
    )
    return [] if wanted == FileFormat.PACKED else ["compress"]


def _guard_of_no_slot(values: Mapping[str, Any]) -> list[str]:
    options = [name for name in ("max_retained", "drop_slot") if name in values]
    return options if values["slot"] is None else [] if values["max_retained"] is not None else options[1:]


_WITHOUT_THEIR_PURPOSE: Mapping[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "list": _rules_without_why,
    "verify": _places_of_no_trial,
    "init": _compression_of_no_packs,
    "stream": _guard_of_no_slot,
    "check": _guard_of_no_slot,
}
"""Options that are mistakes without another one, on the command line; out of the file they say nothing then."""


def _connect_nearer(ctx: Any, settings: CommandSettings) -> None:
    """Let what is nearer say where to connect to: libpq has a connection string win over all that stands beside it."""
    dbname = ctx.params.get("dbname")
    if not dbname or not ("=" in dbname or "://" in dbname):
        return
    distance = _distance(ctx, settings, "dbname")
    names = {"host": "host", "port": "port", "username": "user"}
    nearer = {
        keyword: ctx.params[name]
        for name, keyword in names.items()
        if name in ctx.params and _distance(ctx, settings, name) < distance
    }
    if nearer:
        from psycopg import ProgrammingError
        from psycopg.conninfo import make_conninfo

        try:
            ctx.params["dbname"] = make_conninfo(dbname, **nearer)
        except ProgrammingError:
            return  # Whoever connects says so.


def _tell_of_repository(ctx: Any, settings: CommandSettings) -> None:
    """Warn where a variable stands for the repository of a cluster; refuse that it stands for all."""
    chosen: Chosen = ctx.obj or Chosen()
    source = ctx.get_parameter_source("repo")
    if chosen.of_all and source is not None and source.name == "COMMANDLINE":
        raise UsageError("--repo would be the repository of all clusters", hint="Leave --all or --repo out.")
    own = settings.found.get("repo")
    if source is not None and source.name == "ENVIRONMENT" and own is not None:
        given = os.environ["PGWAL_REPO"]
        if given != own.value:
            logger.warning(
                "PGWAL_REPO counts, which is %s, and not %s, as %s has it", given, own.value, settings.file.path
            )
