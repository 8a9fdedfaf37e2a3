"""The S3 server of the tests: with further users, buckets that are locked, and a look at versions."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pgwal_cli.throwaway_store import ThrowawayStore

ACCESS_KEY, SECRET_KEY = "pgwal-test", "pgwal-test-secret"


class SeaweedFS(ThrowawayStore):
    """A server whose data are in a directory; ``identities`` are further users: name to secret key and actions.

    ``policies`` are some more, by name: what each may do, as Amazon writes it.  Their secret key is ``policy_secret``.
    """

    def __init__(
        self,
        directory: Path,
        identities: Mapping[str, tuple[str, Sequence[str]]] | None = None,
        policies: Mapping[str, str] | None = None,
    ) -> None:
        self._identities = identities or {}
        self._policies = policies or {}
        super().__init__(directory, ACCESS_KEY, SECRET_KEY)

    @staticmethod
    def policy_secret(name: str) -> str:
        return f"secret-of-{name}"

    def configuration(self) -> dict[str, Any]:
        found = super().configuration()
        for name, (secret_key, actions) in self._identities.items():
            found["identities"].append(self.identity(name, secret_key, actions=list(actions)))
        for name in self._policies:
            found["identities"].append(self.identity(name, self.policy_secret(name), actions=[], policyNames=[name]))
        return found | {"policies": [{"name": name, "content": text} for name, text in self._policies.items()]}

    def create_bucket(self, name: str, *, retention_days: int = 0) -> None:
        """Make a bucket, which may be there already; with a retention, each object in it is locked for so long."""
        if not retention_days:
            super().create_bucket(name)
            return
        self.request("PUT", f"/{name}", headers={"x-amz-bucket-object-lock-enabled": "true"})
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


@contextlib.contextmanager
def running(directory: Path, **options: Any) -> Iterator[SeaweedFS]:
    """Give a server that runs."""
    with SeaweedFS(directory, **options) as server:
        yield server
