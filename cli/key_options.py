"""The options that name keys: every command with a repository has them, and its place knows what they say."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from pgwal.encryption.key_sources import KeySources
from pgwal.repository.place import Place

_KEYS = "Keys of encrypted repositories"

Identity = Annotated[
    Path | None,
    typer.Option(
        "--identity",
        metavar="FILE",
        help="File of the private key that reads what is encrypted; PGWAL_IDENTITY.",
        readable=False,
        rich_help_panel=_KEYS,
    ),
]
IdentityCommand = Annotated[
    str | None,
    typer.Option(
        "--identity-command",
        metavar="CMD",
        help="Command that prints that key instead; PGWAL_IDENTITY_COMMAND.",
        rich_help_panel=_KEYS,
    ),
]
MetadataKey = Annotated[
    Path | None,
    typer.Option(
        "--metadata-key",
        metavar="FILE",
        help="File of the repository's metadata key; PGWAL_METADATA_KEY.",
        readable=False,
        rich_help_panel=_KEYS,
    ),
]
_OPTIONS = {"identity": Identity, "identity_command": IdentityCommand, "metadata_key": MetadataKey}


def with_keys(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes a repository the options of its keys; any other one is returned as it is."""
    signature = inspect.signature(command)
    if "repo" not in signature.parameters:
        return command
    hints = get_type_hints(command, include_extras=True)
    kind, *_ = get_args(hints["repo"])
    if Place not in (kind, *get_args(kind)):
        # A demo makes its own.
        return command

    @functools.wraps(command)
    def run(**values: Any) -> None:
        sources = key_sources(*(values.pop(name) for name in _OPTIONS))
        if values["repo"] is not None:
            values["repo"] = values["repo"].with_keys(sources)
        command(**values)

    parameters = [
        parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in signature.parameters.items()
    ]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in _OPTIONS.items()
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def key_sources(identity: Path | None, identity_command: str | None, metadata_key: Path | None) -> KeySources:
    """Return where keys come from; raises the usage error of two identities."""
    if identity is not None and identity_command is not None:
        raise typer.BadParameter("--identity and --identity-command exclude each other")
    return KeySources(identity, identity_command, metadata_key)
