"""What freeing memory costs a process that receives large messages, or reads large files."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_MESSAGES = 2000
_SIZES = {"message": 131_097, "piece of a file": 1 << 20}
_RECEIVING = """
import resource
from pgwal_cli.allocator import keep_freed_memory
if {keeps}:
    keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
waiting = []
for _ in range({messages}):
    waiting.append(bytes({size})[25:])
    if len(waiting) == 8:
        waiting.clear()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize("size", _SIZES.values(), ids=_SIZES.keys())
def test_memory_is_used_for_what_comes_next(size: int) -> None:
    # Eight wait at a time; zeroed once, their pages stay.
    kept_pages = 2 * 8 * size // 4096
    assert page_faults(size, keeps=True) < _MESSAGES + kept_pages < page_faults(size, keeps=False)


def page_faults(size: int, *, keeps: bool) -> int:
    script = _RECEIVING.format(keeps=keeps, size=size, messages=_MESSAGES)
    return int(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)
