"""Worker and timed engine together: whatever is cached, evicted or unloaded, the tokens are the reference's."""

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from analysis.schema import AttemptRow, Row
from cluster.engine.timed import StepCosts, TimedEngine, completion
from cluster.errors import TRAITS, Code
from cluster.node import Command, DropCache, Event, Insert, LinkUp, Load, Received, Record, Remove, Send, Unload, Wake
from cluster.policy import MemoryPolicy, Policy, StreamPolicy, WorkerPolicy
from cluster.protocol import AttemptId, Dispatch, Heartbeat, StreamReport, Withdraw
from cluster.worker.prewarm import ModelOffer
from cluster.worker.worker import WorkerNode
from tests.cluster import QUICK

COSTS = StepCosts(load_s=0.3, kv_bytes_per_token=10, weights_bytes=1_000)


class Bench:
    """One worker with its engine; the test is its controller."""

    def __init__(self, memory: MemoryPolicy, prewarm: bool = True) -> None:
        self.policy = Policy(
            worker=WorkerPolicy(batch_max=3, queue_max=8, prefill_step_tokens=16, prewarm=prewarm),
            memory=memory,
            stream=StreamPolicy(flush_s=0.02),
        )
        self.now = 0.0
        self.engine = TimedEngine(COSTS, self.policy.worker, self.policy.stream.flush_s)
        self.node = WorkerNode("w", 1, self.policy, (ModelOffer("m", 1, 1_000), ModelOffer("n", 0, 1_000)))
        self.tokens: dict[str, list[int]] = {}
        self.ends: dict[str, str] = {}
        self.cached: dict[str, int] = {}
        self.beats: list[Heartbeat] = []
        self.rows: list[Row] = []
        self.feed(LinkUp())

    def feed(self, event: Event) -> None:
        for command in self.node.handle(event, self.now):
            self.carry_out(command)

    def carry_out(self, command: Command) -> None:
        now = self.now
        match command:
            case Insert():
                self.engine.insert(command, now)
            case Remove(sequence):
                self.engine.remove(sequence, now)
            case DropCache(cache):
                self.engine.drop_cache(cache, now)
            case Load(model):
                self.engine.load(model, now)
            case Unload(model):
                self.engine.unload(model, now)
            case Record(row):
                self.rows.append(row)
            case Send(_, Heartbeat() as beat):
                self.beats.append(beat)
            case Send(_, StreamReport() as report):
                for chunk in report.chunks:
                    name = chunk.attempt.request_id
                    self.tokens.setdefault(name, []).extend(chunk.tokens)
                    self.cached[name] = self.cached.get(name, 0) + chunk.cached_tokens
                    if chunk.finish is not None or chunk.code is not None:
                        assert name not in self.ends
                        self.ends[name] = chunk.finish or chunk.code or ""

    def run(self, seconds: float) -> None:
        end_s = self.now + seconds
        while True:
            times_s = [time_s for time_s in (self.node.next_wake(), self.engine.next_time()) if time_s is not None]
            if min(times_s, default=end_s) >= end_s:
                break
            self.now = max(self.now, min(times_s))
            for event in self.engine.advance(self.now):
                self.feed(event)
            wake_s = self.node.next_wake()
            if wake_s is not None and wake_s <= self.now:
                self.feed(Wake())
        self.now = end_s

    def ask(
        self,
        name: str,
        prompt: tuple[int, ...],
        most: int,
        *,
        model: str = "m",
        session: str | None = None,
        done: int = 0,
    ) -> None:
        """done: so many tokens of the completion have been delivered already."""
        delivered = tuple(completion(prompt, done, COSTS.vocabulary))
        self.tokens[name] = list(delivered)
        attempt = AttemptId(name, 1, 1)
        self.feed(Received(Dispatch(attempt, "c", 1, model, prompt, delivered, most, self.now + 60.0, session)))

    def settled(self) -> None:
        """Everybody has been answered, and only what is kept on purpose is still held, on both sides."""
        self.run(30.0)
        gauges, engine = self.node.gauges(), self.engine
        assert (gauges.open_requests, gauges.kv_bytes) == (0, 0)
        assert gauges.cache_bytes == 10 * sum(len(kept.tokens) for kept in engine._kept.values())
        assert gauges.memory_bytes == gauges.cache_bytes + 1_000 * len(engine._models) == engine._active_bytes()
        assert sorted(engine._kept) == sorted(self.node._cache._entries)
        assert not any(model.sequences() for model in engine._models.values())


class Wanted(NamedTuple):
    after_s: float
    session: int | None
    more: list[int]
    most: int
    done: int
    model: str
    withdrawn: bool


WANTED = st.builds(
    Wanted,
    st.sampled_from([0.0, 0.003, 0.05, 0.6]),
    st.sampled_from([None, 0, 1, 2]),
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.integers(2, 12),
    st.integers(0, 1),
    st.sampled_from(["m", "m", "m", "n"]),
    st.sampled_from([False, False, False, True]),
)
MEMORIES = st.sampled_from(
    [
        MemoryPolicy(),
        MemoryPolicy(cache_bytes_max=0),
        MemoryPolicy(cache_bytes_max=900, session_share_max=0.5),
        MemoryPolicy(bytes_max=3_000, cache_bytes_max=900),
        MemoryPolicy(bytes_max=2_500, cache_bytes_max=400, soft_share=0.9, resume_share=0.85),
        MemoryPolicy(bytes_max=1_600, cache_bytes_max=900),
    ]
)


@QUICK
@given(MEMORIES, st.booleans(), st.lists(WANTED, min_size=1, max_size=14))
def test_every_stream_is_the_reference_whatever_was_kept_for_it(
    memory: MemoryPolicy, prewarm: bool, plan: list[Wanted]
) -> None:
    bench, asked = Bench(memory, prewarm), dict[str, tuple[tuple[int, ...], int, bool]]()
    conversations: dict[int | None, tuple[int, ...]] = {}
    for number, wanted in enumerate(plan):
        bench.run(wanted.after_s)
        system = (7, 7, 7, 8, 9) if wanted.session != 2 else (7, 7)
        prompt = (conversations.get(wanted.session, system) + tuple(wanted.more))[-150:]
        most = wanted.most
        name, session = f"r{number}", None if wanted.session is None else f"s{wanted.session}"
        bench.ask(name, prompt, most, model=wanted.model, session=session, done=wanted.done)
        asked[name] = (prompt, most, wanted.withdrawn)
        if wanted.session is not None:
            conversations[wanted.session] = (*prompt, *completion(prompt, most, COSTS.vocabulary))
        if wanted.withdrawn:
            bench.run(0.004)
            bench.feed(Received(Withdraw(AttemptId(name, 1, 1))))
    bench.settled()
    for name, (prompt, most, withdrawn) in asked.items():
        whole, end = completion(prompt, most, COSTS.vocabulary), bench.ends.get(name)
        assert bench.tokens[name] == whole[: len(bench.tokens[name])]
        if end == "length":
            assert bench.tokens[name] == whole
        elif end is not None:
            assert TRAITS[Code(end)].refusal, end
        else:
            assert withdrawn
        assert bench.cached.get(name, 0) < len(prompt) + most
    rows = [row for row in bench.rows if isinstance(row, AttemptRow)]
    assert len(rows) == len(asked)
    assert sum(row.cached_tokens for row in rows) == bench.node.gauges().cached_tokens


def test_a_second_turn_computes_only_what_is_new() -> None:
    bench = Bench(MemoryPolicy())
    bench.run(2.0)
    prompt = tuple(range(100))
    bench.ask("r1", prompt, 10, session="s")
    bench.run(2.0)
    before = bench.node.gauges().prefill_tokens
    bench.ask("r2", (*prompt, *bench.tokens["r1"], 5, 6), 10, session="s")
    bench.run(2.0)
    assert bench.cached == {"r1": 0, "r2": 110}
    assert bench.node.gauges().prefill_tokens - before == 2
    assert bench.tokens["r2"] == completion((*prompt, *bench.tokens["r1"], 5, 6), 10, COSTS.vocabulary)
    bench.settled()


def test_while_a_model_loads_nobody_is_blamed_for_silence() -> None:
    """The heartbeats go on, say that it loads, and say that the engine owes nothing."""
    bench = Bench(MemoryPolicy(), prewarm=False)
    bench.ask("r1", (1, 2, 3), 200)
    bench.run(0.35)
    bench.beats.clear()
    bench.ask("r2", (1, 2, 3), 5, model="n")
    bench.run(0.2)
    assert {(state.model, state.state) for beat in bench.beats for state in beat.models} >= {("n", "loading")}
    bench.run(1.0)
    assert all(beat.engine_silent_s < 0.1 for beat in bench.beats)
    bench.settled()
    assert bench.ends == {"r1": "length", "r2": "length"}


def test_a_burst_into_little_memory_is_refused_in_part_and_leaves_nothing_behind() -> None:
    bench = Bench(MemoryPolicy(bytes_max=1_600, cache_bytes_max=200))
    bench.run(1.0)
    for number in range(10):
        bench.ask(f"r{number}", (number, 1, 2, 3), 10)
    codes = [end for end in bench.ends.values() if end != "length"]
    assert codes == [Code.RESOURCE_LIMIT_EXCEEDED] * 6
    assert bench.node.gauges().memory_bytes <= 1_600
    bench.settled()
    assert list(bench.ends.values()).count("length") == 4
