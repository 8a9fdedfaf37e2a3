"""``pgwal unpin``: let a backup be expired again."""

from __future__ import annotations

from pgwal_cli import options
from pgwal_cli.named_backup import Backup, backup_id
from pgwal_cli.output import print_json


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
        print_json({"id": backup, "pinned": False, "changed": was_pinned})
    else:
        print(f"unpinned {backup}" if was_pinned else f"{backup} is not pinned")
