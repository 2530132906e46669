"""Freed memory is kept for the next step, where that can be set."""

import ctypes
import os
import subprocess
import sys

import pytest

# 20 MiB are asked for and freed 20 times over; pages that the system had to hand out are counted after the first.
COUNT = """
import ctypes, resource, sys
from vimlearn.training import memory
if sys.argv[1] == "keep":
    assert memory.keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
size = 20 * 2**20
for turn in range(20):
    block, small = libc.malloc(size), libc.malloc(40 * 2**20)
    ctypes.memset(block, 1, size)
    libc.free(small)
    libc.free(block)
    if turn == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(mode: str) -> int:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    run = subprocess.run([sys.executable, "-c", COUNT, mode], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None) if sys.platform == "linux" else None, "gnu_get_libc_version"),
                    reason="the C library is not glibc")
def test_freed_memory_is_not_handed_out_page_by_page_again():
    assert pages("keep") < 200 < pages("plain")
