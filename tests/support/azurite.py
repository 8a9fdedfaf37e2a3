"""Azure's blob storage as its emulator speaks it, Azurite, on 127.0.0.1; it comes from npm, and has to be named.

``PGWAL_AZURITE`` is its program ``azurite-blob``: ``npm install azurite`` leaves it in ``node_modules/.bin``.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from obstore.store import AzureStore

from pgwal.repository.cloud_place import CloudPlace

PROGRAM = os.environ.get("PGWAL_AZURITE")
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Both are the emulator's own, and known to everybody."""
CONTAINER = "pgwal-tests"
_START_S = 60.0


class Azurite:
    """A server, and a container in it."""

    def __init__(self, program: str) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="azurite-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        self._process = subprocess.Popen(
            [
                program, "--silent", "--disableTelemetry", "--skipApiVersionCheck",
                "--location", str(self._directory), "--blobPort", str(port),
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            self._await_container()
        except BaseException:
            self.stop()
            raise

    def _await_container(self) -> None:
        deadline_s = time.monotonic() + _START_S
        while True:
            try:
                self._create_container()
            except urllib.error.HTTPError:
                raise
            except OSError:
                assert self._process.poll() is None
                assert time.monotonic() < deadline_s
                time.sleep(0.1)
            else:
                return

    def _create_container(self) -> None:
        """Ask for it as "Authorize with Shared Key" of the manual has it."""
        date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        headers = {"x-ms-date": date, "x-ms-version": "2021-12-02"}
        named = "".join(f"{name}:{value}\n" for name, value in headers.items())
        to_sign = f"PUT\n\n\n\n\n\n\n\n\n\n\n\n{named}/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
        signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), to_sign.encode(), hashlib.sha256)).decode()
        request = urllib.request.Request(
            f"{self.endpoint}/{CONTAINER}?restype=container",
            method="PUT",
            headers=headers | {"Authorization": f"SharedKey {ACCOUNT}:{signature}", "Content-Length": "0"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open(request, timeout=10).close()

    def place(self) -> CloudPlace:
        """Return a place where nothing is."""
        prefix = secrets.token_hex(8)
        client = AzureStore(
            CONTAINER,
            prefix=prefix,
            config={"account_name": ACCOUNT, "account_key": KEY, "endpoint": self.endpoint},
            client_options={"allow_http": True},
            retry_config={"max_retries": 2},
        )
        return CloudPlace(f"az://{CONTAINER}/{prefix}", client)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)


@cache
def shared_azurite() -> Azurite:
    """Return it, and start it when it is asked for first; ``stop_shared_azurite`` ends it."""
    assert PROGRAM is not None
    return Azurite(PROGRAM)


def stop_shared_azurite() -> None:
    """Stop it, if it was started."""
    if shared_azurite.cache_info().currsize:
        shared_azurite().stop()
        shared_azurite.cache_clear()
