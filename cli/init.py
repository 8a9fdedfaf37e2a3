"""``pgwal init``: make a repository, and say how it stores the files of backups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pgwal_cli import options
from pgwal_cli.output import print_json

if TYPE_CHECKING:
    from pgwal.repository.compression import Compression

DEFAULT_COMPRESSION = "zstd:1"


def _parse_compression(text: str) -> str:
    """Check how packs are to be compressed; raises the usage error of what they cannot be."""
    from pgwal.errors import FormatError
    from pgwal.repository.compression import Compression, CompressionMethod

    try:
        compression = Compression.parse(text)
    except FormatError as error:
        raise typer.BadParameter(str(error)) from error
    if compression.method not in (CompressionMethod.NONE, CompressionMethod.ZSTD):
        raise typer.BadParameter(f"packs are compressed with zstd[:LEVEL], or with none, not with {text}")
    return text


def init(
    repo: options.Repo,
    file_format: options.Format = options.FileFormat.PLAIN,
    compress: Annotated[
        str | None,
        typer.Option(
            "--compress",
            parser=_parse_compression,
            metavar="METHOD",
            help=f"Of packed files: zstd[:LEVEL] or none; {DEFAULT_COMPRESSION} by default.",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Make a repository that stores the files of backups one by one, or compressed in packs.

    Without it, the first stream or full backup makes one that stores them one by one.
    """
    from pgwal.engine.initialise import initialise
    from pgwal.repository.local_place import LocalPlace
    from pgwal.repository.storage_format import FileFormat, StorageFormat

    wanted = StorageFormat(FileFormat(file_format.value))
    if wanted.files is FileFormat.PACKED:
        wanted = StorageFormat(FileFormat.PACKED, _compression(compress or DEFAULT_COMPRESSION))
    elif compress is not None:
        raise typer.BadParameter("--compress is for --format packed: plain files are stored as they are")
    initialise(LocalPlace(repo), wanted)
    if json:
        print_json({"repository": str(repo), "format": wanted.files.value, "compression": str(wanted.compression)})
    else:
        print(f"{repo} is a repository of format {wanted}")


def _compression(text: str) -> Compression:
    from pgwal.repository.compression import Compression

    return Compression.parse(text)
