"""``pgwal unpin``: let a backup be expired again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgwal_cli import options
from pgwal_cli.named_backup import Backup, backup_id
from pgwal_cli.output import print_json

if TYPE_CHECKING:
    from pgwal_cli.documents import PinDocument


def unpin(
    backup: Backup,
    repo: options.Repo,
    json: options.Json = False,
) -> None:
    """Let a backup be expired again, as the rules say."""
    from pgwal.engine.pinning import unpin_backup

    backup = backup_id(repo, backup)
    was_pinned = unpin_backup(repo, backup)
    if json:
        document: PinDocument = {"version": 1, "backup": backup, "pinned": False, "changed": was_pinned}
        print_json(document)
    else:
        print(f"unpinned {backup}" if was_pinned else f"{backup} is not pinned")
