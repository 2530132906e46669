"""Memory that a training step frees and the next one asks for again.

The C library of Linux gives large freed blocks back to the system, which hands them out again page by page, each page
filled with zeros. A step of a small network frees and asks for hundreds of megabytes, so that can take a tenth of the
time on a CPU.
"""

__all__ = ["keep_freed_memory"]

import contextlib
import ctypes
import os
import sys

# Numbers of <malloc.h>.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
# The largest that the C library takes for each.
LARGEST_TRIM, LARGEST_MMAP = 2**31 - 1, 2**25


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for its next use; return whether that could be set.

    It can with glibc. Elsewhere nothing changes, and neither does it where the user has set a MALLOC_ variable.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(TRIM_THRESHOLD, LARGEST_TRIM) and mallopt(MMAP_THRESHOLD, LARGEST_MMAP))
    return False
