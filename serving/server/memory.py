"""Memory: what an unloaded version or a large request held goes back to the system."""

import ctypes
import gc

_YOUNG_OBJECTS = 20_000  # made between two collections, each of half a millisecond; Python's 700 are ten requests
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT_BYTES = 2**24  # free at the end of each of glibc's arenas, which would otherwise grow with the largest request


def settle() -> None:
    """Before the first load: what was imported is garbage never, and later collections need not look at it.

    Without this a full collection stops every thread for a quarter of a second; with it for milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's own
    if mallopt:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)


def give_back() -> None:
    """After an unload: a tf.Graph is a knot of references, and glibc keeps what was freed."""
    gc.collect()
    trim()


def trim() -> None:
    """What was freed goes back to the system."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if malloc_trim:
        malloc_trim(0)
