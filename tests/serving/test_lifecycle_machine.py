"""Every order of events: folders that come and go, loads that fail, requests that last, reloads, live states."""

from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serving.server.errors import Code, RequestError
from serving.server.lifecycle import Models, State

NUMBERS = st.integers(1, 4)
MANY = 200  # steps that no settled state needs


class Shell:
    def __init__(self, number):
        self.number, self.closed = number, False

    def close(self):
        assert not self.closed
        self.closed = True


class Lifecycle(RuleBasedStateMachine):
    """One model under every interleaving of wishes, threads, time and requests."""

    @initialize(retries=st.integers(0, 2), loads=st.integers(1, 2))
    def begin(self, retries, loads):
        self.now, self.jobs, self.broken, self.leases = 0.0, [], set(), []
        self.wanted, self.labels = set(), {}
        self.models = Models(self.load, self.jobs.append, retries, 60, loads, lambda: self.now)

    def load(self, path):
        number = int(path.name)
        if number in self.broken:
            raise RequestError(Code.DATA_LOSS, "broken")
        return Shell(number)

    @property
    def versions(self):
        return self.models._versions.get("m", {})

    def states(self, state):
        return {number for number, version in self.versions.items() if version.state is state}

    @rule(wanted=st.sets(NUMBERS))
    def aspire(self, wanted):
        self.wanted = wanted
        self.models.aspire("m", {number: Path(f"m/{number}") for number in wanted})

    @rule(number=NUMBERS, broken=st.booleans())
    def break_or_heal(self, number, broken):
        (self.broken.add if broken else self.broken.discard)(number)

    @rule()
    def act(self):
        before = self.states(State.AVAILABLE)
        aspired = {number for number, version in self.versions.items() if version.aspired}
        self.models.act()
        gone = before - self.states(State.AVAILABLE)
        assert len(gone) <= 1
        if gone:
            assert not gone & self.wanted
            assert not aspired or before & aspired or len(before) > 1  # the only one stays until an aspired one is up

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def finish_a_job(self, data):
        self.jobs.pop(data.draw(st.integers(0, len(self.jobs) - 1)))()

    @rule(seconds=st.sampled_from([1.0, 60.0]))
    def pass_time(self, seconds):
        self.now += seconds

    @precondition(lambda self: len(self.leases) < 3)
    @rule(wanted=st.one_of(st.none(), NUMBERS, st.sampled_from(["a", "b"])))
    def begin_a_request(self, wanted):
        available = self.states(State.AVAILABLE)
        number = max(available, default=None) if wanted is None else self.labels.get(wanted, wanted)
        if number in available:
            lease = self.models.lease("m", wanted)
            answered, shell = lease.__enter__()
            assert answered == number == shell.number
            self.leases.append((lease, shell))
        else:
            with pytest.raises(RequestError) as raised:
                self.models.lease("m", wanted)
            assert raised.value.code is (Code.INVALID_ARGUMENT if isinstance(number, str) else Code.NOT_FOUND)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def end_a_request(self, data):
        lease, shell = self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))
        assert not shell.closed
        lease.__exit__()

    @rule(labels=st.dictionaries(st.sampled_from(["a", "b"]), NUMBERS), allow=st.booleans())
    def relabel(self, labels, allow):
        available = self.states(State.AVAILABLE)
        unused = {label for label in labels if self.labels.get(label, labels[label]) == labels[label]}
        fine = all(number in available or (allow and label in unused) for label, number in labels.items())
        if fine:
            self.models.relabel({"m": labels}, allow)
            self.labels = labels
        else:
            with pytest.raises(RequestError) as raised:
                self.models.relabel({"m": labels}, allow)
            assert raised.value.code is Code.FAILED_PRECONDITION

    @rule()
    def settle(self):
        """Left alone with time enough, all that is aspired is up or has failed, and nothing else is up without need."""
        while self.leases:
            lease, _ = self.leases.pop()
            lease.__exit__()
        for _ in range(MANY):
            while self.models.act():
                pass
            while self.jobs:
                self.jobs.pop(0)()
            wait = self.models.seconds_to_retry()
            if wait is None and not self.models.act():
                break
            self.now += wait or 0
        else:
            raise AssertionError("it does not come to rest")
        ended = {number for number, version in self.versions.items() if version.failed}
        up = self.states(State.AVAILABLE)
        assert self.wanted <= up | ended
        assert up <= self.wanted or (len(up - self.wanted) == 1 and not up & self.wanted and self.wanted)
        assert not self.states(State.LOADING) | self.states(State.UNLOADING) | self.states(State.START)
        assert self.models.outcome("m") is (True if up else False if self.wanted else None)

    def teardown(self):
        self.settle()

    @invariant()
    def what_answers_is_what_is_available(self):
        if hasattr(self, "models"):
            assert {number for _, number in self.models.available()} == self.states(State.AVAILABLE)

    @invariant()
    def no_request_holds_a_closed_servable(self):
        assert not any(shell.closed for _, shell in getattr(self, "leases", []))


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.slow
class TestManyLifecycles(Lifecycle.TestCase):
    settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
