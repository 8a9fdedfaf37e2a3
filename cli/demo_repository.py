"""Where the repository of ``pgwal demo`` lies: in its directory, or in an object store that is started for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

_BUCKET = "demo"


class DemoRepository(Enum):
    """What the demo has its repository in."""

    DIRECTORY = "directory"
    S3 = "s3"


@contextmanager
def opened_repository(kind: DemoRepository, directory: Path) -> Iterator[str]:
    """Give the address of a repository below a directory, which is not made yet.

    While the context lasts, processes that are started find its store by this one's environment, whatever store that
    led to before.  Raises PgwalError where there is no S3 server to be started.
    """
    if kind is DemoRepository.DIRECTORY:
        yield str(directory / "repository")
        return
    # Not above: with what it brings along it is a part of each start of the command line.
    import secrets

    from pgwal_cli.throwaway_store import ThrowawayStore

    with ThrowawayStore(directory / "store", "pgwal-demo", secrets.token_hex(16)) as store:
        store.create_bucket(_BUCKET)
        before = dict(os.environ)
        for name in [name for name in before if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(store.environment(), NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
        os.environ["PGWAL_SPOOL"] = str(directory / "spool")
        try:
            yield f"s3://{_BUCKET}/repository"
        finally:
            os.environ.clear()
            os.environ.update(before)
