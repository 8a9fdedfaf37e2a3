"""Find out whether a store keeps the one promise that everything here stands on: puts with conditions."""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

from pgwal.errors import RepositoryError
from pgwal.repository.cloud_errors import translated_cloud_errors
from pgwal.repository.cloud_lease_object import LEASE_FOLDER, version_of

if TYPE_CHECKING:
    from obstore import PutMode, UpdateVersion

    from pgwal.repository.cloud_requests import CloudRequests

_REFUSED = (AlreadyExistsError, PreconditionError, FileNotFoundError)
_HINT = (
    "Use a store with conditional writes (If-None-Match and If-Match): Amazon S3, Google Cloud Storage, Azure Blob"
    " Storage, and recent versions of MinIO, Ceph, SeaweedFS and others have them; gateways in front of them may not."
)


def require_conditional_puts(requests: CloudRequests, address: str) -> None:
    """Raise RepositoryError for a store that puts over what is there although it is told not to; also where it cannot
    be reached, read or written at all.  What is put is removed again, where that is allowed."""
    name = f"{LEASE_FOLDER}/probe/{secrets.token_hex(8)}"
    try:
        version = _put(requests, address, name, b"first", "create")
        if not version:
            raise _unfit(address, "gives no ETags")
        _require_refused(
            requests, address, name, "create", "puts an object over one that is there, although told not to"
        )
        _put(requests, address, name, b"second", version)
        _require_refused(requests, address, name, version, "puts an object over another one than it was told to")
        with translated_cloud_errors("read", address, name):
            if requests.get(name).bytes() != b"second":
                raise _unfit(address, "does not give back what was put last")
    finally:
        with suppress(RepositoryError), translated_cloud_errors("delete", address, name):
            requests.delete(name)


def _put(requests: CloudRequests, address: str, name: str, content: bytes, mode: PutMode) -> UpdateVersion:
    """Put an object whose condition holds; what is there already is that one, if the answer was lost, and it is the
    same: nobody else knows its name."""
    with translated_cloud_errors("write", address, name):
        try:
            put = requests.put(name, content, mode)
            return version_of(put["e_tag"], put["version"])
        except NotSupportedError as error:
            raise _unfit(address, "takes no conditional puts") from error
        except (AlreadyExistsError, PreconditionError):
            found = requests.get(name)
            if found.bytes() != content:
                raise
            return version_of(found.meta["e_tag"], found.meta["version"])


def _require_refused(requests: CloudRequests, address: str, name: str, mode: PutMode, what: str) -> None:
    with translated_cloud_errors("write", address, name):
        try:
            requests.put(name, b"refused", mode)
        except _REFUSED:
            return
    raise _unfit(address, what)


def _unfit(address: str, what: str) -> RepositoryError:
    return RepositoryError(
        f"{address} cannot hold a repository: the store {what}, so that two processes could destroy each other's work",
        hint=_HINT,
        path=address,
    )
