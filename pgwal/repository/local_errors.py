"""What a local file system refuses, as errors of pgwal."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgwal.errors import ObjectExists, ObjectNotFound, RepositoryError, StorageFull
from pgwal.repository.beneath import NO_FILE

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEXTS = {
    errno.ELOOP: "it is a symbolic link, or leads through one",
    NO_FILE: "it is not a regular file",
}
_HINTS = {
    **dict.fromkeys(_FULL, "Free some space; WAL that was reported as received is safe."),
    errno.EROFS: "The repository needs a file system that can be written.",
    errno.EACCES: "Run pgwal as the user that owns the repository, in a directory that this user may write to.",
    errno.ELOOP: "Links in a repository are not followed: put what it leads to in its place; mount a disk there.",
    NO_FILE: "Move it away.",
    errno.EMFILE: "Use fewer jobs (-j), or raise the limit (ulimit -n).",
}


@contextmanager
def translated_errors(action: str, path: Path) -> Iterator[None]:
    """Turn what the file system refuses into kinds of RepositoryError, with path and way out.

    They are ObjectNotFound, ObjectExists and StorageFull where that is what they say.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectNotFound(f"cannot {action} {path}: it does not exist", path=str(path)) from error
    except FileExistsError as error:
        raise ObjectExists(f"cannot {action} {path}: it is there already", path=str(path)) from error
    except OSError as error:
        raise refused(action, path, error) from error


def refused(action: str, path: Path, error: OSError) -> RepositoryError:
    """Return the error that says what the file system refused."""
    number = error.errno or 0
    kind = StorageFull if number in _FULL else RepositoryError
    text = _TEXTS.get(number, os.strerror(number))
    return kind(f"cannot {action} {path}: {text}", hint=_HINTS.get(number), path=str(path))
