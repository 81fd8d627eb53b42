"""Closed segments as state machines: what is in flight, when something is asked, and when it is over."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from workloads.load import TURN_MIN_S, ClosedLoop, OpenLoop, PlannedLoad, SegmentLoop
from workloads.plan import ClosedSegment, LoadPlan
from workloads.schedule import ScheduledRequest

BEGAN_S = 100.0


def requests(name: str, count: int, apart_s: float = 0.0) -> tuple[ScheduledRequest, ...]:
    return tuple(
        ScheduledRequest(f"{name}{n}", apart_s * n, "s", 0, f"p{n}", (n,), 3, worker="w") for n in range(count)
    )


class ClosedLoad(RuleBasedStateMachine):
    """A caller that ends requests whenever it likes, at once as well, and looks when the source says or later."""

    @initialize(concurrency=st.integers(1, 6), more=st.integers(0, 30))
    def begin(self, concurrency: int, more: int) -> None:
        self.segment = ClosedSegment("load", 1.0, 4.0, concurrency, requests("q", concurrency + more))
        self.dry: list[tuple[str, float]] = []
        self.loop = SegmentLoop(self.segment, BEGAN_S, "m", 8.0, lambda name, now: self.dry.append((name, now)))
        self.now = BEGAN_S
        self.in_flight: list[str] = []
        self.asked: list[str] = []

    def take(self, asks: list[object]) -> None:
        for ask in asks:
            assert self.now >= BEGAN_S + 1.0, "nothing before its time"
            assert not self.asked or self.now < BEGAN_S + 4.0 or len(self.asked) < self.segment.concurrency
            self.asked.append(ask.request_id)  # type: ignore[attr-defined]
            self.in_flight.append(ask.request_id)  # type: ignore[attr-defined]
            assert ask.intended_s == self.now, "a closed load means to send when it sends"  # type: ignore[attr-defined]
            assert ask.worker == "w"  # type: ignore[attr-defined]

    @rule(step_s=st.floats(0.0, 0.8))
    def look(self, step_s: float) -> None:
        self.now += step_s
        self.take(list(self.loop.due(self.now)))

    @rule()
    def look_when_told(self) -> None:
        time_s = self.loop.next_time()
        if time_s is not None:
            self.now = max(self.now, time_s)
            self.take(list(self.loop.due(self.now)))
            again = self.loop.next_time()
            assert again is None or again > self.now, "whoever looks when told is not told to look again at once"

    @precondition(lambda self: self.in_flight)
    @rule(pick=st.integers(0, 99), step_s=st.sampled_from([0.0, 0.0, 0.005, 0.3]))
    def end(self, pick: int, step_s: float) -> None:
        self.now += step_s
        name = self.in_flight.pop(pick % len(self.in_flight))
        self.take(list(self.loop.ended(name, self.now)))

    @rule()
    def end_of_anothers(self) -> None:
        assert self.loop.ended("somebody else's", self.now) == []

    @invariant()
    def bounded(self) -> None:
        if not hasattr(self, "loop"):
            return
        assert len(self.in_flight) <= self.segment.concurrency
        assert self.asked == [request.request_id for request in self.segment.requests[: len(self.asked)]]
        lived_s = max(0.0, self.now - BEGAN_S - 1.0)
        assert len(self.asked) <= self.segment.concurrency * (1 + lived_s / TURN_MIN_S + 1e-6)
        assert len(self.dry) <= 1
        if self.dry:
            assert len(self.asked) == len(self.segment.requests) > self.segment.concurrency
        if self.loop.finished:
            assert self.asked


TestClosedLoad = ClosedLoad.TestCase
TestClosedLoad.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_burst_is_asked_once_and_is_over_with_its_last_request() -> None:
    loop = SegmentLoop(ClosedSegment("burst", 0.0, 9.0, 5, requests("q", 5)), 0.0, "m", 8.0)
    assert loop.next_time() == 0.0
    asked = loop.due(0.0)
    assert len(asked) == 5
    assert [ask for one in asked for ask in loop.ended(one.request_id, 1.0)] == []
    assert loop.finished
    assert loop.next_time() is None


def test_the_next_is_asked_when_one_ends_and_none_after_the_time_is_over() -> None:
    loop = SegmentLoop(ClosedSegment("load", 0.0, 2.0, 2, requests("q", 9)), 0.0, "m", 8.0)
    loop.due(0.0)
    assert [ask.request_id for ask in loop.ended("q0", 0.5)] == ["q2"]
    assert not loop.finished
    assert loop.ended("q1", 2.0) == loop.ended("q2", 2.1) == []
    assert loop.finished


def test_a_place_that_is_refused_at_once_waits_a_moment_and_keeps_its_place() -> None:
    loop = SegmentLoop(ClosedSegment("load", 0.0, 2.0, 2, requests("q", 9)), 0.0, "m", 8.0)
    loop.due(0.0)
    assert loop.ended("q0", 0.0) == []
    assert loop.next_time() == TURN_MIN_S
    assert loop.due(TURN_MIN_S / 2) == []
    assert [ask.request_id for ask in loop.due(TURN_MIN_S)] == ["q2"]


def test_a_plan_is_an_open_loop_and_its_segments_each_in_its_time() -> None:
    segment = ClosedSegment("load", 1.0, 2.0, 2, requests("q", 4))
    load = PlannedLoad(LoadPlan(requests("r", 3, apart_s=0.8), (segment,)), BEGAN_S, "m", 8.0)
    seen = []
    while (time_s := load.next_time()) is not None:
        seen += [(ask.request_id, round(time_s - BEGAN_S, 3)) for ask in load.due(time_s)]
    assert seen == [("r0", 0.0), ("r1", 0.8), ("q0", 1.0), ("q1", 1.0), ("r2", 1.6)]
    assert not load.finished
    assert [ask.request_id for ask in load.ended("q0", BEGAN_S + 1.7)] == ["q2"]
    assert load.ended("r0", BEGAN_S + 1.7) == []
    assert [load.ended(name, BEGAN_S + 3.0) for name in ("q1", "q2")] == [[], []]
    assert load.finished


def test_an_open_loop_asks_for_the_workers_that_its_requests_wish_for() -> None:
    (ask,) = OpenLoop(requests("r", 1), BEGAN_S, "m", 8.0).due(BEGAN_S)
    assert ask.worker == "w"


def test_a_probe_whose_requests_are_refused_at_once_does_not_ask_for_ever_in_one_instant() -> None:
    loop = ClosedLoop([((1,), 2)], 3, 0.0, 1.0, "m", 8.0, "probe-")
    now, asked = 0.0, 0
    while (time_s := loop.next_time()) is not None:
        now = max(now, time_s)
        asks = loop.due(now)
        while asks:
            asked += len(asks)
            asks = [again for ask in asks for again in loop.ended(ask.request_id, now)]
    assert loop.finished
    assert asked <= 3 * (1 + 1.0 / TURN_MIN_S)
