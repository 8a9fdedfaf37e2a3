"""Keys of age, https://age-encryption.org/v1: of the kind X25519, as age-keygen makes them.

Everything that pyrage does is done here; whatever it says of something secret is not repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pgwal.encryption.core_files import keep_out_of_core_files
from pgwal.errors import FormatError, PgwalError, WrongKey

SECRET_PREFIX = "AGE-SECRET-KEY-1"


def pyrage() -> Any:
    """Import the library; raises PgwalError where it, or the other one that is needed, is not installed."""
    try:
        import cryptography  # noqa: F401
        import pyrage
    except ImportError:
        raise PgwalError(
            "encryption needs pyrage and cryptography, which are not installed",
            hint='Install them: pip install "pgwal[crypto]".',
        ) from None
    keep_out_of_core_files()
    return pyrage


class Identity:
    """A private key; nothing shows it but ``secret``."""

    def __init__(self, secret: str) -> None:
        """Take the text of a key; raises FormatError, which does not repeat it."""
        library = pyrage()
        try:
            self._identity = library.x25519.Identity.from_str(secret.strip())
        except library.IdentityError:
            raise FormatError(
                "this is no identity of age", hint=f"It is one line, {SECRET_PREFIX}..., as pgwal key generate writes."
            ) from None

    @classmethod
    def generate(cls) -> Identity:
        return cls(str(pyrage().x25519.Identity.generate()))

    def __repr__(self) -> str:
        return f"<identity of {self.recipient}>"

    @property
    def recipient(self) -> str:
        """The public key."""
        return str(self._identity.to_public())

    def secret(self) -> str:
        return str(self._identity)


def require_recipient(text: str) -> str:
    """Return a public key as it is; raises FormatError for what is none."""
    library = pyrage()
    try:
        return str(library.x25519.Recipient.from_str(text))
    except library.RecipientError:
        shown = "a private key" if text.strip().upper().startswith("AGE-SECRET") else repr(text)
        raise FormatError(
            f"{shown} is no recipient",
            hint="A recipient is a public key of age, age1...: pgwal key generate prints it.",
        ) from None


def encrypt(content: bytes, recipients: Sequence[str], *, armored: bool = False) -> bytes:
    """Return bytes encrypted for each of some recipients, in text where that is ``armored``."""
    library = pyrage()
    keys = [library.x25519.Recipient.from_str(recipient) for recipient in recipients]
    found: bytes = library.encrypt(content, keys, armored=armored)
    return found


def decrypt(content: bytes, identities: Sequence[Identity], place: str) -> bytes:
    """Return what was encrypted for one of the identities; raises WrongKey where there is none, or it is damaged."""
    library = pyrage()
    try:
        found: bytes = library.decrypt(content, [identity._identity for identity in identities])
    except library.DecryptError:
        raise WrongKey(
            f"the given identity does not open {place}: it is not that of a recipient, or {place} is damaged",
            hint="pgwal key list shows the recipients. Give the identity of one of them: --identity FILE.",
            path=place,
        ) from None
    return found
