"""Several processes that train one model (`--train.strategy multi_worker`): who writes, and how all agree.

Each process sees the same rows and the same run directory on a shared file system; the chief alone writes there.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import tensorflow as tf

from pipeline.errors import CANNOT_WRITE, DATA, UNAVAILABLE, UserError, storage_failure

LIMIT = 64 * 1024  # bytes of text that the processes can agree on at once


def several(strategy: tf.distribute.Strategy) -> bool:
    """Whether other processes run the same program and take part in each update."""
    workers = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return workers and len(_addresses(strategy)) > 1


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes; so it is wherever there is only one."""
    if not several(strategy):
        return True
    resolver = strategy.cluster_resolver
    return f"{resolver.task_type}:{resolver.task_id}" == next(iter(_addresses(strategy)))


def agreed(strategy: tf.distribute.Strategy, decide: Callable[[], str]) -> str:
    """What `decide` returned to the chief, in every process; all have to call this at the same place.

    When it raises, the chief raises its error and the others a UserError with the same message and code, so that nobody
    waits for a process that has left. With one process it is `decide()`.
    """
    if not several(strategy):
        return decide()
    error: Exception | None = None
    said = {}
    if is_chief(strategy):
        try:
            said = {"text": decide()}
        except Exception as raised:
            error = raised
            lines = str(raised).splitlines() or [type(raised).__name__]
            failure = CANNOT_WRITE if storage_failure(raised) else DATA
            said = {"error": lines[0][: LIMIT // 8], "code": getattr(raised, "code", failure)}
    heard = json.loads(_spread(strategy, json.dumps(said).encode()))
    if error is not None:
        raise error
    if "error" in heard:
        raise UserError(heard["error"], heard["code"])
    return heard["text"]


def anyone(strategy: tf.distribute.Strategy, flag: bool) -> bool:
    """Whether `flag` is set in any process; all have to call this at the same place."""
    if not several(strategy):
        return flag
    return bool(_sum(strategy, np.float32(flag)) > 0)


@contextmanager
def watched(strategy: tf.distribute.Strategy, step: Callable[[], int]) -> Iterator[None]:
    """Around calls that all processes take part in: when one of them is gone, raises UserError(UNAVAILABLE) that says
    which, and after which update (`step`)."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError) as error:
        if not several(strategy):
            raise
        raise UserError(
            f"a worker is gone after update {step()}: {error.message.splitlines()[0]}", UNAVAILABLE
        ) from None


def _addresses(strategy: tf.distribute.Strategy) -> dict[str, str]:
    """{"worker:0": "host:port", …}, the chief first; empty without a cluster."""
    cluster = strategy.cluster_resolver.cluster_spec().as_dict()
    return {f"{job}:{i}": host for job in ("chief", "worker") for i, host in enumerate(cluster.get(job, []))}


def _spread(strategy: tf.distribute.Strategy, data: bytes) -> bytes:
    """The chief's `data`, which has no zero byte, in every process: the others add zeros to it."""
    if len(data) > LIMIT:
        raise ValueError(f"{len(data)} bytes are more than the processes can agree on ({LIMIT})")
    mine = np.zeros(LIMIT, np.float32)  # float32 holds a byte exactly, and every device can add it
    if is_chief(strategy):
        mine[: len(data)] = np.frombuffer(data, np.uint8)
    return _sum(strategy, mine).astype(np.uint8).tobytes().rstrip(b"\0")


def _sum(strategy: tf.distribute.Strategy, mine: np.ndarray) -> np.ndarray:
    """The sum of each process's array."""

    def add() -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        local = context.replica_id_in_sync_group % (strategy.num_replicas_in_sync // len(_addresses(strategy)))
        share = tf.where(local == 0, mine, 0.0)  # one replica speaks for its process
        return context.all_reduce(tf.distribute.ReduceOp.SUM, share)

    return strategy.experimental_local_results(strategy.run(tf.function(add)))[0].numpy()
