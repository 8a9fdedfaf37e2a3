"""What freeing memory costs a process that receives large messages."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_MESSAGES = 2000
_RECEIVING = f"""
import resource
from pgwal_cli.allocator import keep_freed_memory
if {{keeps}}:
    keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
waiting = []
for _ in range({_MESSAGES}):
    waiting.append(bytes(131_097)[25:])
    if len(waiting) == 8:
        waiting.clear()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_of_a_message_is_used_for_the_next_one() -> None:
    assert page_faults(keeps=True) < _MESSAGES < page_faults(keeps=False)


def page_faults(*, keeps: bool) -> int:
    script = _RECEIVING.format(keeps=keeps)
    return int(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)
