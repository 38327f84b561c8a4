"""What a SavedModel does in a process of its own on the server's core, called in the quickest way that Python has.

python inprocess.py MODEL SECONDS BATCH… <VALUES.json, which holds a list of values for each input (bytes as Latin-1)
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from machine import SERVER_CORE


def times(model: Path, values: Mapping[str, Sequence], sizes: Sequence[int], seconds: float) -> dict[int, list]:
    """[seconds, CPU seconds] of each call of `serving_default`, by the number of examples in it, which take turns."""
    command = ["taskset", "-c", str(SERVER_CORE), sys.executable, __file__, str(model), str(seconds), *map(str, sizes)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    written = json.dumps({name: list(column) for name, column in values.items()})
    told = subprocess.run(command, input=written, capture_output=True, text=True, check=True, env=environment).stdout
    return {int(size): spent for size, spent in json.loads(told).items()}


def _measure(model: str, seconds: float, sizes: list[int], values: dict[str, list]) -> dict[int, list]:
    import numpy as np
    import tensorflow as tf

    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        loaded = tf.compat.v1.saved_model.load(session, [tf.saved_model.SERVING], model)
        signature = loaded.signature_def["serving_default"]
        names = sorted(signature.inputs)
        fetches = [output.name for _, output in sorted(signature.outputs.items())]
        call = session.make_callable(fetches, [signature.inputs[name].name for name in names])
        kinds = {name: tf.as_dtype(signature.inputs[name].dtype).as_numpy_dtype for name in names}
        columns = {name: [v.encode("latin-1") if isinstance(v, str) else v for v in values[name]] for name in names}

        def batch(at: int, size: int) -> list[np.ndarray]:
            picked = [(at + i) % len(columns[names[0]]) for i in range(size)]
            return [np.array([columns[name][i] for i in picked], kinds[name]) for name in names]

        batches = {size: [batch(turn * size, size) for turn in range(8)] for size in sizes}
        spent: dict[int, list] = {size: [] for size in sizes}
        for size in sizes * 2:
            call(*batches[size][0])
        end, turn = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            for size in sizes:
                start, cpu = time.perf_counter(), time.process_time()
                call(*batches[size][turn % 8])
                spent[size].append((time.perf_counter() - start, time.process_time() - cpu))
            turn += 1
        return spent


if __name__ == "__main__":
    model, seconds, *sizes = sys.argv[1:]
    print(json.dumps(_measure(model, float(seconds), list(map(int, sizes)), json.load(sys.stdin))))
