"""Rebuild a data directory from a chain of backups, in one pass, ready to replay WAL from the repository."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from pgwal.backup.backup_file import BackupFile
from pgwal.backup.chain import place_of, resolve_chain
from pgwal.backup.entry import BackupEntry
from pgwal.backup.exclusion import INCOMPLETE_NAME, TABLESPACE_DIRECTORY
from pgwal.backup.label import BACKUP_LABEL_NAME, TABLESPACE_MAP_NAME, BackupLabel
from pgwal.backup.recovery import RecoveryTarget, recovery_settings, with_settings
from pgwal.backup.standby import Standby
from pgwal.backup.stored_path import encode_path
from pgwal.control_file import CONTROL_FILE_PATH, ControlFile
from pgwal.disk.directory_lock import DirectoryLock
from pgwal.engine.created_init_forks import CreatedInitForks
from pgwal.engine.overwritten import OverwrittenDirectory
from pgwal.engine.rebuild import Rebuild
from pgwal.engine.rebuild_in_place import Confirmation, RebuildInPlace
from pgwal.engine.rebuild_options import RebuildOptions
from pgwal.engine.rebuild_report import RebuildReport
from pgwal.engine.recovery_window import choose_backup, target_history
from pgwal.engine.replay_forecast import ReplayForecast, first_record_from, forecast_replay
from pgwal.engine.replayed_wal import CreatedTablespace, ReplayedWal, read_replayed_wal
from pgwal.engine.restore_places import require_places
from pgwal.engine.restored_configuration import archiving, settings_leading_out
from pgwal.engine.selected_databases import fixed_target, select_databases
from pgwal.engine.wal_tablespaces import require_own_tablespaces
from pgwal.errors import ObjectNotFound, TargetError
from pgwal.lsn import Lsn
from pgwal.postgres_version import version_of_major
from pgwal.repository.place import Place
from pgwal.repository.repository import Repository
from pgwal.repository.sealing import require_identity

logger = logging.getLogger(__name__)

LATEST = "latest"

_END_OF_LSNS = Lsn((1 << 64) - 1)

_AUTO_CONF_NAME = "postgresql.auto.conf"
_SIGNAL_NAME = "recovery.signal"
_STANDBY_SIGNAL_NAME = "standby.signal"
_WRITTEN_ANEW = (BACKUP_LABEL_NAME, _AUTO_CONF_NAME)
"""What a restored directory has otherwise than its source had it, with the signal of what it is to do."""


class ArchiveMode(Enum):
    """Whether the restored server archives its own WAL.

    A server that ended recovery before the end of WAL begins another history than that of the archive, which the source
    may still be writing.
    """

    OFF = "off"
    PRESERVE = "preserve"
    OFF_AT_TARGET = "off at a target"


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """What to restore, and where.

    ``backup`` is an id, "latest", or None for the newest one that can reach ``recovery_target``.  ``tablespaces``
    maps old absolute locations to new ones.  Unless ``wal_is_here``, the restore command gets WAL from elsewhere than
    the repository, and nothing is required of the WAL in it.  With ``to_gap``, recovery without a target may end where
    WAL is missing that has more behind it.  Unless it ``warns``, nothing is said of the backup's own configuration.
    Whether a tablespace may go to where the backup says, outside of the target, is for ``allow_tablespaces_in_place``:
    see pgwal.engine.restore_places.  With ``standby``, the server stays in recovery and follows its primary.
    With ``databases``, those alone come whole; see pgwal.engine.selected_databases.  With ``delta``, a data directory
    that is there is overwritten, once ``confirm`` has been told of it and has not raised anything: see
    pgwal.engine.rebuild_in_place.
    """

    place: Place
    backup: str | None
    target: Path
    restore_command: str
    tablespaces: Mapping[str, str] = field(default_factory=dict)
    recovery_target: RecoveryTarget = field(default_factory=RecoveryTarget)
    options: RebuildOptions = field(default_factory=RebuildOptions)
    wal_is_here: bool = True
    to_gap: bool = False
    archive_mode: ArchiveMode = ArchiveMode.OFF_AT_TARGET
    warns: bool = True
    allow_tablespaces_in_place: bool = False
    standby: Standby | None = None
    databases: tuple[str, ...] = ()
    delta: bool = False
    confirm: Confirmation = lambda _: None


class PreparedRestore(NamedTuple):
    """What a restore will do, seen to before anything is written.

    ``created`` are tablespaces that recovery creates; ``replay`` is None where WAL comes from elsewhere.  ``request``
    may have a target where it had none.  ``overwritten`` is what is there already, None where all is made.
    """

    request: RestoreRequest
    repository: Repository
    chain: list[BackupEntry]
    replayed: ReplayedWal
    replay: ReplayForecast | None
    created: list[CreatedTablespace]
    locations: dict[int, Path]
    overwritten: OverwrittenDirectory | None

    @property
    def chosen(self) -> BackupEntry:
        return self.chain[0]


def prepare_restore(request: RestoreRequest) -> PreparedRestore:
    """Choose the backup, read the WAL that it takes, and see to it that nothing is in the way; writes nothing.

    Raises as ``restore_backup`` does, but for a directory to restore into that is not empty.
    """
    repository = Repository.open(request.place)
    require_identity(repository.store)
    entries = repository.catalogue.entries(request.backup)
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
    replayed = _replayed(repository, chosen, request)
    if request.databases:
        request = replace(request, recovery_target=fixed_target(repository, chosen, request.recovery_target, replayed))
    created = require_own_tablespaces(repository, chosen, request.recovery_target, replayed, request.tablespaces)
    locations = tablespace_locations(chain[0], request.tablespaces)
    require_places(
        repository,
        chain[0],
        request.target,
        locations,
        mapped=request.tablespaces,
        in_place=request.allow_tablespaces_in_place,
    )
    overwritten = OverwrittenDirectory.find(request.target, chosen, locations) if request.delta else None
    for each in created:
        place = Path(os.fsdecode(encode_path(each.path)))
        if overwritten is not None and request.allow_tablespaces_in_place and overwritten.owns(place):
            overwritten.dropped[f"{TABLESPACE_DIRECTORY}/{each.oid}"] = place
        else:
            require_empty(place, because=f"WAL creates {each} there")
    replay = forecast_replay(repository, chosen, request.recovery_target, replayed) if request.wal_is_here else None
    return PreparedRestore(request, repository, chain, replayed, replay, created, locations, overwritten)


def restore_backup(
    request: RestoreRequest,
    on_progress: Callable[[int, int], None] | None = None,
    on_prepared: Callable[[PreparedRestore], None] | None = None,
) -> RebuildReport:
    """Rebuild a data directory; it is durable, and starts recovery from the repository, when this returns.

    pg_control comes last, so that a restore that was interrupted cannot be started.  ``on_prepared`` is told what will
    be done before anything is.  Raises TargetError when the directory is not empty, RecoveryTargetError when the target
    cannot be reached, ObjectNotFound, ChainError or FormatError when the chain is not whole, WalGap when WAL is missing
    that recovery needs.
    """
    prepared = prepare_restore(request)
    if on_prepared is not None:
        on_prepared(prepared)
    request, repository, chosen, locations = prepared.request, prepared.repository, prepared.chosen, prepared.locations
    overwritten = prepared.overwritten
    rebuild = prepared_rebuild(prepared, on_progress)
    changing = filling(request.target, locations.values()) if overwritten is None else overwritten.changing()
    with changing as held, repository.catalogue.hold(chosen.backup_id):
        rebuild.make_directories(locations)
        if overwritten is None:
            held.enter_context(DirectoryLock(request.target))
        old_settings: list[BackupFile] = []
        for _ in rebuild.write_all(_all_but_settings(rebuild, prepared.replayed.init_forks, old_settings)):
            pass
        settings = _settings(rebuild, chosen, request, prepared.replayed)
        content = b"".join(rebuild.content(file) for file in old_settings)
        rebuild.writer.write(_AUTO_CONF_NAME, [with_settings(content, settings)])
        rebuild.writer.write(_signals(request)[0], [])
        rebuild.finish()
    if request.warns:
        _warn_of_configuration(request)
    return rebuild.report()


def prepared_rebuild(prepared: PreparedRestore, on_progress: Callable[[int, int], None] | None = None) -> Rebuild:
    """Return what writes the files, which has written none; raises for databases that the backup does not have."""
    request, overwritten = prepared.request, prepared.overwritten
    repository, chain = prepared.repository, prepared.chain
    rebuild: Rebuild
    if overwritten is None:
        rebuild = Rebuild(repository, chain, request.target, request.options, on_progress)
    else:
        signal, other_signal = _signals(request)
        rebuild = RebuildInPlace(
            repository,
            chain,
            overwritten,
            request.options,
            on_progress,
            anew=(*_WRITTEN_ANEW, signal),
            leaves_out=(other_signal, TABLESPACE_MAP_NAME),
            confirm=request.confirm,
        )
    if request.databases and prepared.replay is not None:
        selected = select_databases(repository, prepared.chosen, rebuild, request.databases, prepared.replay)
        rebuild.wanted_blocks = selected.blocks_of
        for line in selected.lines():
            logger.info("%s", line)
    return rebuild


def _signals(request: RestoreRequest) -> tuple[str, str]:
    """Return the name of the signal that a restored directory has, and of the one that it must not have."""
    signals = (_SIGNAL_NAME, _STANDBY_SIGNAL_NAME)
    return signals if request.standby is None else (_STANDBY_SIGNAL_NAME, _SIGNAL_NAME)


def _replayed(repository: Repository, chosen: BackupEntry, request: RestoreRequest) -> ReplayedWal:
    """Read the WAL that recovery will replay, as far as the target does not tell that it ends earlier."""
    if not request.wal_is_here:
        return ReplayedWal()
    target = request.recovery_target
    history = target_history(repository, target.timeline, chosen)
    end = _END_OF_LSNS
    if target.lsn is not None:
        # A position within a record, or at the head of a page, is that of the next one.
        record = first_record_from(repository, history, target.lsn)
        end = Lsn((target.lsn if record is None else record.lsn) + 1)
    elif target.immediate:
        end = chosen.stop_lsn
    return read_replayed_wal(repository, history, chosen.start_lsn, end)


def _settings(
    rebuild: Rebuild, entry: BackupEntry, request: RestoreRequest, replayed: ReplayedWal
) -> Iterator[tuple[str, str]]:
    """Yield what the restored server's postgresql.auto.conf must say."""
    target = request.recovery_target
    yield from recovery_settings(target, request.restore_command, entry.major, request.standby)
    # A server that lets nobody in while it recovers does not mind when the primary's max_connections was raised behind
    # the backup; others pause or end there.  At a target it may have to pause, which it can in this way alone.
    lets_people_in = target.is_set or request.standby is not None
    yield "hot_standby", "on" if lets_people_in else "off"
    if target.immediate and version_of_major(entry.major).reads_ahead_in_recovery:
        # WAL behind a long-term backup is gone: reading ahead, a server would want it before it comes to its end.
        yield "recovery_prefetch", "off"
    if lets_people_in and (raised := replayed.parameters_before(_END_OF_LSNS)):
        before = ControlFile.decode(rebuild.content(rebuild.control_file)).recovery_settings
        for name, value in raised.items():
            if value > before[name]:
                logger.warning(
                    "%s is set to %d, to which WAL behind the backup raises it from %d", name, value, before[name]
                )
                yield name, str(value)
    if switches_archiving_off(request):
        yield "archive_mode", "off"


def switches_archiving_off(request: RestoreRequest) -> bool:
    """Tell whether a restore sets archive_mode to off."""
    if request.archive_mode is ArchiveMode.OFF_AT_TARGET:
        return request.recovery_target.is_set
    return request.archive_mode is ArchiveMode.OFF


def _warn_of_configuration(request: RestoreRequest) -> None:
    for setting in settings_leading_out(request.target):
        logger.warning("%s", setting)
    command = archiving(request.target)
    if command is not None and request.standby is None:
        logger.warning(
            "archive_mode is on: the restored server archives its WAL with %s, and so does its source, if that still"
            " runs; --archive-mode=off keeps it from that",
            command,
        )


def _wanted_id(entries: list[BackupEntry], request: RestoreRequest) -> str | None:
    if request.backup != LATEST or not request.recovery_target.is_set:
        return None if request.backup == LATEST else request.backup
    if not entries:
        raise ObjectNotFound("there is no backup yet", hint="Take one with pgwal full.")
    return max(entries, key=place_of).backup_id


def _all_but_settings(
    rebuild: Rebuild, init_forks: CreatedInitForks, old_settings: list[BackupFile]
) -> Iterator[BackupFile]:
    """Write what a restored server needs otherwise than it was, and yield the files that stay as they were.

    Main forks of which recovery creates the init fork are left out: it makes them anew.
    postgresql.auto.conf, where the backup has it, comes into ``old_settings``.
    """
    for file in rebuild.files():
        if init_forks.is_in_the_way(file.path):
            continue
        if file.path == BACKUP_LABEL_NAME:
            label = BackupLabel.decode(rebuild.content(file))
            rebuild.writer.write(file.path, [label.without_incremental().encode()])
        elif file.path == _AUTO_CONF_NAME:
            old_settings.append(file)
        elif file.path not in (_SIGNAL_NAME, _STANDBY_SIGNAL_NAME, TABLESPACE_MAP_NAME):
            # Those are of a standby, or of a recovery under way: this one gets its own.  Nor may anything but the
            # links that were just made say where tablespaces are.
            yield file


def tablespace_locations(entry: BackupEntry, mapping: Mapping[str, str]) -> dict[int, Path]:
    """Return where each tablespace goes; raises TargetError for a mapping of one that the backup does not have."""
    unknown = set(mapping) - set(entry.tablespaces.values())
    if unknown:
        raise TargetError(
            f"backup {entry.backup_id} has no tablespace at {min(unknown)}",
            hint=f"Its tablespaces are: {', '.join(sorted(entry.tablespaces.values())) or 'none'}.",
        )
    return {oid: _path(mapping.get(location, location)) for oid, location in entry.tablespaces.items()}


def _path(location: str) -> Path:
    """Return the path of a location, whose bytes are the same in each locale."""
    return Path(os.fsdecode(encode_path(location)))


@contextmanager
def filling(target: Path, others: Iterable[Path]) -> Iterator[ExitStack]:
    """Fill directories that must be empty; what fails in between leaves nothing that a server can be started on.

    Gives a stack for what is to be held as long.
    """
    for directory in (target, *others):
        require_empty(directory)
    try:
        with ExitStack() as held:
            yield held
    except BaseException:
        if target.exists():
            with suppress(OSError):
                (target / CONTROL_FILE_PATH).unlink()
            logger.warning("%s is incomplete and cannot be started: empty it before restoring into it again", target)
        raise


def require_empty(directory: Path, *, because: str = "") -> None:
    """Raise TargetError unless a directory is absent or empty; ``because`` says why, where nobody named it."""
    try:
        names = os.listdir(directory)  # noqa: PTH208 (a file is no directory, and says so)
    except FileNotFoundError:
        return
    except OSError as error:
        raise TargetError(f"cannot use {directory}: {os.strerror(error.errno or 0)}") from error
    if INCOMPLETE_NAME in names:
        raise TargetError(
            f"directory {directory} holds a restore that was interrupted", hint="Restore with --delta, or empty it."
        )
    if names and because:
        raise TargetError(
            f"directory {directory} is not empty, and {because}: PostgreSQL would write into it, whoever uses it",
            hint="End recovery before it with --target-lsn and --target-exclusive, or restore where it is free.",
        )
    if names:
        raise TargetError(
            f"directory {directory} is not empty",
            hint="Restore into an empty directory; map tablespaces to others with -T OLD=NEW.",
        )
