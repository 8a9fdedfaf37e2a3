"""An S3 server that is asked over TLS, which pgBackRest wants, with a certificate of its own that nobody checks."""

from __future__ import annotations

import secrets
import socket
import subprocess
from pathlib import Path

from pgwal_cli.throwaway_store import ThrowawayStore

BUCKET = "benchmark"
REGION = "us-east-1"


class SecureStore(ThrowawayStore):
    """A server whose data are in a directory, with a bucket in it; see ThrowawayStore."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "benchmark", secrets.token_hex(16))
        self._key, self._certificate = (self.directory / f"{name}.pem" for name in ("key", "certificate"))
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
             "-keyout", self._key, "-out", self._certificate],
            check=True, capture_output=True,
        )  # fmt: skip
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.secure_port: int = free.getsockname()[1]

    def arguments(self) -> list[str]:
        return [
            f"-s3.port.https={self.secure_port}",
            f"-s3.key.file={self._key}",
            f"-s3.cert.file={self._certificate}",
        ]

    def start(self) -> None:
        super().start()
        self.create_bucket(BUCKET)

    def secure_environment(self) -> dict[str, str]:
        """Return the variables with which pgwal finds this server, over TLS."""
        return self.environment() | {
            "AWS_ENDPOINT_URL": f"https://127.0.0.1:{self.secure_port}",
            "AWS_ALLOW_INVALID_CERTIFICATES": "true",
        }

    def pgbackrest_options(self) -> str:
        """Return the same as lines of pgBackRest's configuration."""
        variables = self.environment()
        return "\n".join(
            f"repo1-{name}={value}"
            for name, value in {
                "type": "s3",
                "path": "/pgbackrest",
                "s3-bucket": BUCKET,
                "s3-endpoint": "127.0.0.1",
                "s3-region": REGION,
                "s3-uri-style": "path",
                "s3-key": variables["AWS_ACCESS_KEY_ID"],
                "s3-key-secret": variables["AWS_SECRET_ACCESS_KEY"],
                "storage-host": "127.0.0.1",
                "storage-port": self.secure_port,
                "storage-verify-tls": "n",
            }.items()
        )
