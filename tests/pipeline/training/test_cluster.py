"""Claims about several processes: reading TF_CONFIG, meeting, agreeing, and naming the one that is gone."""

import json
import re
import socket
import threading
from types import SimpleNamespace

import pytest
import tensorflow as tf

from pipeline.errors import CANNOT_WRITE, UNAVAILABLE, USAGE, UserError
from pipeline.launch import ports
from pipeline.training import cluster

TWO = {"worker": ["a:1", "b:2"]}
ADDRESSES = {"worker:0": "a:1", "worker:1": "b:2"}


def tf_config(jobs=TWO, kind="worker", index=0) -> str:
    return json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}})


@pytest.mark.parametrize(
    ("text", "addresses", "me"),
    [
        (tf_config(), ADDRESSES, "worker:0"),
        (tf_config(index="1"), ADDRESSES, "worker:1"),  # Kubernetes puts numbers in as text
        (
            tf_config({"worker": ["b:2"], "chief": ["a:1"]}, "chief"),
            {"chief:0": "a:1", "worker:0": "b:2"},
            "chief:0",
        ),
    ],
)
def test_tf_config_says_who_takes_part_the_chief_first(text, addresses, me):
    found, mine = cluster.place(text)
    assert (list(found.items()), mine) == (list(addresses.items()), me)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "TF_CONFIG is not set"),
        ("{", "TF_CONFIG does not say"),
        ("[]", "TF_CONFIG does not say"),
        ('{"cluster": {}}', "TF_CONFIG does not say"),
        ('{"cluster": [], "task": {"type": "worker", "index": 0}}', "TF_CONFIG does not say"),
        (tf_config(index="first"), "TF_CONFIG does not say"),
        (tf_config(index=2), "task worker:2 is none of the cluster's worker:0, worker:1"),
        (tf_config({}), "task worker:0 is none of the cluster's none"),
        (tf_config({**TWO, "ps": ["c:3"]}), "tasks 'ps'"),
        (tf_config({**TWO, "evaluator": ["c:3"]}), "tasks 'evaluator'"),
        (tf_config({"worker": ["a", "b:2"]}), r"host:port of its own, not \['a'\]"),
        (tf_config({"worker": ["a:1", "a:1"]}), r"host:port of its own, not \['a:1', 'a:1'\]"),
    ],
)
def test_what_is_wrong_in_tf_config_is_one_line(text, what):
    with pytest.raises(UserError, match=what) as raised:
        cluster.place(text)
    assert raised.value.code == USAGE
    assert "\n" not in str(raised.value)


def loopback(count: int) -> dict[str, str]:
    return {f"worker:{i}": f"127.0.0.1:{port}" for i, port in enumerate(ports(count))}


def test_processes_go_on_when_all_are_there_and_leave_their_ports_free():
    addresses, met = loopback(3), []

    def meet(me):
        cluster.join(addresses, me, 30)
        met.append(me)
        if me != "worker:0":  # as TensorFlow does: who is through listens again at once
            served.append(socket.create_server(("127.0.0.1", int(addresses[me].split(":")[1]))))

    served: list[socket.socket] = []
    others = [threading.Thread(target=meet, args=(me,)) for me in ("worker:1", "worker:2")]
    for other in others:
        other.start()
    assert met == []  # nobody goes on without worker 0
    meet("worker:0")
    socket.create_server(("127.0.0.1", int(addresses["worker:0"].split(":")[1]))).close()
    with socket.create_server(("127.0.0.1", int(addresses["worker:0"].split(":")[1]))):
        for other in others:
            other.join(30)
    assert sorted(met) == sorted(addresses)
    for server in served:
        server.close()


def test_who_does_not_come_is_named():
    addresses = loopback(2)
    with pytest.raises(UserError, match=f"worker 1 at {addresses['worker:1']}: not there after 0 s") as raised:
        cluster.join(addresses, "worker:0", 0.3)
    assert raised.value.code == UNAVAILABLE


def test_a_host_that_is_no_name_is_not_there():
    addresses = {**loopback(2), "worker:1": "a..b:2222"}
    with pytest.raises(UserError, match=r"worker 1 at a\.\.b:2222: not there after 0 s"):
        cluster.join(addresses, "worker:0", 0.3)


def test_a_port_that_is_taken_is_one_line():
    addresses = loopback(2)
    with socket.create_server(("127.0.0.1", int(addresses["worker:0"].split(":")[1]))):
        with pytest.raises(UserError, match=r"worker 0 at .*: cannot listen there"):
            cluster.join(addresses, "worker:0", 1)


def test_one_process_is_the_chief_and_decides_alone():
    for strategy in (tf.distribute.OneDeviceStrategy("/cpu:0"), tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])):
        assert not cluster.several(strategy)
        assert cluster.is_chief(strategy)
        assert cluster.agreed(strategy, lambda: "so") == "so"
        assert [cluster.anyone(strategy, flag) for flag in (False, True)] == [False, True]


@pytest.fixture
def two(monkeypatch):
    """agreed() of two processes, one after the other: what the chief spreads is what the other hears."""
    spread: list[bytes] = []

    def stand_in(strategy, data):
        assert len(data) <= cluster.LIMIT
        spread.append(data)
        return spread[0]

    monkeypatch.setattr(cluster, "several", lambda strategy: True)
    monkeypatch.setattr(cluster, "_spread", stand_in)

    def run(index, decide):
        monkeypatch.setattr(cluster, "is_chief", lambda strategy: index == 0)
        return cluster.agreed(SimpleNamespace(), decide)

    return run


def test_all_hear_what_the_chief_decided_and_it_alone_decides(two):
    assert two(0, lambda: "run ä/0001") == "run ä/0001"
    assert two(1, lambda: pytest.fail("the chief decides")) == "run ä/0001"


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (UserError("the run is taken", 78), "the run is taken", 78),
        (OSError(28, "No space left on device"), "No space left", CANNOT_WRITE),
        (KeyError(), "KeyError", UNAVAILABLE),  # not 65, which no restart can help
        (OSError(116, "Stale file handle"), "Stale", UNAVAILABLE),
        (UserError("x" * cluster.LIMIT), "xxx", 65),  # longer than what can be spread
    ],
)
def test_an_error_of_the_chief_ends_all(two, error, message, code):
    def fail():
        raise error

    with pytest.raises(type(error)) as raised:
        two(0, fail)
    assert raised.value is error
    with pytest.raises(UserError, match=message) as raised:
        two(1, lambda: "")
    assert raised.value.code == code


def test_more_than_can_be_spread_is_refused_not_cut(monkeypatch):
    with pytest.raises(ValueError, match="more than the processes can agree on"):
        cluster._spread(SimpleNamespace(), b"x" * (cluster.LIMIT + 1))


@pytest.mark.parametrize(
    ("message", "who"),
    [
        (
            "Collective ops is aborted by: Error reported from /job:worker/task:1: The following tasks are unhealthy "
            "(stopped sending heartbeats):\n/job:worker/replica:0/task:1\nThe tasks have crashed.",
            "worker 1 at b:2",
        ),
        (
            "Socket closed\nAdditional GRPC error information from remote target /job:worker/replica:0/task:0 while "
            "calling /tensorflow.WorkerService/RecvBuf:",
            "worker 0 at a:1",
        ),
        (
            "remote target /job:worker/replica:0/task:0 … unhealthy:\n/job:worker/replica:0/task:1",
            "worker 1 at b:2",
        ),
        ("Deadline Exceeded", "another worker"),
        ("", "another worker"),
    ],
)
def test_the_worker_that_is_gone_is_named_as_well_as_tensorflow_knows_it(message, who):
    error = cluster.gone(ADDRESSES, tf.errors.UnavailableError(None, None, message), "after update 7")
    assert re.match(f"{who} is gone after update 7; .*same command: the run goes on from its last", str(error))
    assert error.code == UNAVAILABLE
    assert "\n" not in str(error)


@pytest.mark.parametrize("kind", [tf.errors.UnavailableError, tf.errors.DeadlineExceededError, tf.errors.AbortedError])
def test_watched_turns_only_the_errors_of_a_lost_worker_into_one_line_and_only_among_several(kind, monkeypatch):
    monkeypatch.setattr(cluster, "_addresses", lambda strategy: ADDRESSES)
    for several in (True, False):
        monkeypatch.setattr(cluster, "several", lambda strategy, several=several: several)
        with pytest.raises(UserError if several else kind):
            with cluster.watched(SimpleNamespace(), lambda: 3):
                raise kind(None, None, "gone")
    monkeypatch.setattr(cluster, "several", lambda strategy: True)
    for error in (tf.errors.InvalidArgumentError(None, None, "shapes"), UserError("mine"), ValueError("x")):
        with pytest.raises(type(error)) as raised:
            with cluster.watched(SimpleNamespace()):
                raise error
        assert raised.value is error
    with pytest.raises(UserError, match="another worker is gone after update 3;"):
        with cluster.watched(SimpleNamespace(), lambda: 3):
            raise tf.errors.InternalError(None, None, "Collective ops is aborted by: something")
