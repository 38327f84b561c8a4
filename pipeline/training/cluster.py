"""Several processes that train one model (`--train.strategy multi_worker`): how they meet, who writes, how all agree,
and what happens when one of them is gone.

Each process sees the same rows and the same run directory on a shared file system; the chief alone writes there.
TensorFlow notices a process that is gone: at once where its connection broke, else by its missing heartbeats, after
about ten seconds. The calls of all others then fail, and `watched` says so in one line.
"""

import functools
import json
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.errors import CANNOT_WRITE, UNAVAILABLE, USAGE, UserError, storage_failure

LIMIT = 64 * 1024  # bytes of text that the processes can agree on at once

log = logging.getLogger(__name__)


def place(tf_config: str) -> tuple[dict[str, str], str]:
    """What TF_CONFIG says: {"worker:0": "host:port", …}, the chief first, and which of them this process is.

    The chief is the task `chief`, where there is one, or else worker 0. Raises UserError(USAGE) with what is wrong.
    """
    example = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
    try:
        document = json.loads(tf_config)
        jobs, task = document["cluster"], document["task"]
        me = f"{task['type']}:{int(task['index'])}"
        addresses = {f"{job}:{i}": host for job in ("chief", "worker") for i, host in enumerate(jobs.get(job, []))}
    except (ValueError, KeyError, TypeError, AttributeError):
        what = "does not say" if tf_config else "is not set: it must say"
        raise UserError(
            f"--train.strategy multi_worker: TF_CONFIG {what} who takes part, like {example}; `minibatch launch` "
            "sets it for processes on this machine.",
            USAGE,
        ) from None
    if others := sorted({*jobs} - {"chief", "worker"}):
        raise UserError(
            f"TF_CONFIG has tasks {', '.join(map(repr, others))}: only 'chief' and 'worker' take part here.", USAGE
        )
    wrong = [host for host in addresses.values() if not re.fullmatch(r"[^\s:/]+:[0-9]{1,5}", str(host))]
    if wrong or len(set(addresses.values())) < len(addresses):
        raise UserError(
            f"TF_CONFIG: give each task a host:port of its own, not {wrong or [*addresses.values()]}.", USAGE
        )
    if me not in addresses:
        raise UserError(f"TF_CONFIG: task {me} is none of the cluster's {', '.join(addresses) or 'none'}.", USAGE)
    return addresses, me


def join(addresses: dict[str, str], me: str, seconds: float) -> None:
    """Returns when every process of the cluster answers at its address; listens at its own meanwhile.

    Raises UserError(UNAVAILABLE) naming those that do not within `seconds`. TensorFlow's own waiting is an hour long,
    says nothing and ends for no signal.
    """
    host, port = addresses[me].split(":")
    loopback = host == "localhost" or host.startswith("127.")
    missing = {name: address for name, address in addresses.items() if name != me}
    begin = time.monotonic()
    said = False
    try:
        listener = socket.create_server((host if loopback else "", int(port)), backlog=len(addresses) + 8)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(
            f"{_named(me, addresses)}: cannot listen there ({error}); free the port.", UNAVAILABLE
        ) from None
    with listener:
        while missing := {name: address for name, address in missing.items() if not _answers(address)}:
            waited = time.monotonic() - begin
            names = "; ".join(_named(name, addresses) for name in missing)
            if waited > seconds:
                raise UserError(f"{names}: not there after {seconds:.0f} s; start all workers.", UNAVAILABLE)
            if waited > 10 and not said:
                log.info("waiting for %s", names)
                said = True
            time.sleep(0.2)


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
    said: dict[str, Any] = {}
    if is_chief(strategy):
        try:
            said = {"text": decide()}
        except Exception as raised:
            error = raised
            line = " ".join(str(raised).splitlines()) or type(raised).__name__
            code = CANNOT_WRITE if storage_failure(raised) else UNAVAILABLE  # what nobody foresaw may pass
            said = {"error": line[: LIMIT // 8], "code": raised.code if isinstance(raised, UserError) else code}
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
    return bool(_sum(strategy, np.array(flag, np.float32)) > 0)


@contextmanager
def watched(strategy: tf.distribute.Strategy, step: Callable[[], int] | None = None) -> Iterator[None]:
    """Around calls that all processes take part in: when one of them is gone, raises UserError(UNAVAILABLE) that says
    which, and after which update (`step`)."""
    try:
        yield
    except tf.errors.OpError as error:
        lost = (tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError)
        if not several(strategy) or not (isinstance(error, lost) or "Collective ops is aborted" in error.message):
            raise
        when = "" if step is None else f"after update {step()}"
        raise gone(_addresses(strategy), error, when) from None


def gone(addresses: dict[str, str], error: tf.errors.OpError, when: str) -> UserError:
    """What TensorFlow's `error` means to the user. It names the process in one of two ways, the more certain first."""
    message = error.message or ""
    named = re.search(r"unhealthy[^/]*/job:(\w+)/replica:\d+/task:(\d+)", message) or re.search(
        r"remote target /job:(\w+)/replica:\d+/task:(\d+)", message
    )
    who = _named(f"{named[1]}:{named[2]}", addresses) if named else "another worker"
    return UserError(
        f"{who} is gone{when and f' {when}'}; see what it said last. Start all workers again with the same command: "
        "the run goes on from its last checkpoint.",
        UNAVAILABLE,
    )


def _named(task: str, addresses: dict[str, str]) -> str:
    return f"{task.replace(':', ' ')} at {addresses.get(task, 'an unknown address')}"


def _addresses(strategy: tf.distribute.Strategy) -> dict[str, str]:
    """{"worker:0": "host:port", …}, the chief first; empty without a cluster."""
    cluster = strategy.cluster_resolver.cluster_spec().as_dict()
    return {f"{job}:{i}": host for job in ("chief", "worker") for i, host in enumerate(cluster.get(job, []))}


def _answers(address: str) -> bool:
    host, port = address.split(":")
    with suppress(OSError, UnicodeError), socket.create_connection((host, int(port)), timeout=1):
        return True
    return False


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
    with watched(strategy):
        return strategy.experimental_local_results(_summing(strategy)(tf.constant(mine)))[0].numpy()


@functools.cache
def _summing(strategy: tf.distribute.Strategy) -> Callable:
    local = strategy.num_replicas_in_sync // len(_addresses(strategy))

    def add(mine: tf.Tensor) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        # one replica speaks for its process
        share = tf.where(context.replica_id_in_sync_group % local == 0, mine, tf.zeros_like(mine))
        return context.all_reduce(tf.distribute.ReduceOp.SUM, share)

    return tf.function(lambda mine: strategy.run(add, args=(mine,)))
