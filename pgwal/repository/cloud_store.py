"""The objects of a repository in an object store: Amazon S3 and what speaks like it, Google's, Azure's.

A store has names and no folders, cannot append, and answers late.  What it has stored is whole and durable.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from obstore.exceptions import (
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from pgwal.budget import (
    LISTED_AT_ONCE,
    PUT_AT_ONCE_BYTES,
    PUT_LONGEST_WAIT_S,
    PUT_TRIES,
    PUT_TRYING_S,
    UPLOADED_PART_BYTES,
    UPLOADED_PARTS_AT_ONCE,
)
from pgwal.errors import ObjectExists, ObjectNotFound, RepositoryError, StoreUnavailable
from pgwal.repository.cloud_errors import is_out_of_range, translated_cloud_errors
from pgwal.repository.cloud_requests import CloudRequests, RequestCounts
from pgwal.repository.store import MOST_BYTES_READ, ByteRange, Child, StoredObject, StoreFeature, too_large

if TYPE_CHECKING:
    from datetime import datetime

    from obstore import GetOptions
    from obstore.store import ObjectStore as Client


_Bytes: TypeAlias = list[bytes]


class CloudStore:
    """See pgwal.repository.store.ObjectStore; ``address`` is how people know the place that ``client`` reaches."""

    features = frozenset[StoreFeature]()

    def __init__(
        self, client: Client, address: str, require_leases: Callable[[], None], counts: RequestCounts | None = None
    ) -> None:
        """``require_leases`` is called before anything is changed, and raises when this process must not any more."""
        self.client = client
        self._requests = CloudRequests(client, counts or RequestCounts())
        self._address = address
        self._require_leases = require_leases

    def locate(self, name: str) -> str:
        return f"{self._address}/{name}" if name else self._address

    # -- reading -----------------------------------------------------------------------------------------------

    def get(self, name: str, *, most_bytes: int = MOST_BYTES_READ) -> bytes:
        with translated_cloud_errors("read", self._address, name):
            found = self._requests.get(name)
            if found.meta["size"] > most_bytes:
                raise too_large(name, most_bytes)
            return found.bytes().to_bytes()

    def get_ranges(self, name: str, ranges: Sequence[ByteRange]) -> list[bytes]:
        if all(start >= 0 and end is not None and end > start for start, end in ranges) and ranges:
            with translated_cloud_errors("read", self._address, name):
                try:
                    return self._requests.get_ranges(name, [(start, end) for start, end in ranges if end is not None])
                except BaseError as error:
                    if not is_out_of_range(error):
                        raise
        return self._get_ranges_of_one(name, ranges)

    def _get_ranges_of_one(self, name: str, ranges: Sequence[ByteRange]) -> _Bytes:
        """Return ranges of which some are counted from the end, or lie behind it: all of one version of the object."""
        with translated_cloud_errors("read", self._address, name):
            if len(ranges) == 1 and ranges[0].start < 0 and ranges[0].end is None:
                try:
                    return [self._get_end(name, -ranges[0].start)]
                except BaseError as error:
                    # Azure knows no such ranges; of an empty object, some stores give none.
                    if not isinstance(error, NotSupportedError) and not is_out_of_range(error):
                        raise
            while True:
                found = self._requests.head(name)
                wanted = [slice(start, end).indices(found["size"])[:2] for start, end in ranges]
                try:
                    return [self._get_range(name, each, found["e_tag"]) for each in wanted]
                except PreconditionError:
                    continue

    def _get_end(self, name: str, length: int) -> bytes:
        return self._requests.get(name, {"range": {"suffix": length}}).bytes().to_bytes()

    def _get_range(self, name: str, wanted: tuple[int, int], e_tag: str | None) -> bytes:
        if wanted[0] >= wanted[1]:
            return b""
        options: GetOptions = {"range": wanted}
        if e_tag is not None:
            options["if_match"] = e_tag
        return self._requests.get(name, options).bytes().to_bytes()

    def size(self, name: str) -> int:
        with translated_cloud_errors("read", self._address, name):
            try:
                return self._requests.head(name)["size"]
            except (PermissionDeniedError, UnauthenticatedError):
                # Such an answer has no body that says why; this one has.
                return self._requests.get(name).meta["size"]

    def exists(self, name: str) -> bool:
        return self._has_object(name) or self._has_folder(name)

    def _has_object(self, name: str) -> bool:
        try:
            self.size(name)
        except ObjectNotFound:
            return False
        return True

    def _has_folder(self, name: str) -> bool:
        return any(True for _ in self.list(f"{name}/"))

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[StoredObject]:
        # The library's prefixes end where folders do.  What comes before one of ours in its folder is not asked for.
        folder, _, last = prefix.rpartition("/")
        offset = max(prefix[:-1] if len(last) > 1 else "", after) or None
        with translated_cloud_errors("list", self._address, folder):
            for found in self._requests.list(folder, offset, LISTED_AT_ONCE):
                for each in found:
                    if each["path"].startswith(prefix) and each["path"] > after:
                        yield StoredObject(each["path"], each["size"])
                if offset is not None and last and _is_past(prefix, [each["path"] for each in found]):
                    break

    def children(self, folder: str = "") -> Iterator[Child]:
        with translated_cloud_errors("list", self._address, folder):
            found = self._requests.list_children(folder)
        for name in found["common_prefixes"]:
            yield Child(name.rpartition("/")[2], None, True)
        for each in found["objects"]:
            yield Child(each["path"].rpartition("/")[2], each["size"])

    # -- writing -----------------------------------------------------------------------------------------------

    def put(
        self,
        name: str,
        content: bytes | Iterable[bytes],
        *,
        replace: bool = False,
        durable: bool = True,  # noqa: ARG002
    ) -> None:
        self._require_leases()
        if isinstance(content, bytes) and not replace:
            self._create(name, content)
            return
        pieces = iter((content,) if isinstance(content, bytes) else content)
        first: list[bytes] = []
        size_bytes = 0
        for piece in pieces:
            first.append(piece)
            size_bytes += len(piece)
            if size_bytes > PUT_AT_ONCE_BYTES:
                self._put_in_parts(name, first, pieces, replace=replace)
                return
        whole = content if isinstance(content, bytes) else b"".join(first)
        if replace:
            with translated_cloud_errors("write", self._address, name):
                self._requests.put(name, whole)
        else:
            self._create(name, whole)

    def _create(self, name: str, content: bytes) -> None:
        """Store an object if there is none of its name.

        An answer may be lost after the object was stored, and whoever asks again, here or in the library, is told that
        there is one: it is that one if it is the same.
        """
        # Not above: a server waits for each segment that it fetches, and that needs none of it.
        from tenacity import (
            Retrying,
            retry_if_exception_type,
            stop_after_attempt,
            stop_after_delay,
            wait_random_exponential,
        )

        try:
            for attempt in Retrying(
                retry=retry_if_exception_type(StoreUnavailable),
                stop=stop_after_attempt(PUT_TRIES) | stop_after_delay(PUT_TRYING_S),
                wait=wait_random_exponential(multiplier=0.2, max=PUT_LONGEST_WAIT_S),
                reraise=True,
            ):
                with attempt, translated_cloud_errors("write", self._address, name):
                    self._requests.put(name, content, "create")
        except ObjectExists:
            if not self._holds(name, content):
                raise

    def _holds(self, name: str, content: bytes) -> bool:
        try:
            return self.size(name) == len(content) and self.get(name, most_bytes=len(content)) == content
        except ObjectNotFound:
            return False

    def _put_in_parts(self, name: str, first: _Bytes, rest: Iterator[bytes], *, replace: bool) -> None:
        """Store a large object; where two do so at once under one name, the store tells neither.

        Such are packs and segments: the name of a pack is unique, and segments are stored under a lease.  So is an
        entry that is too large for one request.
        """
        if not replace and self._has_object(name):
            raise ObjectExists(f"cannot write {self.locate(name)}: it is there already", path=self.locate(name))
        before = self._version(name) if replace else None
        pieces = _Pieces(first, rest)
        try:
            with translated_cloud_errors("write", self._address, name):
                self._requests.put_in_parts(name, pieces, UPLOADED_PART_BYTES, UPLOADED_PARTS_AT_ONCE)
        except BaseException as error:
            if pieces.error is not None:
                raise pieces.error from None
            # The last request may have been answered and the answer lost: then its upload has ended, and is not found.
            if not isinstance(error, ObjectNotFound):
                raise
            # What is there may be what should have been replaced, which may have as many bytes.
            found = self._version(name)
            if found is None or found == before or found[0] != pieces.size_bytes:
                place = self.locate(name)
                raise RepositoryError(f"cannot write {place}: the store lost what was sent", path=place) from None

    def _version(self, name: str) -> tuple[int, str | None, datetime] | None:
        """Return size, ETag and time of an object, None where there is none."""
        try:
            with translated_cloud_errors("read", self._address, name):
                found = self._requests.head(name)
        except ObjectNotFound:
            return None
        return found["size"], found["e_tag"], found["last_modified"]

    def delete(self, name: str) -> None:
        self._require_leases()
        with translated_cloud_errors("delete", self._address, name):
            self._requests.delete(name)

    def delete_all(self, folder: str) -> None:
        names = (name for name, _ in self.list(f"{folder}/"))
        while some := list(itertools.islice(names, LISTED_AT_ONCE)):
            self._require_leases()
            with translated_cloud_errors("delete", self._address, folder):
                self._requests.delete(some)

    def remove_folder(self, folder: str) -> bool:
        return not self._has_folder(folder)

    def recover(self, folder: str, is_own: Callable[[str], bool]) -> None:
        pass  # What is not whole is not there.


def _is_past(prefix: str, names: Sequence[str]) -> bool:
    """Tell whether names that a store lists, which it does in order, have come to those behind a prefix."""
    last = names[-1] if names else ""
    return last > prefix and not last.startswith(prefix) and all(a < b for a, b in itertools.pairwise(names))


class _Pieces:
    """Yields pieces of an object, the first of which are not kept any longer then, and knows why there are no more."""

    def __init__(self, first: list[bytes], rest: Iterator[bytes]) -> None:
        self._first = first
        self._rest = rest
        self.size_bytes = 0
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            piece = self._first.pop(0) if self._first else next(self._rest)
        except StopIteration:
            raise
        except BaseException as error:
            self.error = error
            raise
        self.size_bytes += len(piece)
        return piece
