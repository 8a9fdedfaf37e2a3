"""``pgwal pin``: keep a backup from being expired."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgwal_cli import options
from pgwal_cli.named_backup import Backup, backup_id
from pgwal_cli.output import print_json

if TYPE_CHECKING:
    from pgwal_cli.documents import PinDocument


def pin(
    backup: Backup,
    repo: options.Repo,
    json: options.Json = False,
) -> None:
    """Keep a backup, with all that it builds on, from being expired, whatever the rules say, until it is unpinned."""
    from pgwal.engine.pinning import pin_backup

    backup = backup_id(repo, backup)
    is_new = pin_backup(repo, backup)
    if json:
        document: PinDocument = {"version": 1, "backup": backup, "pinned": True, "changed": is_new}
        print_json(document)
    else:
        print(f"pinned {backup}" if is_new else f"{backup} is pinned already")
