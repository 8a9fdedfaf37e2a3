"""Rebuild a data directory from a chain of backups, in one pass, ready to replay WAL from the repository."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pgwal.backup.chain import resolve_chain
from pgwal.backup.entry import BackupEntry, BackupFile
from pgwal.backup.label import BACKUP_LABEL_NAME, BackupLabel
from pgwal.backup.recovery import RecoveryTarget, with_recovery_settings
from pgwal.backup.stored_path import encode_path
from pgwal.control_file import CONTROL_FILE_PATH
from pgwal.engine.rebuild import INCOMPLETE_NAME, Rebuild, RebuildOptions, RebuildReport
from pgwal.engine.recovery_window import choose_backup
from pgwal.errors import ObjectNotFound, TargetError
from pgwal.repository.repository import Repository

logger = logging.getLogger(__name__)

LATEST = "latest"

_AUTO_CONF_NAME = "postgresql.auto.conf"
_SIGNAL_NAME = "recovery.signal"
_STANDBY_SIGNAL_NAME = "standby.signal"


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """What to restore, and where.

    ``backup`` is an id, "latest", or None for the newest one that can reach ``recovery_target``.  ``tablespaces``
    maps old absolute locations to new ones.  Unless ``wal_is_here``, the restore command gets WAL from elsewhere than
    the repository, and nothing is required of the WAL in it.  With ``to_gap``, recovery without a target may end where
    WAL is missing that has more behind it.
    """

    repository_path: Path
    backup: str | None
    target: Path
    restore_command: str
    tablespaces: Mapping[str, str] = field(default_factory=dict)
    recovery_target: RecoveryTarget = field(default_factory=RecoveryTarget)
    options: RebuildOptions = field(default_factory=RebuildOptions)
    wal_is_here: bool = True
    to_gap: bool = False


def restore_backup(request: RestoreRequest, on_progress: Callable[[int, int], None] | None = None) -> RebuildReport:
    """Rebuild a data directory; it is durable, and starts recovery from the repository, when this returns.

    pg_control comes last, so that a restore that was interrupted cannot be started.  Raises TargetError when the
    directory is not empty or the recovery target cannot be reached, ObjectNotFound, ChainError or FormatError when
    the chain is not whole, WalGap when WAL is missing that recovery needs.
    """
    repository = Repository.open(request.repository_path)
    entries = repository.catalogue.entries()
    backup_id = _wanted_id(entries, request)
    chosen = choose_backup(
        repository,
        entries,
        request.recovery_target,
        backup_id,
        wal_is_here=request.wal_is_here,
        to_gap=request.to_gap,
    )
    chain = resolve_chain(entries, chosen.backup_id)
    locations = tablespace_locations(chain[0], request.tablespaces)
    with filling(request.target, locations.values()), repository.catalogue.hold(chain[0].backup_id):
        rebuild = Rebuild(repository, chain, request.target, request.options, on_progress)
        rebuild.make_directories(locations)
        for _ in rebuild.write_all(_all_but_settings(rebuild, request)):
            pass
        rebuild.writer.write(_SIGNAL_NAME, [])
        rebuild.finish()
    return rebuild.report()


def _wanted_id(entries: list[BackupEntry], request: RestoreRequest) -> str | None:
    if request.backup != LATEST or not request.recovery_target.is_set:
        return None if request.backup == LATEST else request.backup
    if not entries:
        raise ObjectNotFound("there is no backup yet", hint="Take one with pgwal full.")
    return max(entries, key=lambda entry: (entry.start_lsn, entry.backup_id)).backup_id


def _all_but_settings(rebuild: Rebuild, request: RestoreRequest) -> Iterator[BackupFile]:
    """Write what a restored server needs otherwise than it was, and yield the files that stay as they were."""
    for file in rebuild.files():
        if file.path == BACKUP_LABEL_NAME:
            label = BackupLabel.decode(rebuild.content(file))
            rebuild.writer.write(file.path, [label.without_incremental().encode()])
        elif file.path == _AUTO_CONF_NAME:
            settings = [("restore_command", request.restore_command), *request.recovery_target.settings()]
            rebuild.writer.write(file.path, [with_recovery_settings(rebuild.content(file), iter(settings))])
        elif file.path not in (_SIGNAL_NAME, _STANDBY_SIGNAL_NAME):
            # Those are of a standby, or of a recovery under way: this one is to be a primary.
            yield file


def tablespace_locations(entry: BackupEntry, mapping: Mapping[str, str]) -> dict[int, Path]:
    """Return where each tablespace goes; raises TargetError for a mapping of one that the backup does not have."""
    unknown = set(mapping) - set(entry.tablespaces.values())
    if unknown:
        raise TargetError(
            f"backup {entry.backup_id} has no tablespace at {min(unknown)}",
            hint=f"Its tablespaces are: {', '.join(sorted(entry.tablespaces.values())) or 'none'}.",
        )
    locations = {oid: _path(mapping.get(location, location)) for oid, location in entry.tablespaces.items()}
    if len(set(locations.values())) < len(locations):
        raise TargetError("two tablespaces would share a directory", hint="Map each to its own with -T OLD=NEW.")
    return locations


def _path(location: str) -> Path:
    """Return the path of a location, whose bytes are the same in each locale."""
    return Path(os.fsdecode(encode_path(location)))


@contextmanager
def filling(target: Path, others: Iterable[Path]) -> Iterator[None]:
    """Fill directories that must be empty; what fails in between leaves nothing that a server can be started on."""
    for directory in (target, *others):
        require_empty(directory)
    try:
        yield
    except BaseException:
        if target.exists():
            with suppress(OSError):
                (target / CONTROL_FILE_PATH).unlink()
            logger.warning("%s is incomplete and cannot be started: empty it before restoring into it again", target)
        raise


def require_empty(directory: Path) -> None:
    """Raise TargetError unless a directory is absent or empty."""
    try:
        names = os.listdir(directory)  # noqa: PTH208 (a file is no directory, and says so)
    except FileNotFoundError:
        return
    except OSError as error:
        raise TargetError(f"cannot use {directory}: {os.strerror(error.errno or 0)}") from error
    if INCOMPLETE_NAME in names:
        raise TargetError(
            f"directory {directory} holds a restore that was interrupted", hint="Empty it, and restore again."
        )
    if names:
        raise TargetError(
            f"directory {directory} is not empty",
            hint="Restore into an empty directory; map tablespaces to others with -T OLD=NEW.",
        )
