"""``pgwal init``: make a repository, and say how it stores the files of backups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pgwal.repository.compression import DEFAULT_COMPRESSION, Compression, CompressionMethod
from pgwal.repository.storage_format import FileFormat, StorageFormat
from pgwal_cli import options
from pgwal_cli.output import print_json

if TYPE_CHECKING:
    from pgwal_cli.documents import InitDocument

Format = Annotated[
    FileFormat | None,
    typer.Option(
        "--format",
        help="How it stores the files of backups; by default plain in a directory, packed in an object store.",
        show_default=False,
    ),
]


def _parse_compression(text: str) -> Compression:
    """Read how packs are to be compressed; raises the usage error of what they cannot be."""
    compression = options.parse_compression(text)
    if compression.method not in (CompressionMethod.NONE, CompressionMethod.ZSTD):
        raise typer.BadParameter(f"packs are compressed with zstd[:LEVEL], or with none, not with {text}")
    return compression


def init(
    repo: options.Repo,
    file_format: Format = None,
    compress: Annotated[
        Compression | None,
        typer.Option(
            "--compress",
            parser=_parse_compression,
            metavar="METHOD",
            help=f"Of packed files: zstd[:LEVEL] or none; {DEFAULT_COMPRESSION} by default.",
        ),
    ] = None,
    recipient: Annotated[
        list[str] | None,
        typer.Option(
            "--recipient",
            metavar="AGE_PUBLIC_KEY",
            help="Encrypt all that is stored, for this public key of age and others; see pgwal key generate.",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Make a repository that stores the files of backups one by one, or compressed in packs.

    Without it, the first stream or full backup makes one of the default format.
    """
    from pgwal.engine.initialise import initialise

    if recipient and file_format is FileFormat.PLAIN:
        raise typer.BadParameter("encryption needs --format packed: plain files are stored as they are")
    if recipient and file_format is None:
        file_format = FileFormat.PACKED
    wanted = repo.default_format if file_format is None else StorageFormat(file_format)
    if wanted.files is FileFormat.PACKED:
        wanted = StorageFormat(wanted.files, compress or DEFAULT_COMPRESSION)
    elif compress is not None:
        raise typer.BadParameter("--compress is for --format packed: plain files are stored as they are")
    found = initialise(repo, wanted, recipient or ())
    if json:
        document: InitDocument = {
            "version": 1,
            "repository": str(repo),
            "format": found.files.value,
            "compression": str(found.compression),
            "encrypted": found.encryption_id is not None,
        }
        print_json(document)
    else:
        print(f"{repo} is a repository of format {found}")
        if found.encryption_id is not None:
            from pgwal.encryption.key_places import metadata_key_path
            from pgwal.repository.place import address_of

            path = metadata_key_path(address_of(repo), repo.keys)
            print(f"its metadata key is in {path}: hosts that take backups need it")
