"""What a restore leaves first in a directory and takes away last: whose files are going to be there, and where else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from pgwal.control_file import CONTROL_FILE_SIZE, ControlFile
from pgwal.errors import FormatError

MOST_MARK_BYTES = 1 << 20
"""No mark is longer: a path has at most a few thousand bytes."""
_MOST_DIGITS = 20
"""Those of a number of 64 bits."""


class IncompleteMark(NamedTuple):
    """The mark of a directory that is being filled with a backup of a cluster.

    ``tablespaces`` are the directories, by OID, that are filled beside it: before they were, each was empty, or the
    tablespace of a cluster with this system identifier.  In their paths, bytes that are not UTF-8 are surrogates.
    """

    system_identifier: int
    tablespaces: Mapping[int, str]

    def encode(self, backup_id: str) -> bytes:
        """Return the mark: a line for people, and a line of JSON."""
        document = {
            "system_identifier": str(self.system_identifier),
            "tablespaces": {str(oid): path for oid, path in sorted(self.tablespaces.items())},
        }
        return f"pgwal: backup {backup_id} is not all here\n{json.dumps(document)}\n".encode()

    @classmethod
    def decode(cls, content: bytes) -> IncompleteMark:
        """Parse a mark, or pg_control, which a mark becomes at last; raises FormatError for anything else."""
        if len(content) == CONTROL_FILE_SIZE:
            return cls(ControlFile.decode(content).system_identifier, {})
        try:
            _, document, end = content.decode("ascii").split("\n")
            members = json.loads(document)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"not the mark of a restore: {error}") from error
        if end or not isinstance(members, dict) or members.keys() != {"system_identifier", "tablespaces"}:
            raise FormatError("not the mark of a restore: other members")
        return cls(_number(members["system_identifier"]), _tablespaces(members["tablespaces"]))


def _tablespaces(value: Any) -> dict[int, str]:
    if not isinstance(value, dict) or not all(isinstance(path, str) for path in value.values()):
        raise FormatError("not the mark of a restore: its tablespaces have no paths")
    return {_number(oid): path for oid, path in value.items()}


def _number(text: Any) -> int:
    if not isinstance(text, str) or not text.isascii() or not text.isdecimal() or len(text) > _MOST_DIGITS:
        raise FormatError(f"not the mark of a restore: {text!r} is no number")
    return int(text)
