"""Leases in an object store of a process that dies: nobody gives them back, and others see that it has ended."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache

from support.fate import Fate

from pgwal.errors import ObjectNotFound
from pgwal.repository.cloud_leases import CloudLeases
from pgwal.repository.cloud_place import CloudPlace
from pgwal.repository.lease_process import Process, has_ended


class MortalLeases(CloudLeases):
    """Those of a process with a fate; when it has died they name one that has, as if it had been that."""

    def __init__(self, place: CloudPlace, fate: Fate) -> None:
        super().__init__(place.client, place.address)
        self._fate = fate

    def _ending(self, action: Callable[[], None]) -> None:  # type: ignore[override]
        if not self._fate.is_dying:
            super()._ending(action)
            return
        lease = action.__self__  # type: ignore[attr-defined]
        with suppress(ObjectNotFound):
            found = self._objects.read(lease.name)
            if found.token == lease._token:
                left = json.dumps(json.loads(found.content) | {"process": _ended_process()}).encode()
                self._objects.swap(lease.name, left, found.version)


@cache
def _ended_process() -> Process:
    """Return what a process of this machine has said of itself that is no more."""
    source = "from pgwal.repository.lease_process import this_process; import json; print(json.dumps(this_process()))"
    said = subprocess.run([sys.executable, "-c", source], capture_output=True, check=True).stdout
    ended: Process = json.loads(said)
    assert has_ended(ended)
    return ended


def mortal(place: CloudPlace, fate: Fate) -> CloudPlace:
    """Return a place as another process has it, of which this is the fate."""
    own = CloudPlace(place.address, place.client)
    own.__dict__["leases"] = MortalLeases(place, fate)
    return own
