"""A request that was read: what to run, and how to write the answer.

Every method of both protocols is a function `read(servable, request) -> Call`, so whatever runs calls (a worker thread,
a batch of several) knows nothing of methods, protocols or messages.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Call(NamedTuple):
    feeds: Mapping[str, np.ndarray]  # by tensor name, such as "serving_default_x:0"
    fetches: tuple[str, ...]  # tensor names
    write: Callable[[list[np.ndarray]], Any]  # values in the order of `fetches` to the answer; raises RequestError
    api: str = "Predict"  # as the metrics name it; "" is not timed
