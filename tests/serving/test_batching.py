"""Requests that wait at the same time are merged into batches, by TF Serving's rules."""

import asyncio
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.server import merging
from serving.server.batching import Batcher
from serving.server.batching_parameters import BatchingParameters, read
from serving.server.errors import RequestError
from tests.serving.shell_servable import Shell, call, refused

NEVER = float("inf")


def values(outcome):
    return outcome[0].tolist() if isinstance(outcome, list) else refused(outcome)


def answers(shell: Shell, *calls, threads: int = 1, deadline: float = NEVER, isolating: bool = False):
    """What calls of one turn of the loop are answered."""

    async def ask():
        batcher = Batcher(threads, isolating=isolating)
        try:
            asked = [batcher.run(shell, each, "m", deadline) for each in calls]
            return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 20)
        finally:
            batcher.close()

    return [values(outcome) for outcome in asyncio.run(ask())]


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come to pass")


class Busy:
    """A batcher whose only thread is held by a first call, so that what is asked now waits."""

    def __init__(self, shell: Shell, **options):
        self.shell, self.batcher = shell, Batcher(1, **options)
        self.asked: list[asyncio.Task] = []

    async def __aenter__(self):
        self.shell.gate.clear()
        self.first = self.ask(call(0))
        await until(lambda: self.shell.runs)
        return self

    async def __aexit__(self, *_):
        self.shell.gate.set()
        await asyncio.gather(*self.asked, return_exceptions=True)
        self.batcher.close()

    def ask(self, each, deadline=NEVER):
        task = asyncio.create_task(self.batcher.run(self.shell, each, "m", deadline))
        self.asked.append(task)
        return task

    async def outcomes(self):
        await asyncio.sleep(0.01)  # all are in the queue
        self.shell.gate.set()
        return [values(o) for o in await asyncio.gather(*self.asked[1:], return_exceptions=True)]


# Parameters


def test_parameters_are_read_from_text(tmp_path):
    file = tmp_path / "batching.txt"
    file.write_text(
        "max_batch_size { value: 32 }\nbatch_timeout_micros { value: 500 }\nnum_batch_threads { value: 3 }\n"
        'thread_pool_name { value: "pool" }\nallowed_batch_sizes: 8\nallowed_batch_sizes: 32\n'
        "pad_variable_length_inputs: true\nmax_enqueued_batches { value: 4 }\n"
    )
    assert read(file) == BatchingParameters(32, 500, 4, 3, "pool", (8, 32), True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batches { value: 1 }", 'no field named "max_batches"'),
        ("max_batch_size: 4", "max_batch_size"),
        ("max_batch_size { value: 0 }", "max_batch_size must be positive; was 0"),
        ("batch_timeout_micros { value: -1 }", "batch_timeout_micros must be non-negative; was -1"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: [4, 4, 8]", "must be monotonically increasing"),
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: [2, 4]",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; expected 8",
        ),
        (
            "enable_large_batch_splitting { value: true } max_execution_batch_size { value: 2000 }",
            "max_execution_batch_size should be less than or equal to max_batch_size",
        ),
    ],
)
def test_parameters_that_make_no_sense_are_refused(tmp_path, text, message):
    file = tmp_path / "batching.txt"
    file.write_text(text)
    with pytest.raises(RequestError, match=message.replace("(", r"\(")) as raised:
        read(file)
    assert raised.value.code.name == "INVALID_ARGUMENT"


# Merging


def test_a_batch_is_padded_to_an_allowed_size_with_the_first_row_of_its_last_call():
    shell = Shell(BatchingParameters(max_batch_size=8, allowed_batch_sizes=(2, 8)))
    assert answers(shell, call(1, 2), call(3, 4)) == [[2, 3], [4, 5]]
    assert [feeds["x"].tolist() for feeds, _ in shell.runs] == [[1, 2, 3, 4, 3, 3, 3, 3]]


def test_a_call_without_rows_is_a_batch_without_rows():
    shell = Shell(BatchingParameters(max_batch_size=8, allowed_batch_sizes=(2, 8)))
    assert answers(shell, call()) == [[]]


def test_other_dimensions_are_padded_with_zeros_and_empty_strings():
    shell = Shell(BatchingParameters(pad_variable_length_inputs=True))
    assert answers(shell, call([1, 2]), call([3])) == [[[2, 3]], [[4, 1]]]
    texts = [{"t": np.array([["a", "b"]], object)}, {"t": np.array([["c"]], object)}]
    assert merging._merged("t", [feeds["t"] for feeds in texts], 0, True).tolist() == [["a", "b"], ["c", b""]]


def test_different_shapes_fail_the_whole_batch_without_padding():
    shell = Shell(BatchingParameters())
    found = answers(shell, call([1, 2]), call([3]))
    message = (
        "Tensors with name 'x' from different tasks have different shapes and padding is turned off."
        "Set pad_variable_length_inputs to true, or ensure that all tensors with the same name"
        "have equal dimensions starting with the first dim."
    )
    assert found == [("FAILED_PRECONDITION", message)] * 2
    assert shell.runs == []


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"x": np.float32(1)}, "Batching Run() input tensors must have at least one dimension"),
        ({"x": np.zeros(2), "z": np.zeros(3)}, "Batching Run() input tensors must have equal 0th-dimension size"),
    ],
    ids=["scalar", "uneven"],
)
def test_inputs_without_a_common_first_dimension_are_refused(feeds, message):
    one = call(1)._replace(feeds={name: np.asarray(value) for name, value in feeds.items()})
    assert answers(Shell(BatchingParameters()), one) == [("INVALID_ARGUMENT", message)]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("size", "Batched output tensor has 0 dimensions"),
        (
            "two",
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
            "tensors",
        ),
    ],
)
def test_outputs_that_cannot_be_taken_apart_fail_the_batch(output, message):
    one = call(1, fetches=(output,))
    assert answers(Shell(BatchingParameters()), one) == [("FAILED_PRECONDITION", message)]


def test_a_call_larger_than_any_batch_is_refused():
    found = answers(Shell(BatchingParameters(max_batch_size=2)), call(1, 2, 3))
    assert found == [("INVALID_ARGUMENT", "Task size 3 is larger than maximum input batch size 2")]


# Gathering


def test_calls_of_one_turn_of_the_loop_run_together():
    shell = Shell(BatchingParameters())
    assert answers(shell, *(call(i) for i in range(5))) == [[i + 1] for i in range(5)]
    assert shell.sizes == [5]


def test_a_short_run_stays_on_the_loop():
    shell = Shell(BatchingParameters(), short=True)
    assert answers(shell, call(1), call(2)) == [[2], [3]]
    assert shell.threads == [threading.main_thread()]


def sizes_of_runs(count: int, gap: int) -> list[int]:
    """Of short calls that come `gap` turns of the loop apart."""
    shell = Shell(BatchingParameters(), short=True)

    async def ask():
        batcher, asked = Batcher(1), []
        for turn in range(count * gap):
            asked += [asyncio.create_task(batcher.run(shell, call(0), "m", NEVER))] if turn % gap == 0 else []
            await asyncio.sleep(0)
        await asyncio.gather(*asked)

    asyncio.run(ask())
    return shell.sizes


def test_calls_a_few_turns_apart_share_a_run_but_a_stream_of_them_holds_up_none():
    assert (sizes_of_runs(10, 4), sizes_of_runs(10, 20), len(sizes_of_runs(5000, 1)) > 5) == ([10], [1] * 10, True)


def test_what_comes_while_all_threads_compute_gathers_up_to_the_largest_batch():
    async def play():
        async with Busy(Shell(BatchingParameters(max_batch_size=3))) as busy:
            for i in range(7):
                busy.ask(call(i))
            return await busy.outcomes(), busy.shell.sizes

    found, sizes = asyncio.run(play())
    assert found == [[i + 1] for i in range(7)]
    assert sizes == [1, 3, 3, 1]


def test_an_incomplete_batch_waits_for_company_and_a_full_one_does_not():
    shell = Shell(BatchingParameters(max_batch_size=2, batch_timeout_micros=30_000_000))
    assert answers(shell, call(1), call(2)) == [[2], [3]]  # a test that waits takes 30 s and fails
    assert shell.sizes == [2]
    shell = Shell(BatchingParameters(max_batch_size=2, batch_timeout_micros=1000))
    assert answers(shell, call(1)) == [[2]]


def test_other_outputs_and_other_versions_have_queues_of_their_own():
    shell, other = Shell(BatchingParameters()), Shell(BatchingParameters())

    async def play():
        batcher = Batcher(4)
        asked = [(shell, call(1)), (shell, call(2, fetches=("y", "y"))), (other, call(3))]
        await asyncio.gather(*(batcher.run(servable, each, "m", NEVER) for servable, each in asked))
        batcher.close()

    asyncio.run(play())
    assert (shell.sizes, other.sizes) == ([1, 1], [1])


def test_queues_take_turns():
    async def play():
        async with Busy(Shell(BatchingParameters(max_batch_size=1))) as busy:
            other = Shell(BatchingParameters(max_batch_size=1))
            order = []
            for name, servable in [("a", busy.shell), ("a", busy.shell), ("b", other)]:
                task = asyncio.create_task(busy.batcher.run(servable, call(1), "m", NEVER))
                task.add_done_callback(lambda _, name=name: order.append(name))
                busy.asked.append(task)
            await busy.outcomes()
            return order

    assert asyncio.run(play()) == ["a", "b", "a"]


def test_a_full_queue_refuses():
    async def play():
        async with Busy(Shell(BatchingParameters(max_batch_size=1, max_enqueued_batches=2))) as busy:
            for i in range(3):
                busy.ask(call(i))
            return await busy.outcomes()

    full = (
        "UNAVAILABLE",
        "The batch scheduling queue to which this task was submitted is full; currently 2 batches enqueued and "
        "max_enqueued_batches is 2",
    )
    assert asyncio.run(play()) == [[1], [2], full]


# Splitting


def test_a_large_call_is_split_and_fills_the_open_batch_first():
    async def play():
        parameters = BatchingParameters(
            max_batch_size=100, enable_large_batch_splitting=True, max_execution_batch_size=4
        )
        async with Busy(Shell(parameters)) as busy:
            busy.ask(call(50))
            busy.ask(call(*range(20, 30)))
            return await busy.outcomes(), busy.shell.sizes

    assert asyncio.run(play()) == ([[51], list(range(21, 31))], [1, 4, 4, 3])


def test_a_large_call_that_the_queue_cannot_hold_is_refused():
    shell = Shell(BatchingParameters(8, max_enqueued_batches=2, enable_large_batch_splitting=True))
    ((code, message),) = answers(Shell(BatchingParameters(8, enable_large_batch_splitting=True)), call(*range(9)))
    assert (code, message) == ("INVALID_ARGUMENT", "Task size 9 is larger than maximum input batch size 8")

    async def play():
        async with Busy(shell) as busy:
            busy.ask(call(*range(8)))
            busy.ask(call(*range(7)))
            busy.ask(call(*range(3)))
            return await busy.outcomes()

    *_, (code, message) = asyncio.run(play())
    assert code == "UNAVAILABLE"
    assert "task size is 3 but scheduling capacity is only 1 (num_enqueued_batches=2, max_enqueued_b" in message


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=20),
    largest=st.integers(1, 9),
    splitting=st.booleans(),
    padding=st.booleans(),
)
def test_every_call_gets_its_own_rows_back(sizes, largest, splitting, padding):
    parameters = BatchingParameters(
        max_batch_size=9,
        max_enqueued_batches=1000,
        enable_large_batch_splitting=splitting,
        max_execution_batch_size=largest,
        allowed_batch_sizes=(largest if splitting else 9,) if padding else (),
    )
    shell = Shell(parameters, short=True)
    rows = iter(range(100, 1000))
    calls = [[next(rows) for _ in range(size)] for size in sizes]
    assert answers(shell, *(call(*each) for each in calls)) == [[row + 1 for row in each] for each in calls]
    assert max(shell.sizes) <= parameters.largest


# Errors and deadlines


def test_an_error_of_a_batch_is_the_answer_to_all_of_it_and_isolating_to_its_cause_alone():
    bad = ("INVALID_ARGUMENT", "13 brings bad luck")
    assert answers(Shell(BatchingParameters()), call(1), call(13), call(2)) == [bad] * 3
    isolated = answers(Shell(BatchingParameters()), call(1), call(13), call(2), isolating=True)
    assert isolated == [[2], bad, [3]]


def test_a_call_of_another_type_is_not_merged():
    shell = Shell(BatchingParameters())
    answers(shell, call(1), call(2, dtype=np.int32))
    assert sorted(feeds["x"].dtype.name for feeds, _ in shell.runs) == ["float32", "int32"]


def test_what_expires_in_the_queue_is_not_computed_and_the_rest_of_its_batch_is(monkeypatch):
    dropped = []
    monkeypatch.setattr("serving.server.metrics.dropped", lambda *what: dropped.append(what))

    async def play():
        async with Busy(Shell(BatchingParameters())) as busy:
            busy.ask(call(1), time.monotonic() + 0.005)
            busy.ask(call(2))
            await asyncio.sleep(0.02)
            return await busy.outcomes(), busy.shell.sizes

    found, sizes = asyncio.run(play())
    assert found == [("RESOURCE_EXHAUSTED", "Run() timeout exceeded while waiting in batching queue"), [3]]
    assert sizes == [1, 1]
    assert dropped == [("m", "expired")]


def test_what_was_cancelled_in_the_queue_is_not_computed():
    async def play():
        async with Busy(Shell(BatchingParameters())) as busy:
            gone, stays = busy.ask(call(1)), busy.ask(call(2))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.wait([gone])
            busy.shell.gate.set()
            return values(await stays), busy.shell.sizes

    assert asyncio.run(play()) == ([3], [1, 1])


def test_a_batch_may_run_until_the_latest_deadline_of_its_calls():
    async def play():
        async with Busy(Shell(BatchingParameters())) as busy:
            now = time.monotonic()
            busy.ask(call(1), now + 50)
            busy.ask(call(2), now + 100)
            await busy.outcomes()
            return [timeout for _, timeout in busy.shell.runs]

    endless, late = asyncio.run(play())
    assert endless is None
    assert 50_000 < late <= 100_000


def test_a_lone_call_of_warm_up_is_padded_and_split_like_a_request():
    shell = Shell(BatchingParameters(8, enable_large_batch_splitting=True, max_execution_batch_size=4,
                                     allowed_batch_sizes=(2, 4)))  # fmt: skip
    assert merging.run_alone(shell, call(*range(5)))[0].tolist() == [1, 2, 3, 4, 5]
    assert shell.sizes == [4, 2]
    shell = Shell()
    assert merging.run_alone(shell, call(1))[0].tolist() == [2]
