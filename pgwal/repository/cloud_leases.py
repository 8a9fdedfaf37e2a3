"""Leases of a repository in an object store: objects that a thread renews, see ``cloud_lease_object``.

A process that stood still past the end of its lease is not told so by anybody.  So each change of the repository asks
first (``require``), by the clock, and where it matters most (``confirm``) by renewing them.  What a store is asked just
before a process is stopped, it may do much later: that is why entries are put conditionally.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Condition, Thread
from typing import TYPE_CHECKING

from pgwal.errors import ObjectNotFound, RepositoryError, RepositoryLocked, StoreUnavailable
from pgwal.repository.cloud_errors import translated_cloud_errors
from pgwal.repository.cloud_lease_object import LEASE_FOLDER, LeaseObject, LeaseObjects, LeaseTimes, now_s
from pgwal.repository.cloud_requests import CloudRequests, RequestCounts

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

logger = logging.getLogger(__name__)

_READERS = "readers"
_REMOVER = "remover"


class CloudLeases:
    """See pgwal.repository.lease.Leases."""

    def __init__(
        self,
        client: Client,
        address: str,
        times: LeaseTimes = LeaseTimes(),  # noqa: B008
        counts: RequestCounts | None = None,
    ) -> None:
        self._requests = CloudRequests(client, counts or RequestCounts())
        self._objects = LeaseObjects(self._requests, address, times)
        self._address = address
        self._held: list[LeaseObject] = []
        self._changed = Condition()
        self._is_renewing = False

    @contextmanager
    def lock(self, name: str, holder: str) -> Iterator[None]:
        lease = LeaseObject(self._objects, name, holder)
        lease.take()
        try:
            with self._renewing(lease):
                yield
        finally:
            self._ending(lease.give_back)

    @contextmanager
    def hold(self, name: str, *, exclusive: bool = False) -> Iterator[None]:
        with self._remover(name) if exclusive else self._reader(name):
            yield

    @contextmanager
    def _reader(self, name: str) -> Iterator[None]:
        """Say that an object is read, then look whether it is being removed.

        Who removes does the reverse: of the two at least one sees the other, for stores list what they have stored.
        """
        folder = f"{LEASE_FOLDER}/{name}"
        lease = LeaseObject(self._objects, f"{folder}/{_READERS}/{secrets.token_hex(16)}", "a reader")
        try:
            lease.create()
        except (RepositoryLocked, StoreUnavailable):
            raise
        except RepositoryError as error:
            # Who may only read can restore all the same; what is removed meanwhile is missed, and that is said.
            self._warn(name, error)
            self._require_not_removed(name, folder, may_guess=True)
            yield
            return
        try:
            with self._renewing(lease):
                self._require_not_removed(name, folder)
                yield
        finally:
            self._ending(lease.remove)

    def _warn(self, name: str, error: RepositoryError) -> None:
        logger.warning("nothing keeps %s from being removed meanwhile: %s", self._place(name), error)

    def _require_not_removed(self, name: str, folder: str, *, may_guess: bool = False) -> None:
        """Raise RepositoryLocked while an object is being removed; who stood still while removing it has lost that."""
        remover = f"{folder}/{_REMOVER}"
        with suppress(ObjectNotFound):
            while (found := self._objects.read(remover)).holder is not None:
                if self._objects.is_held(found, may_guess=may_guess):
                    raise self._in_use(name, "being removed", found.holder)
                if may_guess:
                    break
                try:
                    self._objects.free(remover, found.version)
                except RepositoryLocked:
                    continue  # Another reader was quicker, or it has been renewed.
                except StoreUnavailable:
                    raise
                except RepositoryError as error:
                    self._warn(name, error)
                    break
        self._require_there(name)

    def _place(self, name: str) -> str:
        return f"{self._address}/{name.rpartition('/')[0] or name}"

    @contextmanager
    def _remover(self, name: str) -> Iterator[None]:
        """Say that an object is being removed, then look for those who read it; whoever has expired is removed first,
        and finds that out when it renews what it had."""
        folder = f"{LEASE_FOLDER}/{name}"
        lease = LeaseObject(self._objects, f"{folder}/{_REMOVER}", "a remover")
        try:
            lease.take()
        except RepositoryLocked as error:
            raise self._in_use(name, "being removed", error.facts["holder"]) from None
        is_there = True
        try:
            with self._renewing(lease):
                for reader in self._readers(folder):
                    with suppress(ObjectNotFound):
                        found = self._objects.read(reader)
                        if self._objects.is_held(found):
                            by = found.holder or "another process"
                            raise self._in_use(name, "being read by a restore, a verification or a copy", by)
                    with translated_cloud_errors("unlock", self._address, reader), suppress(FileNotFoundError):
                        self._requests.delete(reader)
                self._require_there(name)
                yield
                is_there = self._is_there(name)
        finally:
            # Nobody holds again what is gone.
            self._ending(lease.give_back if is_there else lease.remove)

    def _readers(self, folder: str) -> Iterator[str]:
        with translated_cloud_errors("list", self._address, folder):
            for found in self._requests.list(f"{folder}/{_READERS}"):
                yield from (each["path"] for each in found)

    def _in_use(self, name: str, how: str, holder: str) -> RepositoryLocked:
        place = self._place(name)
        return RepositoryLocked(f"{place} is {how}", hint="Wait until that has ended.", path=place, holder=holder)

    def _require_there(self, name: str) -> None:
        with translated_cloud_errors("lock", self._address, name):
            self._requests.head(name)

    def _is_there(self, name: str) -> bool:
        try:
            self._require_there(name)
        except ObjectNotFound:
            return False
        return True

    def is_locked(self, name: str) -> bool:
        try:
            found = self._objects.read(name)
        except ObjectNotFound:
            return False
        return self._objects.is_held(found, may_guess=True)

    def require(self) -> None:
        """Raise LeaseLost when another has had one of the leases that this process has, as far as the clock can tell.

        One that may have expired is renewed, which tells; raises RepositoryError where that cannot be done.
        """
        for lease in self._held_now():
            if not lease.is_valid:
                lease.renew()

    def confirm(self) -> None:
        for lease in self._held_now():
            lease.renew()

    def _held_now(self) -> list[LeaseObject]:
        with self._changed:
            return list(self._held)

    # -- renewing ----------------------------------------------------------------------------------------------

    @contextmanager
    def _renewing(self, lease: LeaseObject) -> Iterator[None]:
        with self._changed:
            self._held.append(lease)
            if not self._is_renewing:
                self._is_renewing = True
                Thread(target=self._renew_all, name="renew-leases", daemon=True).start()
        try:
            yield
        finally:
            with self._changed:
                self._held.remove(lease)
                self._changed.notify_all()

    def _renew_all(self) -> None:
        """Renew what is held, in a thread that ends when nothing is."""
        while True:
            until_s = now_s() + self._objects.times.renewed_every_s
            with self._changed:
                while self._held and (left_s := until_s - now_s()) > 0:
                    self._changed.wait(left_s)
                if not self._held:
                    self._is_renewing = False
                    return
            for lease in self._held_now():
                try:
                    lease.renew()
                except BaseException as error:
                    # Whoever changes something is told; it may also be possible again by then.  Whatever it is: no
                    # thread would renew any lease after this one.
                    logger.debug("%s", error)

    @staticmethod
    def _ending(action: Callable[[], None]) -> None:
        """Give something back; where that fails, it ends by itself."""
        try:
            action()
        except RepositoryError as error:
            logger.warning("%s", error)
