"""When a call is tried again, how long it waits, and that it ends: on a scripted transport, with a clock of its own."""

import asyncio
import inspect

import pytest

from serving.client import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    Retries,
    ServingError,
    Timeouts,
    Unavailable,
)
from serving.connections import Reply

STATUS = Reply(200, {}, b'{"model_version_status": []}')
METADATA = Reply(
    200,
    {},
    b'{"model_spec": {"version": "1"}, "metadata": {"signature_def": {"signature_def": {"serving_default": {"inputs": '
    b'{"x": {"dtype": "DT_FLOAT", "tensor_shape": {"unknown_rank": true}}}, "outputs": {"y": {"dtype": "DT_FLOAT", '
    b'"tensor_shape": {"unknown_rank": true}}}}}}}}',
)
ANSWER = Reply(200, {}, b'{"outputs": 2.5}')


def refusal(status: int, **headers: str) -> Reply:
    return Reply(status, {name.replace("_", "-"): text for name, text in headers.items()}, b'{"error": "no"}')


class World:
    """A scripted server and a clock. `script` holds a reply, an error, or (seconds that it takes, one of these)."""

    def __init__(self, monkeypatch, kind: type):
        self.kind = kind
        self.now = 100.0
        self.script: list = []
        self.pauses: list[float] = []
        self.left: list[float] = []  # seconds that each request was given
        self.headers: list[tuple] = []
        monkeypatch.setattr("serving.exchange.time.monotonic", lambda: self.now)
        monkeypatch.setattr("serving.settings.random.uniform", lambda low, high: high)
        monkeypatch.setattr("serving.client.time.sleep", self.sleep)
        monkeypatch.setattr("serving.client.asyncio.sleep", self.sleep_async)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(round(seconds, 6))
        self.now += seconds

    async def sleep_async(self, seconds: float) -> None:
        self.sleep(seconds)

    def reply(self, request, deadline):
        self.left.append(round(deadline.left(), 6))
        self.headers.append(request[-1])
        step = self.script.pop(0)
        if isinstance(step, tuple) and not isinstance(step, Reply):
            self.now += step[0]
            step = step[1]
        if isinstance(step, Exception):
            raise step
        return step

    def client(self, protocol: str = "rest", **options):
        world = self

        class Transport:
            def send(self, request, deadline):
                return world.reply(request, deadline)

        class AsyncTransport:
            async def send(self, request, deadline):
                return world.reply(request, deadline)

        transport = Transport() if self.kind is Client else AsyncTransport()
        return self.kind("host:1", protocol, transport=transport, **options)

    def answer(self, answer):
        """What a call returns, awaited where it has to be."""

        async def wait():
            return await answer

        if not inspect.isawaitable(answer):
            return answer
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(wait())
        finally:
            loop.close()


@pytest.fixture(params=[Client, AsyncClient], ids=["sync", "async"])
def world(request, monkeypatch) -> World:
    return World(monkeypatch, request.param)


def test_an_unavailable_server_is_asked_again_after_growing_pauses(world):
    world.script = [Unavailable("refused"), refusal(503), Unavailable("refused"), STATUS]
    assert world.answer(world.client().status("m")) == []
    assert world.pauses == [0.1, 0.2, 0.4]


def test_pauses_have_a_ceiling_and_the_last_failure_is_raised(world):
    world.script = [Unavailable(str(i)) for i in range(5)]
    client = world.client(retries=Retries(5, first_pause=1.0, longest_pause=3.0))
    with pytest.raises(Unavailable, match="4"):
        world.answer(client.status("m"))
    assert world.pauses == [1.0, 2.0, 3.0, 3.0]


def test_a_pause_is_drawn_from_zero_to_its_ceiling(monkeypatch):
    drawn = []
    monkeypatch.setattr("serving.settings.random.uniform", lambda *ends: drawn.append(ends) or 0.0)
    assert Retries(first_pause=0.5).pause(2, Unavailable()) == 0.0
    assert Retries(attempts=9999).pause(5000, Unavailable()) == 0.0  # 2 ** 5000 is no float
    assert drawn == [(0, 1.0), (0, 2.0)]


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
@pytest.mark.parametrize("error", [InvalidRequest, NotFound, DeadlineExceeded, ServingError, Overloaded])
def test_no_other_failure_is_tried_again(world, protocol, error):
    world.script = [error("no")]
    with pytest.raises(error):
        world.answer(world.client(protocol).status("m"))
    assert world.pauses == []


@pytest.mark.parametrize("status", [400, 404, 429, 500, 504])
def test_no_other_http_status_is_tried_again(world, status):
    world.script = [refusal(status, retry_after="1")]
    with pytest.raises(ServingError):
        world.answer(world.client().status("m"))
    assert world.pauses == []


def test_an_overloaded_server_is_asked_again_only_when_wanted_and_not_before_it_says(world):
    world.script = [refusal(429, retry_after="3"), refusal(429), STATUS]
    world.answer(world.client(retries=Retries(when_overloaded=True)).status("m"))
    assert world.pauses == [3.0, 0.2]


def test_a_pause_beyond_the_deadline_is_not_begun(world):
    world.script = [refusal(429, retry_after="60")]
    with pytest.raises(Overloaded) as raised:
        world.answer(world.client(timeout=30, retries=Retries(when_overloaded=True)).status("m"))
    assert (world.pauses, raised.value.retry_after) == ([], 60.0)


def test_all_tries_and_questions_of_a_call_share_one_deadline(world):
    world.script = [(2.0, METADATA), (3.0, Unavailable("refused")), (1.0, ANSWER)]
    outputs = world.answer(world.client(timeout=10).predict("m", {"x": [1]}))
    assert outputs["y"] == 2.5
    assert world.left == [10.0, 8.0, 4.9]


def test_no_request_is_begun_after_the_deadline(world):
    world.script = [(10.0, METADATA)]
    with pytest.raises(DeadlineExceeded, match="no answer from host:1 within 10 s"):
        world.answer(world.client(timeout=10).predict("m", {"x": [1]}))


def test_a_call_may_have_a_time_out_of_its_own(world):
    world.script = [STATUS]
    world.answer(world.client(timeout=Timeouts(1, 30)).status("m", timeout=0.5))
    assert world.left == [0.5]


def test_a_reload_is_never_tried_again(world):
    world.script = [Unavailable("broken")]
    with pytest.raises(Unavailable):
        world.answer(world.client("grpc").reload("model_config_list {}"))
    assert world.pauses == []


def test_the_signature_is_asked_for_once(world):
    client = world.client()
    world.script = [METADATA, ANSWER, ANSWER]
    for _ in range(2):
        world.answer(client.predict("m", {"x": [1]}))
    assert world.script == []


def test_a_refusal_is_raised_when_the_signature_is_still_the_same(world):
    client = world.client()
    world.script = [METADATA, ANSWER, refusal(400), METADATA]
    world.answer(client.predict("m", {"x": [1]}))
    with pytest.raises(InvalidRequest):
        world.answer(client.predict("m", {"x": [1]}))
    assert world.script == []


@pytest.mark.parametrize("stale", [refusal(400), Reply(200, {}, b'{"outputs": {"y": [1], "z": [2]}}'),
                                   Reply(200, {}, b'{"outputs": true}'), Reply(200, {}, b'{"outputs": "text"}')],
                         ids=["refused", "other_outputs", "other_type", "text"])  # fmt: skip
def test_a_new_version_with_another_signature_is_noticed(world, stale):
    client = world.client()
    renewed = METADATA._replace(body=METADATA.body.replace(b'"y": {"dtype": "DT_FLOAT"', b'"y": {"dtype": "DT_INT64"'))
    world.script = [METADATA, ANSWER, stale, renewed, Reply(200, {}, b'{"outputs": 7}')]
    world.answer(client.predict("m", {"x": [1]}))
    assert world.answer(client.predict("m", {"x": [1]}))["y"].dtype == "int64"


def test_integers_never_lose_a_fraction_to_a_stale_signature(world):
    integers = METADATA._replace(body=METADATA.body.replace(b'"y": {"dtype": "DT_FLOAT"', b'"y": {"dtype": "DT_INT64"'))
    client = world.client()
    world.script = [integers, Reply(200, {}, b'{"outputs": 7}'), ANSWER, METADATA, ANSWER]
    world.answer(client.predict("m", {"x": [1]}))
    assert world.answer(client.predict("m", {"x": [1]}))["y"] == 2.5


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_token_and_request_id_go_with_the_request(world, protocol):
    client = world.client(protocol, token="secret")
    world.script = [METADATA, Unavailable("x"), Unavailable("x")] if protocol == "rest" else [ServingError("stop")]
    with pytest.raises(ServingError):
        world.answer(client.regress("m", [{"x": 1.0}], request_id="r-1", timeout=0.05))
    assert world.headers[0] == (("authorization", "Bearer secret"), ("x-request-id", "r-1"))


@pytest.mark.parametrize("text", ["a\r\nx-other: 1", "é", "a\0"])
def test_a_header_cannot_be_smuggled_in(world, text):
    with pytest.raises(InvalidRequest, match="one line"):
        world.answer(world.client().regress("m", [{}], request_id=text))
    with pytest.raises(InvalidRequest, match="the token"):
        world.client(token=text)


def test_a_version_and_a_label_are_refused_together(world):
    with pytest.raises(InvalidRequest, match="one of them"):
        world.answer(world.client().predict("m", {}, version=1, label="stable"))


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_time_out_that_leaves_no_time_is_refused(seconds):
    with pytest.raises(ValueError, match="seconds above 0"):
        Client("host:1", timeout=seconds)
