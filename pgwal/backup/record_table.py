"""Records of one form by keys of 16 bytes, in little more memory than they have bytes."""

from __future__ import annotations

import struct
from typing import Any

_BUCKET_COUNT = 4096
_KEY_SIZE = 16


class RecordTable:
    """Looks up what was added under a key: a digest, of which no two are equal.  ``form`` is that of ``struct``."""

    def __init__(self, form: str) -> None:
        self._form = struct.Struct(form)
        self._buckets: dict[int, bytearray] = {}

    def add(self, key: bytes, *values: Any) -> None:
        """Add a record."""
        self._buckets.setdefault(_bucket_number(key), bytearray()).extend(key + self._form.pack(*values))

    def find(self, key: bytes) -> tuple[Any, ...] | None:
        """Return the values of a record, None when there is none."""
        bucket = self._buckets.get(_bucket_number(key), b"")
        at = bucket.find(key)
        while at >= 0:
            if at % (_KEY_SIZE + self._form.size) == 0:
                return self._form.unpack_from(bucket, at + _KEY_SIZE)
            at = bucket.find(key, at + 1)
        return None


def _bucket_number(key: bytes) -> int:
    return int.from_bytes(key[:2], "little") % _BUCKET_COUNT
