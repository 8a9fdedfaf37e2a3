"""The keys of one repository, as far as this process has them, and the ciphers of objects that come from them."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from threading import Lock

from pgwal.encryption.age import Identity, decrypt, encrypt
from pgwal.encryption.container import (
    FRAME_BYTES,
    ID_BYTES,
    KEY_BYTES,
    MOST_WRAPPED_BYTES,
    FrameCipher,
    Header,
    PackSeal,
    SealedFor,
    damaged,
    derived_key,
)
from pgwal.encryption.held_secrets import HeldSecrets
from pgwal.encryption.keyring import ContentKey, Keyring
from pgwal.errors import BrokenInvariant, KeyRequired, WrongKey

_CONTENT, _METADATA = b"pgwal content", b"pgwal metadata"


class RepositoryKeys:
    """Seals and opens objects; whoever has no identity seals for the recipients, and cannot open that.

    A key of what is for the recipients is made of the object's secret and of the metadata key: to know the public key
    is not enough to make an object that opens.  ``identities`` is asked when one is needed for the first time.
    """

    def __init__(
        self,
        keyring: Keyring,
        metadata_key: bytes,
        identities: Callable[[], list[Identity]],
        held: HeldSecrets | None = None,
    ) -> None:
        self.keyring = keyring
        self._metadata_key = metadata_key
        self._repository_id = bytes.fromhex(keyring.repository_id)
        self._identities = identities
        self._held = held
        self.holds_what_it_opens = False
        """Whether the secrets of segments that an identity opens are held: so a receiver takes over from another."""
        self._lock = Lock()
        self._opened: dict[int, Identity] = {}

    def __repr__(self) -> str:
        return f"<keys of {self.keyring.repository_id}>"

    @property
    def metadata_key(self) -> bytes:
        """The metadata key, for a repository that is to have the same."""
        return self._metadata_key

    def sealing(self, name: str, sealed_for: SealedFor, *, segment: str | None = None) -> tuple[bytes, FrameCipher]:
        """Return the header of a new object, and what seals its frames; the secret of a ``segment`` is held."""
        if sealed_for is SealedFor.METADATA:
            header = Header(sealed_for, 0, FRAME_BYTES, secrets.token_bytes(ID_BYTES))
            return header.encode(), self._cipher(header, b"", name)
        return self._sealing_for_recipients(name, secrets.token_bytes(ID_BYTES), FRAME_BYTES, segment)

    def pack_seal(self, name: str, pack_id: bytes) -> PackSeal:
        """Return what seals a new pack."""
        return PackSeal(*self._sealing_for_recipients(name, pack_id, 0, None))

    def _sealing_for_recipients(
        self, name: str, object_id: bytes, frame_bytes: int, segment: str | None
    ) -> tuple[bytes, FrameCipher]:
        newest, secret = self.keyring.content[-1], secrets.token_bytes(KEY_BYTES)
        wrapped = encrypt(secret, [newest.recipient])
        while len(wrapped) > MOST_WRAPPED_BYTES:
            # The library adds something of a random length, so that others must take what they do not know.
            wrapped = encrypt(secret, [newest.recipient])
        header = Header(SealedFor.RECIPIENTS, newest.generation, frame_bytes, object_id, wrapped)
        if segment is not None and self._held is not None:
            self._held.add(object_id, segment, secret)
        return header.encode(), self._cipher(header, secret, name)

    def opening(
        self, content: bytes, name: str, sealed_for: SealedFor, place: str, *, segment: str | None = None
    ) -> FrameCipher:
        """Return what opens the frames of an object that begins with ``content``; ``segment`` is as of ``sealing``.

        Raises ChecksumMismatch for what is no header, KeyRequired, WrongKey.
        """
        header = Header.decode(content, sealed_for, place)
        secret = b""
        if sealed_for is SealedFor.RECIPIENTS:
            secret = self._secret(header, place, segment)
        cipher = self._cipher(header, secret, name)
        if header.encode() != content:
            raise damaged(place, "its header is not one")
        return cipher

    def _secret(self, header: Header, place: str, segment: str | None) -> bytes:
        held = None if self._held is None or segment is None else self._held.find(header.object_id)
        if held is not None:
            return held
        secret = self._unwrapped(header, place)
        if self._held is not None and segment is not None and self.holds_what_it_opens:
            self._held.add(header.object_id, segment, secret)
        return secret

    def _unwrapped(self, header: Header, place: str) -> bytes:
        identity = self._content_identity(header.generation, place)
        try:
            secret = decrypt(header.wrapped, [identity], place)
        except WrongKey as error:
            raise damaged(place, "its key does not open") from error
        if len(secret) != KEY_BYTES:
            raise damaged(place, "its key is none")
        return secret

    def _cipher(self, header: Header, secret: bytes, name: str) -> FrameCipher:
        purpose = _CONTENT if header.sealed_for is SealedFor.RECIPIENTS else _METADATA
        key = derived_key(secret + self._metadata_key, header.object_id, purpose)
        return FrameCipher(key, self._repository_id, name, header.encode())

    def require_identity(self) -> None:
        """Raise KeyRequired, or WrongKey, unless everything can be opened that is sealed for the recipients."""
        for key in self.keyring.content:
            self._content_identity(key.generation, self.keyring.name)

    def _content_identity(self, generation: int, place: str) -> Identity:
        with self._lock:
            if generation not in self._opened:
                key = next((key for key in self.keyring.content if key.generation == generation), None)
                if key is None:
                    raise damaged(place, f"there is no key of generation {generation}")
                try:
                    self._opened[generation] = opened_content_key(self.keyring, key, self._identities())
                except KeyRequired as error:
                    error.restate(f"{place} cannot be opened: {error}", path=place)
                    raise
            return self._opened[generation]

    def forget_segments(self, is_needed: Callable[[str], bool], is_in_use: Callable[[], bool]) -> None:
        """Forget the held secrets of segments that are not needed any more, but none while WAL is in use."""
        if self._held is not None:
            self._held.forget(is_needed, is_in_use)


def new_content_key(generation: int, recipients: tuple[str, ...]) -> ContentKey:
    """Return a new key pair of a repository."""
    return wrapped_content_key(generation, Identity.generate(), recipients)


def wrapped_content_key(generation: int, identity: Identity, recipients: tuple[str, ...]) -> ContentKey:
    """Return a key pair with its private half encrypted for some recipients."""
    wrapped = encrypt(f"{identity.secret()}\n".encode(), recipients, armored=True)
    return ContentKey(generation, identity.recipient, wrapped.decode())


def opened_content_key(keyring: Keyring, key: ContentKey, identities: list[Identity]) -> Identity:
    """Return the private half of a key pair; raises WrongKey."""
    found = Identity(decrypt(key.wrapped.encode(), identities, keyring.name).decode("ascii", "replace"))
    if found.recipient != key.recipient:
        raise WrongKey(f"{keyring.name} is damaged: key {key.generation} is another one", path=keyring.name)
    return found


def wrapped_metadata_key(key: bytes, recipients: tuple[str, ...]) -> str:
    """Return the metadata key encrypted for some recipients."""
    if len(key) != KEY_BYTES:
        raise BrokenInvariant("a metadata key has another length")
    return encrypt(key, recipients, armored=True).decode()


def opened_metadata_key(keyring: Keyring, identities: list[Identity]) -> bytes:
    """Return the metadata key; raises WrongKey."""
    found = decrypt(keyring.metadata.encode(), identities, keyring.name)
    if len(found) != KEY_BYTES:
        raise WrongKey(f"{keyring.name} is damaged: its metadata key is not valid", path=keyring.name)
    return found
