"""An object that says that a process has something, for as long as it is renewed.

Only conditional puts change it: the first by there being none, each later one by what was there before.  So of two
processes that both take it for their own one is refused, whatever either knows of the time.  What it holds differs at
each put, for many stores make an ETag of that alone.

Whether a lease has expired is judged by the store's clock; its holder goes by a clock of its own, from before it sent
the last renewal, and gives up earlier.  No two machines need have the same time.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from obstore.exceptions import AlreadyExistsError, PreconditionError

from pgwal.budget import LEASE_GRACE_S, LEASE_RENEWED_S, LEASE_VALID_S
from pgwal.errors import LeaseLost, ObjectNotFound, RepositoryError, RepositoryLocked, StoreUnavailable
from pgwal.repository.cloud_errors import translated_cloud_errors
from pgwal.repository.cloud_requests import CloudRequests
from pgwal.repository.lease_process import has_ended, this_process

if TYPE_CHECKING:
    from obstore import UpdateVersion

LEASE_FOLDER = ".leases"
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""It goes on while the machine sleeps."""


class LeaseTimes(NamedTuple):
    """``valid_s`` after it was renewed a holder takes its lease for expired, others ``grace_s`` later."""

    valid_s: float = LEASE_VALID_S
    grace_s: float = LEASE_GRACE_S
    renewed_every_s: float = LEASE_RENEWED_S


class Found(NamedTuple):
    """What a lease object said when it was read; ``holder`` is None when it was given back."""

    holder: str | None
    process: object
    token: object
    content: bytes
    version: UpdateVersion
    modified_at: datetime


def now_s() -> float:
    """Return the seconds of a clock that only goes forward."""
    return time.clock_gettime(_CLOCK)


class LeaseObjects:
    """Reads and writes the objects of leases, past everything that waits for leases."""

    def __init__(self, requests: CloudRequests, address: str, times: LeaseTimes) -> None:
        self.requests = requests
        self.address = address
        self.times = times
        self._store_time: tuple[datetime, float] | None = None
        self._last_put: tuple[str, str | None, float] | None = None

    def read(self, name: str) -> Found:
        """Return what an object says; raises ObjectNotFound, RepositoryError."""
        with translated_cloud_errors("read", self.address, name):
            found = self.requests.get(name)
            content = found.bytes().to_bytes()
        meta = found.meta
        return Found(*_holder(content), content, version_of(meta["e_tag"], meta["version"]), meta["last_modified"])

    def create(self, name: str, content: bytes) -> UpdateVersion:
        """Store an object that is not there; raises RepositoryLocked where there is one, whoever put it."""
        return self._put(name, content, None)

    def swap(self, name: str, content: bytes, version: UpdateVersion) -> UpdateVersion:
        """Store an object in place of that of a version; raises RepositoryLocked where there is another."""
        return self._put(name, content, version)

    def free(self, name: str, version: UpdateVersion) -> None:
        """Take an expired lease from its holder, who is told when it renews it; raises RepositoryLocked as ``swap``."""
        document = {"holder": None, "process": None, "token": secrets.token_hex(16)}
        self.swap(name, json.dumps(document).encode() + b"\n", version)

    def _put(self, name: str, content: bytes, version: UpdateVersion | None) -> UpdateVersion:
        with translated_cloud_errors("lock", self.address, name):
            try:
                put = self.requests.put(name, content, "create" if version is None else version)
                self._last_put = name, put["e_tag"], now_s()
                return version_of(put["e_tag"], put["version"])
            except (AlreadyExistsError, PreconditionError, FileNotFoundError):
                pass
        # It may be our own, whose answer was lost.
        holder = "another process"
        with suppress(ObjectNotFound):
            found = self.read(name)
            if found.content == content:
                return found.version
            holder = found.holder or holder
        raise held_by(self.address, name, holder)

    def is_held(self, found: Found, *, may_guess: bool = False) -> bool:
        """Tell whether somebody has a lease, who has not given it up and may be there still; raises RepositoryError.

        Who takes nothing from anybody upon the answer ``may_guess`` by a clock of its own, where it may only read.
        """
        if found.holder is None or has_ended(found.process):
            return False
        return self._age_s(found.modified_at, may_guess=may_guess) <= self.times.valid_s + self.times.grace_s

    def _age_s(self, modified_at: datetime, *, may_guess: bool) -> float:
        """Return the seconds since an object was stored, by the store's clock, or somewhat less."""
        if self._store_time is None:
            try:
                self._store_time = self._ask_time()
            except StoreUnavailable:
                raise
            except RepositoryError:
                if not may_guess:
                    raise
                return (datetime.now(UTC) - modified_at).total_seconds()
        then, at_s = self._store_time
        return (then - modified_at + timedelta(seconds=now_s() - at_s)).total_seconds()

    def _ask_time(self) -> tuple[datetime, float]:
        """Return the store's time, and when that was by this process's clock, or somewhat later."""
        if self._last_put is not None:
            # When a lease was stored tells as well, as long as it is that of this process.
            name, e_tag, at_s = self._last_put
            with translated_cloud_errors("read", self.address, name), suppress(FileNotFoundError):
                meta = self.requests.head(name)
                if meta["e_tag"] is not None and meta["e_tag"] == e_tag:
                    return meta["last_modified"], at_s
        name = f"{LEASE_FOLDER}/clock/{secrets.token_hex(8)}"
        with translated_cloud_errors("write", self.address, name):
            self.requests.put(name, b"")
            at_s = now_s()
            found = self.requests.head(name)["last_modified"], at_s
        # The time is known, also where nothing may be deleted.
        with suppress(RepositoryError), translated_cloud_errors("delete", self.address, name):
            self.requests.delete(name)
        return found


class LeaseObject:
    """A lease that this process has, or wants."""

    def __init__(self, objects: LeaseObjects, name: str, holder: str) -> None:
        self.name = name
        self._objects = objects
        self._holder = f"{holder}, process {os.getpid()} on {socket.gethostname()}"
        self._token = secrets.token_hex(16)
        self._renewals = 0
        self._version: UpdateVersion | None = None
        self._renewed_at_s = 0.0
        self._lost: RepositoryError | None = None
        self._lock = Lock()

    def take(self) -> None:
        """Take the lease; raises RepositoryLocked, naming the holder, while another has it."""
        content, at_s = self._content(), now_s()
        try:
            found = self._objects.read(self.name)
        except ObjectNotFound:
            self._version = self._objects.create(self.name, content)
        else:
            if self._objects.is_held(found):
                raise held_by(self._objects.address, self.name, found.holder or "another process")
            self._version = self._objects.swap(self.name, content, found.version)
        self._renewed_at_s = at_s

    def create(self) -> None:
        """Take a lease that nobody else has the name of."""
        at_s = now_s()
        self._version = self._objects.create(self.name, self._content())
        self._renewed_at_s = at_s

    def _content(self, *, is_free: bool = False) -> bytes:
        self._renewals += 1
        document = {
            "holder": None if is_free else self._holder,
            "process": None if is_free else this_process(),
            "token": self._token,
            "renewal": self._renewals,
        }
        return json.dumps(document).encode() + b"\n"

    @property
    def is_valid(self) -> bool:
        """Whether it is so by this process's clock."""
        return self._lost is None and now_s() < self._renewed_at_s + self._objects.times.valid_s

    def renew(self) -> None:
        """Renew the lease, which proves that it is still this process's.

        One that has expired is renewed as well, unless another process has had it since: then LeaseLost is raised, now
        and ever after.  Raises RepositoryError where that cannot be found out.
        """
        with self._lock:
            if self._lost is not None:
                raise LeaseLost(str(self._lost), hint=self._lost.hint, **self._lost.facts)
            if self._version is None:
                return
            content, at_s = self._content(), now_s()
            try:
                self._version = self._swap(content, self._version)
            except RepositoryLocked as error:
                self._lost = _lost(self._objects.address, self.name, error, now_s() - self._renewed_at_s)
                raise self._lost from None
            self._renewed_at_s = at_s

    def _swap(self, content: bytes, version: UpdateVersion) -> UpdateVersion:
        try:
            return self._objects.swap(self.name, content, version)
        except RepositoryLocked:
            # An earlier renewal may have been stored though it failed: then it is the object's last version.
            with suppress(ObjectNotFound):
                found = self._objects.read(self.name)
                if found.token == self._token:
                    return self._objects.swap(self.name, content, found.version)
            raise

    def give_back(self) -> None:
        """Let others have it at once; what is another's by now stays.  Raises RepositoryError."""
        with self._lock:
            version, self._version = self._version, None
            if version is not None and self._lost is None:
                with suppress(RepositoryLocked):
                    self._swap(self._content(is_free=True), version)

    def remove(self) -> None:
        """Give back a lease whose name no other wants any more; one that may be another's stays.

        Raises RepositoryError.
        """
        with self._lock:
            self._version = None
            if not self.is_valid:
                return
            with translated_cloud_errors("unlock", self._objects.address, self.name), suppress(FileNotFoundError):
                self._objects.requests.delete(self.name)


def held_by(address: str, name: str, holder: str) -> RepositoryLocked:
    """Return the error for a lock that another has."""
    place = f"{address}/{name}"
    return RepositoryLocked(
        f"{place} is held by {holder}",
        hint="Only one can work on a repository at a time: wait until that one has ended, or stop it. A killed"
        " process loses its lease within about a minute.",
        path=place,
        holder=holder,
    )


def _lost(address: str, name: str, error: RepositoryLocked, since_s: float) -> LeaseLost:
    place, holder = f"{address}/{name}", error.facts["holder"]
    return LeaseLost(
        f"{place} was lost: for {since_s:.0f} s this process stood still, or could not reach the store, and {holder}"
        " has taken it",
        hint="Nothing was changed since then. Run it again when that one has ended.",
        path=place,
        holder=holder,
    )


def _holder(content: bytes) -> tuple[str | None, object, object]:
    """Return who has a lease, which process that is, and its token; what cannot be read is somebody's."""
    try:
        document = json.loads(content)
        holder, process, token = document["holder"], document.get("process"), document.get("token")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "something else", None, None
    return None if holder is None else str(holder), process, token


def version_of(e_tag: str | None, version: str | None) -> UpdateVersion:
    """Return what of an answer tells one version of an object from others."""
    # The library takes no key whose value is None.
    found: UpdateVersion = {}
    if e_tag is not None:
        found["e_tag"] = e_tag
    if version is not None:
        found["version"] = version
    return found
