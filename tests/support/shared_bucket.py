"""A bucket of a real S3 server, which all tests of a process share: each has a prefix of its own there."""

from __future__ import annotations

import secrets
import shutil
import signal
import tempfile
from functools import cache
from pathlib import Path

from obstore.store import S3Store
from support.seaweedfs import SeaweedFS

from pgwal.repository.cloud_place import CloudPlace

BUCKET = "pgwal-tests"


class SharedBucket:
    """A server, and a bucket in it."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="seaweedfs-"))
        self.server = SeaweedFS(self._directory)
        self.server.start()
        self.server.create_bucket(BUCKET)

    def place(self, bucket: str = BUCKET) -> CloudPlace:
        """Return a place where nothing is."""
        prefix = secrets.token_hex(8)
        config = {name.lower(): value for name, value in self.server.environment().items()}
        client = S3Store(bucket, prefix=prefix, config=config, retry_config={"max_retries": 2})  # type: ignore[arg-type]
        return CloudPlace(f"s3://{bucket}/{prefix}", client)

    def stop(self) -> None:
        self.server.stop(signal.SIGKILL)
        shutil.rmtree(self._directory)


@cache
def shared_bucket() -> SharedBucket:
    """Return it, and start its server when it is asked for first; ``stop_shared_bucket`` ends it."""
    return SharedBucket()


def stop_shared_bucket() -> None:
    """Stop the server, if it was started."""
    if shared_bucket.cache_info().currsize:
        shared_bucket().stop()
        shared_bucket.cache_clear()
