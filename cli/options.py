"""Options that several commands share; their spellings are PostgreSQL's.

Those that go together are a group: a dataclass whose fields are the options.  A command that ``with_groups`` is put
on takes the group as one parameter.
"""

from __future__ import annotations

import functools
import getpass
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from pgwal.budget import DEFAULT_JOBS
from pgwal.errors import FormatError, PasswordRequired
from pgwal.lsn import Lsn
from pgwal.repository.place import Place

if TYPE_CHECKING:
    from pgwal.postgres.connection import ConnectionParameters
    from pgwal.repository.compression import Compression

CONNECTION = "Connection options"


def parse_place(text: str) -> Place:
    """Read the address of a repository; raises the usage error of what is none.  Nothing is looked at."""
    from pgwal.repository.address import place_at

    try:
        return place_at(text)
    except FormatError as error:
        raise typer.BadParameter(f"{error}. {error.hint or ''}".strip()) from error


RepoOption = typer.Option(
    "--repo",
    envvar="PGWAL_REPO",
    parser=parse_place,
    metavar="PATH",
    help="The repository: a directory, or s3://BUCKET/PREFIX, gs:// or az://.",
    show_default=False,
)
Repo = Annotated[Place, RepoOption]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Dbname = Annotated[
    str | None,
    typer.Option(
        "-d", "--dbname", metavar="CONNSTR", help="Database, or connection string.", rich_help_panel=CONNECTION
    ),
]
Host = Annotated[
    str | None,
    typer.Option("-h", "--host", help="Server host or socket directory.", rich_help_panel=CONNECTION),
]
Port = Annotated[str | None, typer.Option("-p", "--port", help="Server port.", rich_help_panel=CONNECTION)]
Username = Annotated[
    str | None,
    typer.Option("-U", "--username", metavar="NAME", help="Role to connect as.", rich_help_panel=CONNECTION),
]
NoPassword = Annotated[
    bool, typer.Option("-w", "--no-password", help="Never ask for a password.", rich_help_panel=CONNECTION)
]
Password = Annotated[
    bool, typer.Option("-W", "--password", help="Ask for a password first.", rich_help_panel=CONNECTION)
]
Progress = Annotated[bool, typer.Option("-P", "--progress", help="Show a progress bar.")]
Slot = Annotated[str | None, typer.Option("-S", "--slot", metavar="NAME", help="Replication slot that holds back WAL.")]


class CheckpointMode(StrEnum):
    FAST = "fast"
    SPREAD = "spread"


class ChecksumAlgorithm(StrEnum):
    """What a backup manifest can hold."""

    NONE = "NONE"
    CRC32C = "CRC32C"
    SHA224 = "SHA224"
    SHA256 = "SHA256"
    SHA384 = "SHA384"
    SHA512 = "SHA512"


DEFAULT_LABEL = "pgwal base backup"

LATEST = "latest"
"""What to build on when nothing else is said: the newest backup."""

# Of every path, readable=False: whether it can be read shows where it is, with a hint, and is no usage error.
# Not from PGDATA, which may be that of another server than the one connected to.
Pgdata = Annotated[
    Path | None,
    typer.Option(
        "--pgdata", metavar="DIR", help="The server's data directory, read locally instead of over SQL.", readable=False
    ),
]
Checkpoint = Annotated[
    CheckpointMode, typer.Option("-c", "--checkpoint", help="Start with a fast checkpoint, or spread it over time.")
]


def parse_label(text: str) -> str:
    """Read a label, which the server must take as text; raises the usage error of bytes that are none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise typer.BadParameter("the label is no text in UTF-8") from error
    return text


Label = Annotated[str, typer.Option("-l", "--label", parser=parse_label, metavar="TEXT", help="The backup's label.")]
ManifestChecksums = Annotated[
    ChecksumAlgorithm,
    typer.Option("--manifest-checksums", case_sensitive=False, help="Checksum algorithm of the manifest."),
]

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be copied of each relation, and touch nothing.")
]
Jobs = Annotated[
    int,
    typer.Option("-j", "--jobs", min=1, max=64, metavar="N", help="Files copied at a time, over as many connections."),
]


class ChecksumFailure(StrEnum):
    """What a backup does about a page that fails its checksum."""

    WARN = "warn"
    ERROR = "error"


OnChecksumFailure = Annotated[
    ChecksumFailure,
    typer.Option(
        "--checksum-failure",
        help="What to do about a page that fails its checksum: warn, or fail the backup (exit code 5).",
    ),
]

_LOWEST_RATE, _HIGHEST_RATE = 32, 1 << 20  # kB/s


def parse_rate(text: str) -> int:
    """Read a rate as pg_basebackup does, and return it in bytes a second; raises the usage error of a bad one."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([kM]?)\s*", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no rate: a number, and k or M")
    rate = float(match[1]) * (1024 if match[2] == "M" else 1)
    if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
        raise typer.BadParameter(f"{text!r} is not between {_LOWEST_RATE}k and {_HIGHEST_RATE >> 10}M, a second")
    return int(rate * 1024)


MaxRate = Annotated[
    int | None,
    typer.Option(
        "-r",
        "--max-rate",
        parser=parse_rate,
        metavar="RATE",
        help="Maximum read rate in kB/s; suffix k or M.",
    ),
]


def parse_percent(text: str | float) -> float:
    """Read a share in percent, above 0 and up to 100, or a default one; raises the usage error of a bad one."""
    text = str(text)
    if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,9})?", text) is None or not 0 < float(text) <= 100:
        raise typer.BadParameter(f"{text!r} is no percentage above 0 and up to 100")
    return float(text)


AuditPercent = Annotated[
    float | None,
    typer.Option(
        "--audit",
        parser=parse_percent,
        metavar="PERCENT",
        help="Also read this percentage of the blocks that are not copied; fail with exit code 5 if one has changed.",
    ),
]


def parse_size(text: str) -> int:
    """Read a number of bytes, with suffix k, M, G or T for powers of 1024."""
    factors = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
    number = text.rstrip("kKmMgGtT")
    suffix = text[len(number) :].lower()
    if not number.isascii() or not number.isdigit() or len(number) > 12 or suffix not in ("", *factors):
        raise typer.BadParameter(f"{text!r} is no size such as 512M or 4G")
    return int(number) * factors.get(suffix, 1)


MaxRetained = Annotated[
    int | None,
    typer.Option(
        "--max-retained",
        parser=parse_size,
        metavar="SIZE",
        help="How much WAL the slot may make the server retain; suffix M, G or T.",
    ),
]


def parse_compression(text: str) -> Compression:
    """Read a method and its level from an option; raises the usage error of bad ones."""
    from pgwal.repository.compression import Compression

    try:
        return Compression.parse(text)
    except FormatError as error:
        raise typer.BadParameter(str(error)) from error


Compress = Annotated[
    Any,  # a Compression, which takes long to import
    typer.Option(
        "-Z",
        "--compress",
        parser=parse_compression,
        metavar="METHOD[:LEVEL]",
        help="Compression of finished segments: zstd, lz4, gzip or none.",
    ),
]


def parse_lsn(text: str) -> Lsn:
    """Read an LSN from an option; raises the usage error of a bad one."""
    try:
        lsn = Lsn.parse(text)
    except FormatError as error:
        raise typer.BadParameter(f"{error} {error.hint or ''}".strip()) from error
    if lsn >= _END_OF_WAL:
        raise typer.BadParameter(f"{text} lies behind 7FFFFFFF/FFFFFFFF, which no WAL reaches")
    return lsn


_END_OF_WAL = 1 << 63
_HIGHEST_TIMELINE = 0xFFFF_FFFF


def parse_timeline(text: str) -> int:
    """Read a timeline as PostgreSQL does, decimal or as 0x10; raises the usage error of a bad one.

    PostgreSQL takes 010 for octal, and people for decimal, or for part of a file's name: it is refused.
    """
    match = re.fullmatch(r"0[xX]([0-9A-Fa-f]+)|([1-9][0-9]*)", text)
    timeline_id = 0 if match is None else int(match[1], 16) if match[1] else int(match[2][:11])
    if not 0 < timeline_id <= _HIGHEST_TIMELINE:
        raise typer.BadParameter(f"{text!r} is not a timeline: a number such as 16, or 0x10")
    return timeline_id


@dataclass(frozen=True, slots=True)
class BackupOptions:
    """What every command that takes a backup is told."""

    repo: Repo
    pgdata: Pgdata = None
    checkpoint: Checkpoint = CheckpointMode.SPREAD
    label: Label = DEFAULT_LABEL
    manifest_checksums: ManifestChecksums = ChecksumAlgorithm.CRC32C
    checksum_failure: OnChecksumFailure = ChecksumFailure.WARN
    jobs: Jobs = DEFAULT_JOBS
    max_rate: MaxRate = None
    slot: Slot = None
    progress: Progress = False
    json: Json = False


_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """Where to connect to, as whom, and whether a password may be asked for."""

    dbname: Dbname = None
    host: Host = None
    port: Port = None
    username: Username = None
    no_password: NoPassword = False
    password: Password = False

    def parameters(self) -> ConnectionParameters:
        """Return where to connect to; asks for the password when -W says so."""
        from pgwal.postgres.connection import ConnectionParameters

        parameters = ConnectionParameters.from_options(self.dbname, host=self.host, port=self.port, user=self.username)
        return parameters.with_password(_ask_password()) if self.password else parameters

    def connecting(self, action: Callable[[ConnectionParameters], _Result]) -> _Result:
        """Run an action that connects; when the server wants a password, ask for it once and run it again."""
        parameters = self.parameters()
        try:
            return action(parameters)
        except PasswordRequired:
            if self.no_password or not sys.stdin.isatty():
                raise
        return action(parameters.with_password(_ask_password()))


def _ask_password() -> str:
    try:
        return getpass.getpass()
    except EOFError as error:
        raise PasswordRequired(
            "no password was given", hint="Without a terminal, give it in .pgpass or in PGPASSWORD."
        ) from error


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Spell out each group of options that a command takes, so that typer sees every option of it."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            parameters += _spelled_out(groups[parameter.name])
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _spelled_out(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]


def require_order(start: Lsn | None, end: Lsn | None) -> None:
    """Refuse a range whose start lies after its end."""
    if start is not None and end is not None and start > end:
        raise typer.BadParameter(f"--from {start} lies after --to {end}")
