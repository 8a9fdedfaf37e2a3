"""What freeing memory costs a process that receives large messages, or reads large files in pieces."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_MESSAGES = 2000
_PAGE_SIZE = 4096
_START = """
import resource
import threading
from pgwal_cli.allocator import {how} as keep
if {keeps}:
    keep()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
"""
_RECEIVING = f"""
waiting = []
for _ in range({_MESSAGES}):
    waiting.append(bytes({{size}})[25:])
    if len(waiting) == 8:
        waiting.clear()
"""
_THREADS = 8
_IN_TURN = f"""
def fill():
    for turn in range({_THREADS}):
        barrier.wait()
        if turn == threads.index(threading.current_thread()):
            list(map(b"x".__mul__, [{{size}}] * 8))

barrier = threading.Barrier({_THREADS})
threads = [threading.Thread(target=fill) for _ in range({_THREADS})]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""
_END = """
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_of_a_message_is_used_for_the_next_one() -> None:
    assert page_faults(131_097, keeps=True) < _MESSAGES < page_faults(131_097, keeps=False)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_of_a_piece_of_a_file_is_used_for_the_next_one() -> None:
    size = 1 << 20
    # Those of eight that wait, with their copies, are zeroed once.
    once = 2 * 8 * size // _PAGE_SIZE
    assert page_faults(size, keeps=True) < _MESSAGES + once < page_faults(size, keeps=False)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_that_one_thread_frees_is_used_by_the_next_one() -> None:
    size = 1 << 20
    once = 8 * size // _PAGE_SIZE
    # Some pages may be there already.
    assert 0.9 * once < page_faults(size, _IN_TURN, keeps=True) < 2 * once
    assert page_faults(size, _IN_TURN, keeps=False) > 4 * once


def page_faults(size: int, work: str = _RECEIVING, *, keeps: bool) -> int:
    how = "share_freed_memory" if work == _IN_TURN else "keep_freed_memory"
    script = "".join(part.format(keeps=keeps, size=size, how=how) for part in (_START, work, _END))
    return int(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout)
