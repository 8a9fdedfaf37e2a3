"""A bucket of an object store, or what lies there under a prefix, as a place for a repository."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, cast

from pgwal.budget import (
    PROBE_RETRIES,
    REQUEST_FIRST_WAIT_S,
    REQUEST_RETRIES,
    REQUEST_RETRYING_S,
    REQUEST_TIMEOUT_S,
)
from pgwal.encryption.key_sources import KeySources
from pgwal.errors import FormatError, RepositoryError

if TYPE_CHECKING:
    from obstore.store import ClientConfig
    from obstore.store import ObjectStore as Client

    from pgwal.repository.cloud_leases import CloudLeases
    from pgwal.repository.cloud_requests import RequestCounts
    from pgwal.repository.cloud_store import CloudStore
    from pgwal.repository.memory import MemorySpool
    from pgwal.repository.storage_format import StorageFormat

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]+")
_VARIABLES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
_CLIENT_OPTIONS = (
    "allow_http",
    "allow_invalid_certificates",
    "connect_timeout",
    "proxy_url",
    "proxy_excludes",
    "timeout",
)
"""What the library has from variables of these names itself, as long as it is given nothing of the kind."""


@dataclass(frozen=True)
class CloudPlace:
    """See pgwal.repository.place.Place.

    ``address`` is a URL without anything secret, see ``parse``; ``given_client`` speaks to the store, where that is not
    left to the variables of its provider.
    """

    address: str
    given_client: Client | None = field(default=None, compare=False, repr=False)
    keys: KeySources = field(default=KeySources(), compare=False)

    @classmethod
    def parse(cls, url: str) -> CloudPlace:
        """Return the place of SCHEME://BUCKET[/PREFIX]; nothing is looked at.  Raises FormatError."""
        scheme, _, rest = url.partition("://")
        bucket, *folders = rest.rstrip("/").split("/")
        if scheme not in _VARIABLES:
            raise FormatError(
                f"repositories are directories, or in {', '.join(f'{name}://' for name in _VARIABLES)}, not in {scheme}://"
            )
        if not _BUCKET.fullmatch(bucket):
            raise FormatError(
                f"{scheme}://BUCKET/PREFIX names no bucket of letters, digits, dots and hyphens",
                hint="Credentials are no part of it: they come from the environment.",
            )
        if any(folder in ("", ".", "..") or set(folder) & set("?#%*\\") for folder in folders):
            # It is not repeated: there may be something secret in what was taken for a part of it.
            raise FormatError(
                f"the part behind {scheme}://{bucket}/ is no prefix for a repository: a path without ?, #, % and *"
            )
        return cls("/".join((f"{scheme}://{bucket}", *folders)))

    def __str__(self) -> str:
        return self.address

    @property
    def directory(self) -> None:
        return None

    @property
    def is_remote(self) -> bool:
        return True

    @cached_property
    def client(self) -> Client:
        """What speaks to the store."""
        return _client(self.address, REQUEST_RETRIES) if self.given_client is None else self.given_client

    @cached_property
    def _counts(self) -> RequestCounts:
        from pgwal.repository.cloud_requests import RequestCounts

        return RequestCounts()

    @property
    def request_counts(self) -> dict[str, int]:
        return self._counts.by_kind()

    @cached_property
    def store(self) -> CloudStore:
        client = self.client
        from pgwal.repository.cloud_store import CloudStore

        return CloudStore(client, self.address, self._require_leases, self._counts)

    def _require_leases(self) -> None:
        # Whoever has none has not asked for what makes them, which takes long to import: a server waits for each
        # segment that it fetches, and that needs none.
        leases: CloudLeases | None = self.__dict__.get("leases")
        if leases is not None:
            leases.require()

    @cached_property
    def leases(self) -> CloudLeases:
        client = self.client
        from pgwal.repository.cloud_leases import CloudLeases

        return CloudLeases(client, self.address, counts=self._counts)

    @cached_property
    def spool(self) -> MemorySpool:
        from pgwal.repository.memory import MemorySpool

        return MemorySpool(self.store)

    @property
    def default_format(self) -> StorageFormat:
        """Packs: a request for each file would take long, and cost."""
        from pgwal.repository.storage_format import DEFAULT_PACKED_FORMAT

        return DEFAULT_PACKED_FORMAT

    def with_keys(self, keys: KeySources) -> CloudPlace:
        return replace(self, keys=keys)

    def require_trusted(self) -> None:
        """Who may write there is what the bucket's policies say, and is not to be seen by a client."""

    def require_own(self) -> None:
        """As for ``require_trusted``: what is not allowed is refused when it is tried."""

    def require_suitable(self) -> None:
        """A bucket is no data directory; ``probe`` tells what else may be wrong with it."""

    def probe(self) -> None:
        client = self.given_client or _client(self.address, min(PROBE_RETRIES, REQUEST_RETRIES))
        from pgwal.repository.cloud_probe import require_conditional_puts
        from pgwal.repository.cloud_requests import CloudRequests

        require_conditional_puts(CloudRequests(client, self._counts), self.address)

    def make(self, folders: Iterable[str] = ()) -> None:
        """Folders are there when something is in them, and the bucket is not pgwal's to make."""


def _client_options(address: str) -> ClientConfig:
    prefix = _VARIABLES[address.partition("://")[0]]
    found = {name: os.environ.get(prefix + name.upper()) for name in _CLIENT_OPTIONS}
    given = {name: value for name, value in found.items() if value is not None}
    return cast("ClientConfig", {"timeout": timedelta(seconds=REQUEST_TIMEOUT_S)} | given)


def _client(address: str, most_retries: int) -> Client:
    """Return what speaks to a store, as the variables of its provider say; raises RepositoryError."""
    try:
        from obstore.store import from_url
    except ImportError:
        raise RepositoryError(
            f"{address} needs obstore, which is not installed", hint='Install it: pip install "pgwal[cloud]".'
        ) from None
    from pgwal.repository.cloud_errors import translated_cloud_errors

    with translated_cloud_errors("use", address):
        return from_url(
            address,
            client_options=_client_options(address),
            retry_config={
                "max_retries": most_retries,
                "retry_timeout": timedelta(seconds=REQUEST_RETRYING_S),
                "backoff": {"init_backoff": timedelta(seconds=REQUEST_FIRST_WAIT_S)},
            },
        )
