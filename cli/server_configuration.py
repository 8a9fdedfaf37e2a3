"""Configuration files of a server: who gets in, and its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgwal.errors import BrokenInvariant
from pgwal_cli.server_account import peer_names

if TYPE_CHECKING:
    from collections.abc import Mapping


def access_files(superuser: str) -> dict[str, str]:
    """Return pg_hba.conf and pg_ident.conf of a server that lets in this user and its own, as its superuser alone."""
    role = superuser.replace('"', '""')
    people = "".join(f'throwaway "{name}" "{role}"\n' for name in peer_names())
    rules = "".join(f"local {databases} all peer map=throwaway\n" for databases in ("all", "replication"))
    return {"pg_hba.conf": rules, "pg_ident.conf": people}


def setting_lines(settings: Mapping[str, str | int | bool]) -> str:
    """Return lines of postgresql.conf."""
    return "".join(f"{name} = {_quoted_setting(value)}\n" for name, value in settings.items())


def setting_text(value: str | int | bool) -> str:
    """Return a value as the server takes it, on its command line for example."""
    return str(value) if not isinstance(value, bool) else "on" if value else "off"


def _quoted_setting(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return setting_text(value)
    # Inside quotes postgresql.conf knows backslash escapes (src/backend/utils/misc/guc-file.l).
    text = str(value).replace("\\", "\\\\").replace("'", "''")
    if "\n" in text:
        raise BrokenInvariant("a setting has more than one line")
    return f"'{text}'"
