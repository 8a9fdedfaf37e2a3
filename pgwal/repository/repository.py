"""A repository: one cluster's WAL, summaries and backups on top of a store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from pgwal.errors import (
    FormatError,
    ObjectExists,
    ObjectNotFound,
    ReceivedByBackup,
    RepositoryError,
    RepositoryLocked,
    WrongCluster,
)
from pgwal.lsn import Lsn
from pgwal.repository.address import Address, place_at
from pgwal.repository.layout import (
    BACKUP_DIRECTORY,
    BACKUP_LOCK_NAME,
    IDENTITY_NAME,
    KEY_DIRECTORY,
    PACK_DIRECTORY,
    RECEIVER_LOCK_NAME,
    RECEIVER_STATE_NAME,
    STORAGE_FORMAT_NAME,
    SUMMARY_DIRECTORY,
    WAL_DIRECTORY,
    RepositoryIdentity,
)
from pgwal.repository.place import Place
from pgwal.repository.sealing import require_unencrypted, sealed_place
from pgwal.repository.storage_format import PLAIN_FORMAT, StorageFormat
from pgwal.repository.store import names_in
from pgwal.repository.summaries import SummaryFiles, is_summary_file_name
from pgwal.repository.wal_archive import WalArchive
from pgwal.repository.wal_file_name import is_wal_file_name

if TYPE_CHECKING:
    from pgwal.repository.catalogue import Catalogue

_RECEIVER_OF_BACKUP = "a backup's receiver"


class ReceiverState(NamedTuple):
    """What the receiver last said of itself; advisory, for people and for whoever waits for WAL.

    Times are Unix times: ``updated_at`` of this state, ``level_at`` when the receiver was last known to have all WAL
    that the server had.  ``flushed_lsn`` is up to where WAL is in the repository for good; ``spooled_bytes`` is how
    much waits to be stored on the receiver's machine, None where nothing does.
    """

    timeline_id: int
    written_lsn: Lsn
    flushed_lsn: Lsn
    summarised_lsn: Lsn
    slot: str | None
    updated_at: float | None = None
    level_at: float | None = None
    spooled_bytes: int | None = None

    def encode(self) -> bytes:
        return json.dumps({k: str(v) if isinstance(v, Lsn) else v for k, v in self._asdict().items()}).encode() + b"\n"

    @classmethod
    def decode(cls, content: bytes) -> ReceiverState:
        """Parse receiver.json; raises FormatError."""
        try:
            document = json.loads(content)
            timeline_id, slot = document["timeline_id"], document["slot"]
            if type(timeline_id) is not int or not 0 < timeline_id <= _HIGHEST_TIMELINE:
                raise ValueError("no timeline")
            if slot is not None and not isinstance(slot, str):
                raise ValueError("no slot")
            return cls(
                timeline_id=timeline_id,
                slot=slot,
                updated_at=_time(document.get("updated_at")),
                level_at=_time(document.get("level_at")),
                spooled_bytes=_size(document.get("spooled_bytes")),
                **{name: Lsn.parse(document[name]) for name in ("written_lsn", "flushed_lsn", "summarised_lsn")},
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError(f"{RECEIVER_STATE_NAME} cannot be read: {type(error).__name__}") from error


_HIGHEST_TIMELINE = 0xFFFF_FFFF
_LATEST_TIME = 253402300800.0
"""The end of the year 9999, as a Unix time."""


def _time(value: object) -> float | None:
    """Return a Unix time; raises ValueError for what is none."""
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 <= value < _LATEST_TIME:
        raise ValueError("no time")
    return float(value)


def _size(value: object) -> int | None:
    """Return a number of bytes; raises ValueError for what is none."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63):
        raise ValueError("no size")
    return value


class Repository:
    """An opened repository; ``identity`` says whose it is."""

    def __init__(self, place: Place, identity: RepositoryIdentity) -> None:
        self.place = place
        self.store = place.store
        self.identity = identity
        self.geometry = identity.geometry
        self.wal = WalArchive(place.store, identity.geometry)
        self.summaries = SummaryFiles(place.store)

    @cached_property
    def catalogue(self) -> Catalogue:
        # Not above: a receiver needs nothing of what backups are.
        from pgwal.repository.catalogue import Catalogue

        return Catalogue(self.place, self.identity)

    @classmethod
    def open(cls, address: Address) -> Repository:
        """Open what is there.

        Raises ObjectNotFound when there is no repository, RepositoryError for one that others can write.
        """
        place = place_at(address)
        try:
            identity = RepositoryIdentity.decode(place.store.get(IDENTITY_NAME))
        except ObjectNotFound:
            if place.store.exists(STORAGE_FORMAT_NAME):
                raise ObjectNotFound(
                    f"the repository in {place} holds nothing yet", hint="pgwal stream, full and backup begin one."
                ) from None
            raise ObjectNotFound(
                f"there is no repository in {place}",
                hint="pgwal stream, full and backup make one; check --repo or PGWAL_REPO.",
            ) from None
        place.require_trusted()
        return cls(sealed_place(place, identity), identity)

    @classmethod
    def open_or_create(cls, address: Address, identity: RepositoryIdentity) -> Repository:
        """Open the repository of a cluster, or make it.

        Raises WrongCluster when the one that is there belongs to another cluster, RepositoryError when the directory
        is in use for something else, lies in a data directory, or can be written by others.
        """
        place = place_at(address)
        if place.is_remote:
            # Each look is a request there, mostly one is enough: nothing has to be made where there is a repository.
            with suppress(ObjectNotFound):
                repository = cls.open(place)
                repository.require(identity)
                return repository
        prepare(place)
        place.make((WAL_DIRECTORY, SUMMARY_DIRECTORY, BACKUP_DIRECTORY))
        if not place.store.exists(IDENTITY_NAME):
            encryption_id = StorageFormat.of(place.store).encryption_id
            if encryption_id is None:
                require_unencrypted(place)
            if place.default_format != PLAIN_FORMAT:
                with suppress(ObjectExists):
                    place.store.put(STORAGE_FORMAT_NAME, place.default_format.encode())
            # Two may make it at once: the first one says whose it is.
            with suppress(ObjectExists):
                place.store.put(IDENTITY_NAME, identity._replace(encryption_id=encryption_id).encode())
        repository = cls.open(place)
        repository.require(identity)
        return repository

    def require(self, identity: RepositoryIdentity) -> None:
        """Raise WrongCluster unless the repository belongs to the cluster with this identity."""
        mine = self.identity
        if mine.system_identifier != identity.system_identifier:
            raise WrongCluster(
                f"repository {self.place} belongs to the cluster with system identifier"
                f" {mine.system_identifier}, this one has {identity.system_identifier}",
                hint="Use another repository for each cluster, or check the connection.",
            )
        if mine.major != identity.major or mine.segment_size != identity.segment_size:
            raise WrongCluster(
                f"repository {self.place} is of PostgreSQL {mine.major} with WAL segments of"
                f" {mine.segment_size} bytes, this cluster has {identity.major} and {identity.segment_size}",
                hint="Use another repository after an upgrade.",
            )

    @contextmanager
    def lock_receiver(self, *, for_backup: bool = False) -> Iterator[None]:
        """Hold the right to write WAL and summaries, which whoever comes next finds as a crash left it.

        Raises ReceivedByBackup when one holds it that was taken ``for_backup``, RepositoryLocked for any other.
        """
        self.place.require_own()
        holder = _RECEIVER_OF_BACKUP if for_backup else "a receiver"
        with ExitStack() as held:
            try:
                held.enter_context(self.place.leases.lock(RECEIVER_LOCK_NAME, holder))
            except RepositoryLocked as error:
                if error.facts["holder"].startswith(_RECEIVER_OF_BACKUP):
                    raise ReceivedByBackup(str(error), hint=error.hint, **error.facts) from None
                raise
            self._recover()
            yield

    def _recover(self) -> None:
        """Remove what a killed receiver was writing, and make durable what it had given its name but not more."""
        self.store.recover("", (RECEIVER_STATE_NAME, IDENTITY_NAME).__contains__)
        self.store.recover(WAL_DIRECTORY, is_wal_file_name)
        self.store.recover(SUMMARY_DIRECTORY, is_summary_file_name)

    def lock_backups(self) -> AbstractContextManager[None]:
        """Hold the right to add and remove backups; raises RepositoryLocked."""
        self.place.require_own()
        return self.place.leases.lock(BACKUP_LOCK_NAME, "a backup")

    def hold_all_backups(self, *, exclusive: bool = False) -> AbstractContextManager[None]:
        """Keep all backups from being removed, together with others who do, or exclude those to remove some.

        One lock, however many backups there are.  Raises RepositoryLocked.
        """
        return self.place.leases.hold(IDENTITY_NAME, exclusive=exclusive)

    def backup_is_running(self) -> bool:
        return self.place.leases.is_locked(BACKUP_LOCK_NAME)

    def receiver_is_running(self) -> bool:
        return self.place.leases.is_locked(RECEIVER_LOCK_NAME)

    def receiver_state(self) -> ReceiverState | None:
        """Return what a receiver last said, running or not; None when nothing can be known."""
        try:
            return ReceiverState.decode(self.store.get(RECEIVER_STATE_NAME))
        except (ObjectNotFound, FormatError):
            # It is not synced, so a crash of the machine may leave it empty; the next receiver writes it again.
            return None

    def write_receiver_state(self, state: ReceiverState) -> None:
        self.store.put(RECEIVER_STATE_NAME, state.encode(), replace=True, durable=False)


def prepare(place: Place) -> None:
    """Have a place be there for a repository, new or not; raises RepositoryError where there cannot be one."""
    place.require_suitable()
    place.make()
    place.require_trusted()
    place.require_own()
    _require_fit_for_a_new_one(place)


def _require_fit_for_a_new_one(place: Place) -> None:
    """Refuse to make a repository where none can be, or among files of something else, as in a data directory."""
    if place.store.exists(IDENTITY_NAME):
        return
    place.probe()
    own = {WAL_DIRECTORY, SUMMARY_DIRECTORY, BACKUP_DIRECTORY, PACK_DIRECTORY, STORAGE_FORMAT_NAME, KEY_DIRECTORY}
    names = set(names_in(place.store, ""))
    # File systems of their own come with lost+found, and with snapshots whose names begin with a dot.
    foreign = sorted(name for name in names - own - {"lost+found"} if not name.startswith("."))
    if foreign:
        raise RepositoryError(
            f"{place} is not empty and no repository: it holds {foreign[0]}",
            hint="Name an empty directory, or one that does not exist yet, with --repo or PGWAL_REPO.",
        )
