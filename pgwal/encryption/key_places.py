"""Where on this machine the metadata key of a repository lies, and the secrets of WAL that it received last.

Whoever opens any repository looks here, so that nothing that is long to import is.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from pgwal.encryption.key_sources import KeySources
from pgwal.errors import PgwalError

_UNLIKE_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


def metadata_key_path(address: str, sources: KeySources) -> Path:
    """Return where the metadata key of the repository at an address lies, if it does: where an option says, or else
    ``pgwal/metadata-keys`` where the user's programs keep their configuration."""
    return sources.resolved().metadata_key_file or own_metadata_key_path(address)


def own_metadata_key_path(address: str) -> Path:
    """Return where the metadata key of a repository lies, whatever an option says of another one."""
    return _metadata_keys() / _file_name(address)


def has_metadata_key(address: str, sources: KeySources) -> bool:
    """Tell whether this machine has a metadata key for an address: what is there must be encrypted then."""
    return sources.resolved().metadata_key_file is not None or has_own_metadata_key(address)


def has_own_metadata_key(address: str) -> bool:
    """Tell whether this machine has a metadata key for an address, whatever an option says of another one."""
    try:
        # What this user may not look at, and what a user without a home has, are no keys of his.
        return os.path.exists(_metadata_keys()) and os.path.exists(own_metadata_key_path(address))  # noqa: PTH110
    except PgwalError:
        return False


def wal_secrets_path(address: str) -> Path:
    """Return where the secrets of WAL that was received last lie: see ``held_secrets``."""
    return _home("XDG_STATE_HOME", ".local/state") / "wal-secrets" / _file_name(address)


def key_revision_path(address: str) -> Path:
    """Return where the latest revision of a repository's keys is noted that this machine has seen."""
    return _home("XDG_STATE_HOME", ".local/state") / "key-revisions" / _file_name(address)


def _metadata_keys() -> Path:
    return _home("XDG_CONFIG_HOME", ".config") / "metadata-keys"


def _home(variable: str, default: str) -> Path:
    value = os.environ.get(variable)
    if value:
        return Path(value) / "pgwal"
    home = os.path.expanduser("~")  # noqa: PTH111 (which is not an error without one)
    if not os.path.isabs(home):  # noqa: PTH117
        raise PgwalError("this user has no home directory, in which keys would lie", hint=f"Set HOME, or {variable}.")
    return Path(home) / default / "pgwal"


def _file_name(address: str) -> str:
    from hashlib import sha256

    digest = sha256(address.encode(errors="surrogateescape")).hexdigest()[:12]
    return f"{_UNLIKE_NAMES.sub('-', address).strip('-')[:60]}-{digest}"
