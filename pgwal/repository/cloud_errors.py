"""What an object store refuses, as errors of pgwal: in its own words, and without anything secret."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pgwal.errors import ObjectExists, ObjectNotFound, ObjectRetained, RepositoryError, StorageFull, StoreUnavailable

_STATUS = re.compile(r"status code: ([0-9]{3}) ?([A-Za-z ]*)")
_SERVER = re.compile(r"https?://[^/\s?]+")
_CODE = re.compile(r"<Code>([^<]{1,100})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,1000})</Message>")
_QUERY = re.compile(r"\?\S+")
"""Of an address: some stores take what grants access in there."""
_USER = re.compile(r"//[^/\s]*@")
"""Of an address, with a password: some people put what grants access in there."""
_CAUSES = (
    "dns error",
    "Connection refused",
    "tcp connect error",
    "invalid peer certificate",
    "operation timed out",
    "Connection reset",
    "connection closed before message completed",
    "error sending request",
    "error decoding response body",
)
"""In the order in which they tell more."""
_BUSY = (408, 429, 500, 502, 503, 504)
_FULL = ("QuotaExceeded", "EntityTooLarge", "XMinioStorageFull", "InsufficientCapacity", "InsufficientStorage")
_FULL_STATUS = 507

_RETAINED = re.compile(r"object.?lock|retention|immutable|ActiveHold|\bWORM\b", re.IGNORECASE)
"""In what stores say of an object that is kept for a time that was set before, until when, where they tell."""
_SECRET_HINT = "Check the secret key: AWS_SECRET_ACCESS_KEY for s3://, the account's key or token for others."
_CHECKSUM_HINT = "Set AWS_CHECKSUM_ALGORITHM=SHA256: the bucket's object lock wants a checksum with each object."
_HINTS = {
    "NoSuchBucket": "Make the bucket first, or check its name in --repo; pgwal makes none.",
    "ContainerNotFound": "Make the container first, or check its name in --repo; pgwal makes none.",
    "SignatureDoesNotMatch": _SECRET_HINT,
    "AuthenticationFailed": _SECRET_HINT,
    "InvalidAccessKeyId": "Check AWS_ACCESS_KEY_ID, and that AWS_ENDPOINT_URL is the store that gave the key.",
    "ExpiredToken": "The credentials have expired: get new ones, AWS_SESSION_TOKEN with them.",
    "InvalidToken": "AWS_SESSION_TOKEN does not belong to the keys: set all three again, or unset it.",
    "RequestTimeTooSkewed": "Set the clock of this machine: the store takes no request that is minutes off its own.",
    "AuthorizationHeaderMalformed": "Set AWS_REGION to the region that the store names.",
    "PermanentRedirect": "The bucket is in another region: set AWS_REGION to it.",
    "IllegalLocationConstraintException": "The bucket is in another region: set AWS_REGION to it.",
    "AccessDenied": "Give the credentials the right to do this in the bucket, below the prefix.",
}
_UNREACHED_HINT = "Check the network, AWS_ENDPOINT_URL or its like for other stores, and that the store is running."
_PANIC_HINT = (
    "Look at the variables of the environment that the store is reached by: AWS_ENDPOINT_URL begins with https:// or"
    " http://, and no key ends with a line break."
)
_NO_WHOLE_ANSWER = (" does not answer: ", "response body error")
_BUSY_HINT = "It was asked again several times: try later."
_FAILED_HINT = "It was asked again several times: see the store's own log. Some answer so when they have no room."
_NOT_WITHOUT_TLS = "its address is without TLS, which is not allowed"
_NO_HTTP_HINT = "Set AWS_ALLOW_HTTP=true for a store without TLS, or use an address that begins with https."


class _Answer(NamedTuple):
    """What is known of a refusal: the HTTP status, and what the store calls it; None where there was no answer."""

    status: int | None
    code: str | None
    words: str


@contextmanager
def translated_cloud_errors(action: str, address: str, name: str = "") -> Iterator[None]:
    """Turn what a store, or the way there, refuses into kinds of RepositoryError.

    They are ObjectNotFound, ObjectExists, StorageFull and StoreUnavailable where that is what they say.  Errors that
    the library passes on, of whoever makes the pieces of an object, stay as they are.
    """
    from obstore.exceptions import AlreadyExistsError, BaseError

    try:
        yield
    except FileNotFoundError as error:
        answer = _read(error)
        if answer.code in ("NoSuchBucket", "ContainerNotFound"):
            raise _refused(action, address, name, answer) from None
        place = _place(address, name)
        raise ObjectNotFound(f"cannot {action} {place}: it does not exist", path=place) from None
    except AlreadyExistsError as error:
        answer = _read(error)
        if _is_retained(answer):
            raise _refused(action, address, name, answer) from None
        place = _place(address, name)
        raise ObjectExists(f"cannot {action} {place}: it is there already", path=place) from None
    except BaseError as error:
        # Not as its cause: what the library tells at length may have addresses that grant access.
        raise _refused(action, address, name, _read(error)) from None
    except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        # A panic of the library, which is no Exception: nobody expects one, and fetch-wal would seem to find no file.
        place = _place(address, name)
        raise RepositoryError(
            f"cannot {action} {place}: the library that speaks to the store failed: {_way_there(str(error))}",
            hint=_PANIC_HINT,
            path=place,
        ) from None


def is_out_of_range(error: Exception) -> bool:
    """Tell whether a store refused to give bytes from behind the end of an object."""
    return _read(error).status == 416 or "Range" in str(error)


def _read(error: Exception) -> _Answer:
    text = _USER.sub("//", str(error))
    status, code, message = _STATUS.search(text), _CODE.search(text), _MESSAGE.search(text)
    if code is not None:
        words = f"{code[1]}: {message[1]}" if message is not None else code[1]
    elif status is not None:
        words = f"the store answers {status[1]} {status[2]}".rstrip()
    else:
        words = _way_there(text)
    return _Answer(None if status is None else int(status[1]), None if code is None else code[1], words)


def _way_there(text: str) -> str:
    """Return what is known of a request that got no answer."""
    first = _QUERY.sub("", _USER.sub("//", text.partition("\n")[0]))
    server = _SERVER.search(first)
    if "builder error" in text and server is not None and server[0].startswith("http://"):
        return _NOT_WITHOUT_TLS
    why = next((cause for cause in _CAUSES if cause in text), None)
    if why is None:
        return first
    # An address that may hold what grants access is not repeated to us.
    return f"{'the store' if server is None else server[0]} does not answer: {why}"


def _refused(action: str, address: str, name: str, answer: _Answer) -> RepositoryError:
    place = _place(address, name)
    kind, hint = RepositoryError, _HINTS.get(answer.code or "")
    if answer.code in _FULL or answer.status == _FULL_STATUS:
        kind, hint = (
            StorageFull,
            "Free some space, or raise the quota; WAL that was reported as received is safe.",
        )
    elif _is_retained(answer):
        kind, hint = ObjectRetained, "It can be removed when its retention is over: run pgwal expire again then."
    elif answer.code == "InvalidRequest" and "x-amz-checksum" in answer.words:
        hint = _CHECKSUM_HINT
    elif answer.words == _NOT_WITHOUT_TLS:
        hint = _NO_HTTP_HINT
    elif answer.status is None and any(words in answer.words for words in _NO_WHOLE_ANSWER):
        kind, hint = StoreUnavailable, _UNREACHED_HINT
    elif answer.status in _BUSY and hint is None:
        kind, hint = StoreUnavailable, _FAILED_HINT if answer.status == 500 else _BUSY_HINT
    elif answer.status in (401, 403):
        hint = hint or "The store does not take the credentials: check key, secret, region and the clock."
    error = kind(f"cannot {action} {place}: {answer.words}", hint=hint, path=place)
    if answer.code is not None:
        error.facts["store_code"] = answer.code
    return error


def _is_retained(answer: _Answer) -> bool:
    """Tell whether an object is kept for a time that was set before."""
    return answer.status in (403, 409) and _RETAINED.search(answer.words) is not None


def _place(address: str, name: str) -> str:
    return f"{address}/{name}" if name else address
