"""Requests to an S3 server that no object is stored or read by: signed as AWS Signature Version 4 wants it."""

from __future__ import annotations

import hashlib
import hmac
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

_REGION = "us-east-1"


def signed_request(
    method: str, url: str, body: bytes, headers: Mapping[str, str], access_key: str, secret_key: str
) -> urllib.request.Request:
    """Return a request for a server of the region us-east-1; ``url`` may have a query."""
    parts = urlsplit(url)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    digest = hashlib.sha256(body).hexdigest()
    signed = {**headers, "host": parts.netloc, "x-amz-content-sha256": digest, "x-amz-date": stamp}
    names = ";".join(sorted(signed))
    query = "&".join(sorted(item if "=" in item else f"{item}=" for item in parts.query.split("&") if item))
    lines = [
        method,
        quote(parts.path),
        query,
        *(f"{name}:{signed[name]}" for name in sorted(signed)),
        "",
        names,
        digest,
    ]
    scope = f"{stamp[:8]}/{_REGION}/s3/aws4_request"
    to_sign = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256("\n".join(lines).encode()).hexdigest()))
    key = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.new(key, to_sign.encode(), "sha256").hexdigest()
    authorization = f"AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    return urllib.request.Request(url, data=body, method=method, headers={**signed, "Authorization": authorization})
