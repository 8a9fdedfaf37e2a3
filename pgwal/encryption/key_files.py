"""Files of keys on this machine, and the command that prints an identity instead."""

from __future__ import annotations

import base64
import os
import re
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

from pgwal.encryption.age import SECRET_PREFIX, Identity
from pgwal.encryption.container import KEY_BYTES
from pgwal.encryption.core_files import keep_out_of_core_files
from pgwal.encryption.key_places import key_revision_path, metadata_key_path
from pgwal.encryption.key_sources import KeySources
from pgwal.errors import FormatError, KeyRequired, PgwalError, WrongKey

_MOST_BYTES = 64 << 10
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_METADATA_LINE = re.compile(r"PGWAL-METADATA-KEY-1 ([0-9a-f]{32}) ([A-Za-z0-9+/]{43}=)")


def identities_of(sources: KeySources) -> list[Identity]:
    """Return the private keys that are to be had; raises KeyRequired where none was named, PgwalError."""
    file, command, _ = sources.resolved()
    if any(SECRET_PREFIX in str(each).upper() for each in (file, command)):
        # Everybody sees arguments, and a restored server would have it in its settings.
        raise WrongKey(
            "a private key was given in place of the file that holds it, or in the command that prints it",
            hint="Take it for known to others: replace it with another one. Name a file, or a command that asks what"
            " keeps the key.",
        )
    if file is not None:
        return _identities(_read_private(file), str(file))
    if command is not None:
        return _identities(_printed_by(command), "what the identity command printed")
    raise KeyRequired(
        "this needs the private key of a recipient, and none was given",
        hint="Name the file that holds it with --identity or PGWAL_IDENTITY, or a command that prints it with"
        " --identity-command.",
    )


def _read_private(path: Path) -> str:
    """Return the text of a file that nobody but its owner may read; raises PgwalError."""
    keep_out_of_core_files()
    try:
        with path.open("rb", buffering=0) as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & _OTHERS:
                raise WrongKey(
                    f"{path} can be read, or written, by others than its owner",
                    hint=f"chmod 600 {path}",
                    path=str(path),
                )
            pieces, size_bytes = [], 0
            while size_bytes <= _MOST_BYTES and (piece := file.read(_MOST_BYTES)):
                pieces.append(piece)
                size_bytes += len(piece)
    except OSError as error:
        raise KeyRequired(
            f"the key file {path} cannot be read: {os.strerror(error.errno or 0)}", path=str(path)
        ) from error
    if size_bytes > _MOST_BYTES:
        raise FormatError(f"{path} is larger than any key file", path=str(path))
    return b"".join(pieces).decode("ascii", "replace")


def _identities(text: str, place: str) -> list[Identity]:
    found = [Identity(line) for line in map(str.strip, text.splitlines()) if line.startswith(SECRET_PREFIX)]
    others = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith(("#", SECRET_PREFIX))]
    if not found or others:
        raise FormatError(
            f"{place} holds no identity of age, or something else beside it",
            hint=f"Such a file has a line {SECRET_PREFIX}...; an encrypted one is decrypted first:"
            " --identity-command 'age -d FILE'.",
        )
    return found


def _printed_by(command: str) -> str:
    """Run a command, by the shell, and return what it prints; what it says of errors goes where ours do."""
    keep_out_of_core_files()
    result = subprocess.run(command, shell=True, stdin=None, stdout=subprocess.PIPE, check=False)
    if result.returncode != 0:
        # Without the command, in which there may be what opens the door to the key.
        raise KeyRequired(f"the identity command ended with code {result.returncode}")
    return result.stdout[: _MOST_BYTES + 1].decode("ascii", "replace")


def create_private(path: Path, text: str) -> None:
    """Write a file of which nobody but its owner may read anything, over nothing, durably; raises PgwalError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            _sync_directory(path.parent)
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise
    except FileExistsError:
        raise PgwalError(
            f"{path} is there already, and stays as it is",
            hint="Remove it if nobody needs the key in it: everything encrypted with it is lost then.",
            path=str(path),
        ) from None
    except OSError as error:
        raise PgwalError(f"cannot write {path}: {os.strerror(error.errno or 0)}", path=str(path)) from error


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- the metadata key


def read_metadata_key(address: str, sources: KeySources, repository_id: str) -> bytes | None:
    """Return the metadata key of a repository, None where no file has it.

    Raises WrongKey for one of another repository, or that others may read; KeyRequired where a named file is missing.
    """
    path = metadata_key_path(address, sources)
    if sources.resolved().metadata_key_file is None and not os.path.exists(path):  # noqa: PTH110 (one that may be looked at)
        return None
    lines = [line for line in _read_private(path).splitlines() if line and not line.startswith("#")]
    match = _METADATA_LINE.fullmatch(lines[0]) if len(lines) == 1 else None
    if match is None:
        raise FormatError(f"{path} holds no metadata key", hint="Make it again: pgwal key metadata.", path=str(path))
    if match[1] != repository_id:
        raise WrongKey(
            f"{path} is the metadata key of repository {match[1]}, this is {repository_id}",
            hint="If another repository was made at this address on purpose, remove the file, and make it again: pgwal"
            " key metadata. If not, somebody has exchanged what is stored there.",
            path=str(path),
        )
    key = base64.b64decode(match[2])
    if len(key) != KEY_BYTES:
        raise FormatError(f"{path} holds no metadata key", path=str(path))
    return key


def write_metadata_key(path: Path, address: str, repository_id: str, key: bytes) -> None:
    """Write the file of a metadata key, over nothing; raises PgwalError."""
    create_private(
        path,
        f"# The metadata key of the pgwal repository in {address}.\n"
        f"PGWAL-METADATA-KEY-1 {repository_id} {base64.b64encode(key).decode()}\n",
    )


def require_not_older(address: str, repository_id: str, revision: int) -> None:
    """Raise WrongKey where this machine has seen a later revision of a repository's keys, and else remember this one.

    Keys of before may be for a recipient who was removed.
    """
    path = key_revision_path(address)
    seen = 0
    with suppress(OSError, ValueError):
        seen_id, number = path.read_text().split()
        seen = int(number) if seen_id == repository_id else 0
    if revision < seen:
        raise WrongKey(
            f"the keys of {address} are revision {revision}, this machine has seen revision {seen} of them",
            hint="Somebody has put back what was there before: bring the later keys back from a copy of the repository."
            f" If that was done on purpose, remove {path}.",
        )
    if revision > seen:
        new = path.with_name(f"{path.name}.{os.getpid()}.new")
        # Whoever has no place of its own, as a server's user may, goes without.
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            new.write_text(f"{repository_id} {revision}\n")
            new.replace(path)


def write_identity(path: Path, identity: Identity) -> None:
    """Write the file of a private key as age-keygen does, over nothing; raises PgwalError."""
    create_private(path, f"# public key: {identity.recipient}\n{identity.secret()}\n")
