"""How the C library deals with memory that is freed."""

import ctypes
import os

# Options of glibc's mallopt(3).
TRIM_THRESHOLD, MMAP_MAX = -1, -4
# What a user may have said of them.
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Has memory that is freed kept for what is allocated next, until the process ends; whether that was possible.

    Every update allocates and frees the same large tensors. By default glibc returns each of them to the system, which
    must clear its pages before it hands them out again: a third of the time of an update on a CPU. Other C libraries,
    and the environment variables of glibc, are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name in os.environ for name in VARIABLES):
        return False
    # All from the heap, which is never made smaller.
    return bool(mallopt(MMAP_MAX, 0)) and bool(mallopt(TRIM_THRESHOLD, -1))
