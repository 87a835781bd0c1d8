"""Memory of this process: what the C library does with arrays that are given back."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # names and numbers of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next array; returns whether it can be told so.

    By default glibc hands large arrays back to the kernel and gets new, empty pages for the next
    step: a training step of a small network on a CPU then spends up to a sixth of its time on
    page faults. The process keeps its peak memory until it ends. This changes the whole process,
    so commands and workers call it, not `train()`. Without glibc it does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, -1)) and bool(mallopt(M_MMAP_MAX, 0))
