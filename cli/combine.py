"""``pgwal combine``: a synthetic full backup."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgwal_cli import options
from pgwal_cli.allocator import share_freed_memory
from pgwal_cli.named_backup import Backup, backup_id
from pgwal_cli.output import print_json, size_text
from pgwal_cli.progress import progress_bar
from pgwal_cli.rebuilding import (
    RebuildingOptions,
    TablespaceMapping,
    TablespacesInPlace,
    parse_tablespaces,
    rebuild_document,
    warn_of_links,
    warn_of_root,
)


@options.with_groups
def combine(
    backup: Backup,
    repo: options.Repo,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="DIR", help="Output directory; absent or empty.", readable=False),
    ],
    tablespace_mapping: TablespaceMapping = None,
    allow_tablespaces_in_place: TablespacesInPlace = False,
    manifest_checksums: options.ManifestChecksums = options.ChecksumAlgorithm.CRC32C,
    no_manifest: Annotated[bool, typer.Option("--no-manifest", help="Write no backup manifest.")] = False,
    *,
    rebuilding: RebuildingOptions,
    progress: options.Progress = False,
    json: options.Json = False,
) -> None:
    """Make a synthetic full backup of a backup and those it builds on, with its manifest, without recovery settings."""
    from pgwal.engine.combine import CombineRequest, combine_backups

    how = rebuilding.rebuild_options()
    share_freed_memory()
    request = CombineRequest(
        repo,
        backup_id(repo, backup),
        output,
        parse_tablespaces(tablespace_mapping),
        how,
        allow_tablespaces_in_place=allow_tablespaces_in_place,
        manifest_checksums=None if no_manifest else manifest_checksums.value,
    )
    with progress_bar("combining", progress) as on_progress:
        report = combine_backups(request, on_progress)
    warn_of_links(report.linked_backups, output)
    warn_of_root(output)
    if json:
        print_json(rebuild_document(report))
    else:
        print(
            f"combined {report.chain_length} backups into {output}, a full backup as of {report.entry.backup_id}:"
            f" {report.file_count} files, {size_text(report.bytes_written)}"
        )
