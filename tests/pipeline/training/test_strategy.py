"""Claims about choosing a strategy. TPU, GPU and clusters only up to the strategy's construction, with fakes."""

import json
import signal
import threading
from types import SimpleNamespace

import pytest
import tensorflow as tf

from pipeline.arguments import parse
from pipeline.errors import UNAVAILABLE, USAGE, UserError
from pipeline.training import strategy
from pipeline.training.strategy import strategy_of

RESOLVER = tf.distribute.cluster_resolver.TPUClusterResolver
ALONE = json.dumps({"cluster": {"worker": ["127.0.0.1:23571"]}, "task": {"type": "worker", "index": 0}})


def test_cpu_is_one_device_and_mirrored_is_every_logical_cpu_where_there_is_no_gpu(caplog):
    assert strategy_of("cpu").num_replicas_in_sync == 1
    mirrored = strategy_of("mirrored")
    assert isinstance(mirrored, tf.distribute.MirroredStrategy)
    assert mirrored.num_replicas_in_sync == 2
    assert "sees no GPU here; it uses 2 CPU device(s)" in caplog.text


@pytest.mark.parametrize(
    ("name", "what"),
    [("gpu", "sees no GPU"), ("multi_worker", "TF_CONFIG"), ("tpu", "no TPU 'local' could be reached")],
)
def test_a_device_that_is_not_there_is_one_line_that_says_what_to_do(name, what, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("TPU_NAME", raising=False)
    if name == "tpu":  # asking for real changes the devices of the whole process
        error = tf.errors.NotFoundError(None, None, "TPUs not found in the cluster.\nFailed in initialization")
        monkeypatch.setattr(RESOLVER, "connect", raising(error))
    with pytest.raises(UserError, match=what) as raised:
        strategy_of(name)
    assert raised.value.code == USAGE
    assert "\n" not in str(raised.value)


def test_a_gpu_is_one_device_and_mirrored_takes_all_gpus_and_no_cpu(monkeypatch):
    gpus = [SimpleNamespace(name="/device:GPU:0"), SimpleNamespace(name="/device:GPU:1")]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: gpus if kind == "GPU" else [])
    made = []
    monkeypatch.setattr(tf.distribute, "OneDeviceStrategy", lambda device: made.append(device))
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", lambda *given: made.append(given))
    strategy_of("gpu")
    strategy_of("mirrored")
    assert made == ["/gpu:0", (["/device:GPU:0", "/device:GPU:1"], None)]


@pytest.mark.parametrize(("variable", "name"), [("slice-7", "slice-7"), (None, "local")])
def test_a_tpu_is_the_one_that_tpu_name_names_or_this_hosts(variable, name, monkeypatch):
    monkeypatch.delenv("TPU_NAME", raising=False)
    if variable:
        monkeypatch.setenv("TPU_NAME", variable)
    monkeypatch.setattr(RESOLVER, "connect", lambda tpu: f"resolver of {tpu}")
    monkeypatch.setattr(tf.distribute, "TPUStrategy", lambda resolver: f"strategy of {resolver}")
    assert strategy_of("tpu") == f"strategy of resolver of {name}"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Please provide a TPU Name to connect to."),
        RuntimeError("TPU is not yet ready"),
        ImportError("no googleapiclient"),
        OSError("Name or service not known"),
        tf.errors.UnavailableError(None, None, "failed to connect\nto all addresses"),
    ],
)
def test_whatever_the_look_up_of_a_tpu_raises_is_one_line(error, monkeypatch):
    monkeypatch.setattr(RESOLVER, "connect", raising(error))
    with pytest.raises(UserError, match="strategy tpu: no TPU") as raised:
        strategy_of("tpu")
    assert "\n" not in str(raised.value)


def test_workers_meet_before_tensorflow_connects_them(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", ALONE)
    order = []
    monkeypatch.setattr(strategy.cluster, "join", lambda addresses, me, seconds: order.append((addresses, me)))
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", lambda: order.append("connected"))
    strategy_of("multi_worker")
    assert order == [({"worker:0": "127.0.0.1:23571"}, "worker:0"), "connected"]


def test_sigterm_is_what_it_was_although_tensorflow_takes_it(monkeypatch):
    assert threading.current_thread() is threading.main_thread()
    monkeypatch.setenv("TF_CONFIG", ALONE)
    set_to = []
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda number, handler: set_to.append((number, handler)))
    strategy_of("multi_worker")
    assert set_to == [(signal.SIGTERM, signal.getsignal(signal.SIGTERM))]


def test_a_worker_that_is_lost_while_tensorflow_connects_is_named(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", ALONE)
    lost = "while calling remote target /job:worker/replica:0/task:0 of the service"
    monkeypatch.setattr(
        tf.distribute, "MultiWorkerMirroredStrategy", raising(tf.errors.DeadlineExceededError(None, None, lost))
    )
    with pytest.raises(UserError, match=r"worker 0 at 127\.0\.0\.1:23571 is gone at the start") as raised:
        strategy_of("multi_worker")
    assert raised.value.code == UNAVAILABLE


@pytest.mark.parametrize("name", ["cpu", "gpu", "mirrored", "multi_worker", "tpu"])
def test_xla_by_flag_is_for_one_device(name):
    words = ["ratings-sample", "--train.jit", "--train.strategy", name]
    if name in ("cpu", "gpu"):
        assert parse("train", words)[1].train.jit
        return
    with pytest.raises(UserError, match=r"drop --train\.jit") as raised:
        parse("train", words)
    assert raised.value.code == USAGE


def raising(error):
    def fail(*_):
        raise error

    return fail
