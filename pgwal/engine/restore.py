"""Rebuild a data directory from a chain of backups, in one pass, ready to replay WAL from the repository."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pgwal.backup.chain import resolve_chain
from pgwal.backup.entry import BackupEntry, BackupFile
from pgwal.backup.incremental_file import IncrementalHeader, incremental_header_size, incremental_name
from pgwal.backup.label import BackupLabel
from pgwal.backup.reconstruct import Run, StoredWhole, reconstruct_file
from pgwal.checksum import ContentDigest
from pgwal.control_file import CONTROL_FILE_PATH
from pgwal.datadir.writer import TreeWriter
from pgwal.errors import (
    ChecksumMismatch,
    FormatError,
    MissingPriorBackup,
    ObjectNotFound,
    RepositoryError,
    TargetError,
    TruncatedInput,
)
from pgwal.repository.repository import Repository

logger = logging.getLogger(__name__)

LATEST = "latest"

_READ_SIZE = 1 << 20
_LABEL_NAME = "backup_label"
_AUTO_CONF_NAME = "postgresql.auto.conf"
_SIGNAL_NAME = "recovery.signal"
# A backup of a standby holds it; with it, a server never ends recovery by itself.
_STANDBY_SIGNAL_NAME = "standby.signal"
_FIXED_HEADER_SIZE = 12


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """What to restore, and where; ``tablespaces`` maps old absolute locations to new ones."""

    repository_path: Path
    backup: str
    target: Path
    restore_command: str
    tablespaces: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a restore did; sizes in bytes."""

    entry: BackupEntry
    chain_length: int
    file_count: int
    bytes_read: int
    bytes_written: int


def restore_backup(request: RestoreRequest, on_progress: Callable[[int, int], None] | None = None) -> RestoreReport:
    """Rebuild a data directory; it is durable, and starts recovery from the repository, when this returns.

    pg_control comes last, so that a restore that was interrupted cannot be started.  Raises TargetError when the
    target is not empty, ObjectNotFound, ChainError or FormatError when the chain is not whole.
    """
    repository = Repository.open(request.repository_path)
    entries = repository.catalogue.entries()
    chain = resolve_chain(entries, _backup_id(entries, request.backup))
    locations = _tablespace_locations(chain[0], request.tablespaces)
    for directory in (request.target, *locations.values()):
        require_empty(directory)
    try:
        return _Restore(repository, chain, request, locations).run(on_progress)
    except BaseException:
        _make_unstartable(request.target)
        raise


def _make_unstartable(target: Path) -> None:
    """Make sure that nobody starts a server on a restore that failed: it is incomplete."""
    if target.exists():
        with suppress(OSError):
            (target / CONTROL_FILE_PATH).unlink()
        logger.warning("%s is incomplete and cannot be started: empty it before restoring into it again", target)


def require_empty(directory: Path) -> None:
    """Raise TargetError unless a directory is absent or empty."""
    try:
        occupied = any(directory.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise TargetError(f"cannot use {directory}: {os.strerror(error.errno or 0)}") from error
    if occupied:
        raise TargetError(
            f"directory {directory} is not empty",
            hint="Restore into an empty directory; map tablespaces to others with -T OLD=NEW.",
        )


def _backup_id(entries: list[BackupEntry], wanted: str) -> str:
    if wanted != LATEST:
        return wanted
    if not entries:
        raise ObjectNotFound("there is no backup yet", hint="Take one with pgwal full.")
    return max(entries, key=lambda entry: (entry.start_lsn, entry.backup_id)).backup_id


def _tablespace_locations(entry: BackupEntry, mapping: Mapping[str, str]) -> dict[int, Path]:
    unknown = set(mapping) - set(entry.tablespaces.values())
    if unknown:
        raise TargetError(
            f"backup {entry.backup_id} has no tablespace at {min(unknown)}",
            hint=f"Its tablespaces are: {', '.join(sorted(entry.tablespaces.values())) or 'none'}.",
        )
    return {oid: Path(mapping.get(location, location)) for oid, location in entry.tablespaces.items()}


class _Restore:
    """One restore under way."""

    def __init__(
        self, repository: Repository, chain: list[BackupEntry], request: RestoreRequest, locations: dict[int, Path]
    ) -> None:
        self._chain = chain
        self._request = request
        self._locations = locations
        self._files = repository.catalogue.files(chain[0].backup_id)
        self._data_paths = [repository.catalogue.data_path(entry.backup_id) for entry in chain]
        self._writer = TreeWriter(request.target)
        self._bytes_read = 0
        self._bytes_written = 0

    def run(self, on_progress: Callable[[int, int], None] | None) -> RestoreReport:
        self._make_directories()
        control_file: BackupFile | None = None
        for file in self._files:
            if file.path == CONTROL_FILE_PATH:
                control_file = file
            elif file.path == _LABEL_NAME:
                self._write_label(file)
            elif file.path == _AUTO_CONF_NAME:
                self._write_settings(file)
            elif file.path != _STANDBY_SIGNAL_NAME:
                self._restore_file(file)
            if on_progress is not None:
                on_progress(min(self._bytes_written, self._total_bytes), self._total_bytes)
        if control_file is None:
            raise FormatError(f"backup {self._chain[0].backup_id} holds no {CONTROL_FILE_PATH}")
        self._writer.write(_SIGNAL_NAME, [])
        self._writer.sync()
        self._restore_file(control_file)
        self._writer.sync()
        entry = self._chain[0]
        return RestoreReport(entry, len(self._chain), entry.totals.file_count, self._bytes_read, self._bytes_written)

    @property
    def _total_bytes(self) -> int:
        return self._chain[0].totals.size_bytes

    def _make_directories(self) -> None:
        self._writer.make_directory("")
        for oid, location in self._locations.items():
            self._make_tablespace(location)
            self._writer.symlink(f"pg_tblspc/{oid}", location.absolute())
        data_path = self._data_paths[0]
        for parent, directories, _ in os.walk(data_path):
            for name in directories:
                self._writer.make_directory(str((Path(parent) / name).relative_to(data_path)))

    def _make_tablespace(self, location: Path) -> None:
        try:
            location.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise TargetError(
                f"cannot create tablespace directory {location}: {os.strerror(error.errno or 0)}",
                hint="Map the tablespace to another place with -T OLD=NEW.",
            ) from error

    # -- files -------------------------------------------------------------------------------------------------

    def _restore_file(self, file: BackupFile) -> None:
        chunks = self._reconstructed(file) if file.is_incremental else self._verified(file)
        written = self._writer.write(file.path, chunks)
        if written != file.size_bytes:
            raise TruncatedInput(
                f"{file.path} of backup {self._chain[0].backup_id} has {written} bytes, not {file.size_bytes}"
            )
        self._bytes_written += written

    def _verified(self, file: BackupFile) -> Iterator[bytes]:
        """Yield a file that is stored whole; raises ChecksumMismatch at its end when it is not what was stored."""
        digest = ContentDigest()
        with self._open(self._data_paths[0] / file.stored_path) as stored:
            while data := stored.read(_READ_SIZE):
                digest.update(data)
                self._bytes_read += len(data)
                yield data
        self._check_digest(file, digest)

    def _check_digest(self, file: BackupFile, digest: ContentDigest) -> None:
        if digest.hexdigest() != file.digest:
            raise ChecksumMismatch(
                f"{file.path} of backup {self._chain[0].backup_id} is damaged: its digest does not match",
                hint="Restore another backup.",
            )

    def _reconstructed(self, file: BackupFile) -> Iterator[bytes]:
        """Yield a file from the newest copy of each of its blocks."""
        with ExitStack() as opened:
            sources: list[IncrementalHeader | StoredWhole] = []
            stored: list[BinaryIO] = []
            for data_path in self._data_paths:
                source, stored_file = self._open_source(data_path, file.path)
                stored.append(opened.enter_context(stored_file))
                sources.append(source)
                if isinstance(source, StoredWhole):
                    break
            # Of the backup itself, each stored block is used, in the order in which they are stored; of the earlier
            # ones only some, so that their digests cannot be checked without reading more.
            digest = ContentDigest()
            header = sources[0]
            if not isinstance(header, IncrementalHeader):
                raise MissingPriorBackup(
                    f"{self._data_paths[0] / file.stored_path} is missing", hint="Restore another backup."
                )
            digest.update(header.encode())
            for run in reconstruct_file(sources).runs:
                for data in self._read_run(run, stored, file.path):
                    if run.source == 0:
                        digest.update(data)
                    yield data
        self._check_digest(file, digest)

    def _open_source(self, data_path: Path, path: str) -> tuple[IncrementalHeader | StoredWhole, BinaryIO]:
        """Open what one backup of the chain stores of a file."""
        incremental = data_path / incremental_name(path)
        if not incremental.exists():
            file = self._open(data_path / path)
            return StoredWhole(os.fstat(file.fileno()).st_size), file
        file = self._open(incremental)
        try:
            content = file.read(_FIXED_HEADER_SIZE)
            header_size = incremental_header_size(IncrementalHeader.decode_prefix(content).block_count)
            content += file.read(header_size - _FIXED_HEADER_SIZE)
            return IncrementalHeader.decode(content, os.fstat(file.fileno()).st_size), file
        except FormatError as error:
            file.close()
            raise FormatError(f"{incremental}: {error}", hint="Restore another backup.") from error

    def _read_run(self, run: Run, stored: list[BinaryIO], path: str) -> Iterator[bytes]:
        offset, end = run.source_offset, run.source_offset + run.length
        while offset < end:
            size = min(_READ_SIZE, end - offset)
            if run.source is None:
                data = bytes(size)
            else:
                data = os.pread(stored[run.source].fileno(), size, offset)
                self._bytes_read += len(data)
            if not data:
                raise TruncatedInput(f"a copy of {path} ends at byte {offset}", hint="Restore another backup.")
            offset += len(data)
            yield data

    def _open(self, path: Path) -> BinaryIO:
        try:
            return path.open("rb", buffering=0)
        except FileNotFoundError as error:
            raise MissingPriorBackup(f"{path} is missing", hint="Restore another backup.") from error
        except OSError as error:
            raise RepositoryError(
                f"cannot open {path}: {os.strerror(error.errno or 0)}",
                hint="Run pgwal as the user that owns the repository.",
            ) from error

    # -- what recovery needs -----------------------------------------------------------------------------------

    def _write_label(self, file: BackupFile) -> None:
        content = b"".join(self._verified(file))
        self._writer.write(file.path, [BackupLabel.decode(content).without_incremental().encode()])

    def _write_settings(self, file: BackupFile) -> None:
        """Add the settings of recovery to those that ALTER SYSTEM made."""
        content = b"".join(self._verified(file))
        if content and not content.endswith(b"\n"):
            content += b"\n"
        value = self._request.restore_command.replace("\\", "\\\\").replace("'", "''")
        self._writer.write(file.path, [content, f"restore_command = '{value}'\n".encode()])
