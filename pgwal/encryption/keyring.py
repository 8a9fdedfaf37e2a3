"""The key document of an encrypted repository: its recipients, and its keys as they are encrypted for them.

Each revision is an object of its own, ``keys/<number>.json``, stored over nothing; the highest number counts.  The
repository has a key pair of its own, whose private half is encrypted for the recipients; objects are encrypted for its
public half.  So a change of recipients stores some hundred bytes anew, and no object.
"""

from __future__ import annotations

import hmac
import json
import re
from typing import Any, NamedTuple

from pgwal.encryption.container import KEY_BYTES, derived_key
from pgwal.errors import FormatError, UnsupportedVersion, WrongKey

_DIRECTORY = "keys"
_VERSION = 1
_NAME = re.compile(r"([0-9]{8})\.json")
_ID = re.compile(r"[0-9a-f]{32}")
_RECIPIENT = re.compile(r"age1[a-z0-9]{58}")
_MOST_RECIPIENTS = 1000


class ContentKey(NamedTuple):
    """A key pair of the repository: ``recipient`` is the public half, ``wrapped`` the private one, encrypted by age."""

    generation: int
    recipient: str
    wrapped: str


class Keyring(NamedTuple):
    """One revision of the document; ``metadata`` is the metadata key, encrypted by age."""

    repository_id: str
    revision: int
    recipients: tuple[str, ...]
    content: tuple[ContentKey, ...]
    metadata: str

    @property
    def name(self) -> str:
        """The name of its object."""
        return f"{_DIRECTORY}/{self.revision:08}.json"

    def encode(self, metadata_key: bytes) -> bytes:
        """Return the document, with a code by which whoever has the metadata key knows it."""
        document = self._document()
        document["mac"] = _mac(document, metadata_key)
        return _spelled(document)

    def _document(self) -> dict[str, Any]:
        return {
            "pgwal-keys": _VERSION,
            "repository": self.repository_id,
            "revision": self.revision,
            "recipients": list(self.recipients),
            "content": [key._asdict() for key in self.content],
            "metadata": self.metadata,
        }


class StoredKeyring(NamedTuple):
    """A document as it was read: it counts when ``require`` has not raised."""

    keyring: Keyring
    mac: str

    def require(self, metadata_key: bytes) -> Keyring:
        """Return the document; raises WrongKey unless it was made by somebody who had this metadata key."""
        expected = _mac(self.keyring._document(), metadata_key)
        if not hmac.compare_digest(expected, self.mac):
            raise WrongKey(
                f"{self.keyring.name} was not made with the metadata key at hand: it was changed, or the key is"
                " another repository's",
                hint="Compare --metadata-key (PGWAL_METADATA_KEY) with the one of another host; see"
                " docs/encryption.md.",
                path=self.keyring.name,
            )
        return self.keyring

    @classmethod
    def decode(cls, content: bytes, name: str) -> StoredKeyring:
        """Parse a document that has this name; raises FormatError, or UnsupportedVersion for a newer one."""
        try:
            document = json.loads(content)
            version = document["pgwal-keys"]
            if type(version) is not int:
                raise TypeError("its version is no number")
            if version != _VERSION:
                raise UnsupportedVersion(f"{name} has format {version}, this pgwal knows {_VERSION}")
            keyring = _keyring(document)
            mac = document["mac"]
            if not isinstance(mac, str):
                raise TypeError("its code is no text")
            if document.keys() != {*keyring._document(), "mac"}:
                raise ValueError("it has other members")
            if _spelled(document) != content:
                raise ValueError("it is spelled otherwise")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError(
                f"{name} cannot be read: {type(error).__name__}",
                hint="Bring it back from a copy of the repository: without it nothing can be opened.",
                path=name,
            ) from error
        if keyring.name != name:
            raise FormatError(f"{name} is revision {keyring.revision} of the keys", path=name)
        return cls(keyring, mac)


def revision_of(name: str) -> int | None:
    """Return the revision of the document that has this name in its folder, None for another name."""
    match = _NAME.fullmatch(name)
    return None if match is None else int(match[1])


def _keyring(document: Any) -> Keyring:
    recipients = tuple(_matching(_RECIPIENT, each) for each in document["recipients"])
    content = tuple(
        ContentKey(_number(key["generation"], 0xFFFF), _matching(_RECIPIENT, key["recipient"]), _text(key["wrapped"]))
        for key in document["content"]
    )
    generations = [key.generation for key in content]
    if not 0 < len(recipients) <= _MOST_RECIPIENTS or not content or generations != sorted(set(generations)):
        raise ValueError("it lacks keys")
    return Keyring(
        _matching(_ID, document["repository"]),
        _number(document["revision"], 99_999_999),
        recipients,
        content,
        _text(document["metadata"]),
    )


def _matching(pattern: re.Pattern[str], value: object) -> str:
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise ValueError("no such text")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _number(value: object, highest: int) -> int:
    if type(value) is not int or not 0 < value <= highest:
        raise ValueError("no such number")
    return value


def _spelled(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode() + b"\n"


def _mac(document: dict[str, Any], metadata_key: bytes) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return hmac.digest(derived_key(metadata_key, bytes(KEY_BYTES), b"pgwal keys"), canonical, "sha256").hex()
