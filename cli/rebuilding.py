"""What restore and combine have in common on the command line: how files are written, and where tablespaces go."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pgwal.engine.rebuild_options import RebuildOptions
    from pgwal.engine.rebuild_report import RebuildReport
    from pgwal_cli.restore_documents import CombineDocument

logger = logging.getLogger("pgwal")

TablespaceMapping = Annotated[
    list[str] | None, typer.Option("-T", "--tablespace-mapping", metavar="OLD=NEW", help="Move a tablespace.")
]
TablespacesInPlace = Annotated[
    bool,
    typer.Option(
        "--allow-tablespaces-in-place", help="Restore tablespaces that are not mapped to their original places."
    ),
]
Copy = Annotated[bool, typer.Option("--copy", help="Copy files; the default. All that is copied is checked.")]
Clone = Annotated[bool, typer.Option("--clone", help="Clone files (reflinks) that come whole from one backup.")]
CopyFileRange = Annotated[bool, typer.Option("--copy-file-range", help="Have the kernel copy, by copy_file_range.")]
Link = Annotated[
    bool,
    typer.Option(
        "-k",
        "--link",
        help="Hard-link files that come whole from one backup. A server that runs on them destroys the backup.",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option("-j", "--jobs", metavar="N", min=1, max=64, help="Threads; one per processor, at most 4, by default."),
]
NoSync = Annotated[bool, typer.Option("-N", "--no-sync", help="Do not wait for files to be written safely to disk.")]


@dataclass(frozen=True, slots=True)
class RebuildingOptions:
    """The options that say how files are written."""

    copy: Copy = False
    clone: Clone = False
    copy_file_range: CopyFileRange = False
    link: Link = False
    jobs: Jobs = None
    no_sync: NoSync = False

    def rebuild_options(self) -> RebuildOptions:
        """Return how files are to be written; raises the usage error of two ways at once."""
        from pgwal.disk.copy_method import CopyMethod
        from pgwal.engine.rebuild_options import RebuildOptions

        if self.copy + self.clone + self.copy_file_range + self.link > 1:
            raise typer.BadParameter("--copy, --clone, --copy-file-range and --link exclude each other")
        method = CopyMethod.COPY
        if self.clone:
            method = CopyMethod.CLONE
        elif self.copy_file_range:
            method = CopyMethod.COPY_FILE_RANGE
        elif self.link:
            method = CopyMethod.LINK
        return RebuildOptions(method, self.jobs, sync=not self.no_sync)


def argument_bytes(argument: str) -> str:
    """Return the text that stands for the bytes of an argument, whatever the locale makes of them."""
    from pgwal.backup.stored_path import decode_path

    return decode_path(os.fsencode(argument))


def parse_tablespaces(mappings: list[str] | None) -> dict[str, str]:
    """Read OLD=NEW mappings; a backslash makes an equals sign part of a path, as in pg_combinebackup."""
    result = {}
    for mapping in mappings or []:
        parts = argument_bytes(mapping).replace("\\=", "\0").partition("=")
        old, _, new = (part.replace("\0", "=") for part in parts)
        if not old.startswith("/") or not new.startswith("/"):
            raise typer.BadParameter(f"{mapping!r} is not OLD=NEW with absolute paths", param_hint="-T")
        result[old] = new
    return result


def warn_of_links(backups: Iterable[str], directory: Path) -> None:
    """Say which backups are lost as soon as somebody changes what was linked."""
    if names := ", ".join(backups):
        logger.warning(
            "files in %s are those of the repository itself: a server that is started there changes them, and destroys"
            " %s and all backups that build on it; pgwal verify finds that out, and nothing repairs it",
            directory,
            names,
        )


def warn_of_root(directory: Path) -> None:
    """Say that a server cannot use what root has restored for root; what was another user's before is so again."""
    if os.geteuid() == 0 and directory.stat().st_uid == 0:
        logger.warning("all of %s belongs to root, and a server does not run as root: chown it to its user", directory)


def rebuild_document(report: RebuildReport) -> CombineDocument:
    """Return what --json prints of it."""
    return {
        "version": 1,
        "backup": report.entry.backup_id,
        "backup_count": report.chain_length,
        "file_count": report.file_count,
        "read_bytes": report.bytes_read,
        "written_bytes": report.bytes_written,
        "linked_backups": list(report.linked_backups),
    }
