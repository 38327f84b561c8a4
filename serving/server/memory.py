"""Memory: what an unloaded version held goes back to the system."""

import ctypes
import gc


def settle() -> None:
    """Before the first load: what was imported is garbage never, and later collections need not look at it.

    Without this a full collection stops every thread for a quarter of a second; with it for milliseconds.
    """
    gc.collect()
    gc.freeze()


def give_back() -> None:
    """After an unload: a tf.Graph is a knot of references, and glibc keeps what was freed."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim:
        trim(0)
