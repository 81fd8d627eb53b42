"""The timed engine against a reference that makes one step at a time, and against mlx-lm's law of a step.

All durations are multiples of 2**-16 s, so both sides compute times without rounding and may be compared for equality.
"""

from array import array
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.engine.timed import StepCosts, TimedEngine, completion
from cluster.node import EngineDied, EngineReport, Event, Insert, ModelFailed, ModelLoaded, SequenceProgress
from cluster.policy import WorkerPolicy
from tests.cluster import QUICK

TICK_S = 2.0**-16
COSTS = StepCosts(
    load_s=2_000 * TICK_S,
    step_s=160 * TICK_S,
    decode_each_s=20 * TICK_S,
    prefill_each_s=2 * TICK_S,
    vocabulary=97,
    kv_bytes_per_token=10,
    weights_bytes=1_000,
)
FLUSH_S = 3_000 * TICK_S
BATCH_MAX = 3
CHUNK = 4
POLICY = WorkerPolicy(batch_max=BATCH_MAX, prefill_batch_max=2, prefill_step_tokens=CHUNK)


class Act(NamedTuple):
    """Something that the shell does at a tick. A sequence is kept under its own number if at all."""

    at: int
    what: str
    sequence: int = 0
    length: int = 1
    most: int = 1
    model: str = "a"
    cache: int | None = None
    cached: int = 0
    keep: bool = False


LOADED = Act(-4_000, "load")
"""Long enough before tick 0 that the model is there."""


class Stream:
    """A sequence as Plain sees it."""

    def __init__(self, act: Act, cached: int) -> None:
        self.act, self.cached = act, cached
        self.prompt = prompt(act)
        self.unread = len(self.prompt) - cached
        self.made: list[int] = []
        self.news: tuple[list[int], list[float]] = ([], [])
        self.told = False


class Plain:
    """The law, written down as it is said: one step at a time, nothing skipped."""

    def __init__(self) -> None:
        self.models: list[str] = []
        self.reading: list[Stream] = []
        self.decoding: list[Stream] = []
        self.kept: dict[int, tuple[str, int]] = {}
        self.commands: list[Act] = []
        self.loading: str | None = None
        self.stepping: str | None = None
        self.chunks: list[tuple[Stream, int]] = []
        self.end_s: float | None = None
        self.begun_s = 0.0
        self.reported_s = 0.0
        self.work = EngineReport(())
        self.refused: list[SequenceProgress] = []
        self.loaded: list[Event] = []

    def act(self, act: Act, now: float) -> None:
        self.commands.append(act)
        if self.end_s is None:
            self.reported_s = now
            self.apply()
            self.begin(now)

    def apply(self) -> None:
        while self.commands and self.loading is None:
            act = self.commands.pop(0)
            if act.what == "load":
                if act.model in self.models:
                    self.loaded.append(loaded(act.model))
                else:
                    self.loading = act.model
            elif act.what == "unload" and act.model in self.models:
                self.models.remove(act.model)
                for stream in [*self.decoding, *self.reading]:
                    if stream.act.model == act.model:
                        self.refused.append(SequenceProgress(stream.act.sequence, (), (), "error"))
                        self.leave(stream.act.sequence)
                self.kept = {number: kept for number, kept in self.kept.items() if kept[0] != act.model}
            elif act.what == "insert":
                if act.model not in self.models:
                    self.refused.append(SequenceProgress(act.sequence, (), (), "error"))
                else:
                    known = act.cache in self.kept and self.kept[act.cache][0] == act.model
                    self.reading.append(Stream(act, act.cached if known else 0))
            elif act.what == "remove":
                self.leave(act.sequence)
            elif act.what == "drop":
                self.kept.pop(act.sequence, None)

    def leave(self, sequence: int) -> None:
        self.decoding = [other for other in self.decoding if other.act.sequence != sequence]
        self.reading = [other for other in self.reading if other.act.sequence != sequence]

    def begin(self, now: float) -> None:
        """A step costs its decodes and its one chunk of prompts; without either there is none. Models take turns."""
        self.begun_s, self.stepping, self.end_s = now, None, None
        if self.loading is not None:
            self.end_s = now + COSTS.load_s
            return
        busy = [name for name in self.models if any(s.act.model == name for s in [*self.decoding, *self.reading])]
        if not busy:
            self.end_s = now if self.refused or self.loaded else None
            return
        name = self.stepping = busy[0]
        self.models.remove(name)
        self.models.append(name)
        batch = sum(stream.act.model == name for stream in self.decoding)
        joining = [stream for stream in self.reading if stream.act.model == name][: min(BATCH_MAX - batch, 2)]
        left, self.chunks = CHUNK, []
        for stream in joining:
            self.chunks.append((stream, min(left, stream.unread)))
            left -= self.chunks[-1][1]
        read_s = sum(count for _, count in self.chunks) * COSTS.prefill_each_s
        self.end_s = now + COSTS.step_s + batch * COSTS.decode_each_s + read_s

    def step(self, now: float) -> tuple[bool, list[Stream]]:
        first, ended = False, []
        batch = [stream for stream in self.decoding if stream.act.model == self.stepping]
        for stream in batch:
            first = first or not stream.made
            token = completion([*stream.prompt, *stream.made], 1, COSTS.vocabulary)[0]
            stream.made.append(token)
            stream.news[0].append(token)
            stream.news[1].append(now)
            if len(stream.made) == stream.act.most:
                ended.append(stream)
        read = 0
        for stream, count in self.chunks:
            stream.unread -= count
            read += count
        self.decoding += [stream for stream in self.reading if not stream.unread]
        self.reading = [stream for stream in self.reading if stream.unread]
        read_s = read * COSTS.prefill_each_s + (0 if batch else COSTS.step_s)
        decode_s = now - self.begun_s - read_s if batch else 0.0
        work = self.work
        self.work = EngineReport(
            (), work.steps + bool(batch), work.decode_s + decode_s, work.prefill_tokens + read, work.prefill_s + read_s
        )
        return first, ended

    def advance(self) -> list[Event]:
        now = self.end_s
        assert now is not None
        due, ended = False, list[Stream]()
        if self.loading is not None:
            self.models.append(self.loading)
            self.loaded.append(loaded(self.loading))
            self.loading = None
        elif self.stepping is not None:
            first, ended = self.step(now)
            due = first or bool(ended) or now - self.reported_s >= FLUSH_S
        self.apply()
        events, self.loaded = self.loaded, []
        if due or self.refused or self.loading is not None:
            report = self.report(ended, now)
            events += [report] if report is not None else []
        self.begin(now)
        return events

    def report(self, ended: list[Stream], now: float) -> EngineReport | None:
        progress, self.refused = self.refused, []
        for stream in list(self.decoding):
            tokens, times_s = stream.news
            act, stream.news = stream.act, ([], [])
            if not tokens:
                continue
            finish = "length" if stream in ended else None
            kept = len(stream.prompt) + len(stream.made) if finish and act.keep else 0
            if kept:
                self.kept[act.sequence] = (act.model, kept)
            cached = 0 if stream.told else stream.cached
            stream.told = True
            progress.append(
                SequenceProgress(act.sequence, tuple(tokens), tuple(times_s), finish, cached, kept, kept * 10)
            )
            if finish:
                self.leave(act.sequence)
        if not progress:
            return None
        progress.sort(key=lambda part: part.sequence)
        held = [len(s.prompt) - s.unread + len(s.made) for s in [*self.decoding, *self.reading]]
        active = len(self.models) * 1_000 + 10 * (sum(held) + sum(kept for _, kept in self.kept.values()))
        work, self.work, self.reported_s = self.work, EngineReport(()), now
        return EngineReport(
            tuple(progress), work.steps, work.decode_s, work.prefill_tokens, work.prefill_s, active_bytes=active
        )


def loaded(model: str) -> ModelLoaded:
    first_token_s = COSTS.step_s + COSTS.decode_each_s
    return ModelLoaded(model, COSTS.load_s, 10, 1_000, COSTS.load_s - first_token_s, first_token_s)


def prompt(act: Act) -> list[int]:
    """Every other sequence begins alike."""
    return [(act.sequence % 2 * 7 + at) % 50 for at in range(act.length)]


def command(engine: TimedEngine, act: Act, now: float) -> None:
    match act.what:
        case "insert":
            keep_as = act.sequence if act.keep else None
            engine.insert(
                Insert(
                    act.sequence,
                    act.model,
                    tuple(prompt(act)),
                    act.most,
                    cache=act.cache,
                    cached_tokens=act.cached,
                    keep_as=keep_as,
                ),
                now,
            )
        case "remove":
            engine.remove(act.sequence, now)
        case "drop":
            engine.drop_cache(act.sequence, now)
        case "load":
            engine.load(act.model, now)
        case "unload":
            engine.unload(act.model, now)


def run_plain(acts: Sequence[Act]) -> list[tuple[float, list[Event]]]:
    engine, told = Plain(), list[tuple[float, list[Event]]]()

    def steps_until(now: float) -> None:
        while engine.end_s is not None and engine.end_s <= now:
            at = engine.end_s
            events = engine.advance()
            if events:
                told.append((at, events))

    for act in [LOADED, *acts]:
        steps_until(act.at * TICK_S)
        engine.act(act, act.at * TICK_S)
    steps_until(1e9)
    return told


def run_timed(acts: Sequence[Act], late_s: float = 0.0) -> list[tuple[float, list[Event]]]:
    engine, told = TimedEngine(COSTS, POLICY, FLUSH_S), list[tuple[float, list[Event]]]()

    def steps_until(now: float) -> None:
        while (end_s := engine.next_time()) is not None and end_s <= now:
            assert not engine.advance(end_s - TICK_S), "not before its time"
            assert engine.next_time() == end_s
            events = engine.advance(end_s + late_s)
            if events:
                told.append((end_s, events))

    for act in [LOADED, *acts]:
        steps_until(act.at * TICK_S)
        command(engine, act, act.at * TICK_S)
    steps_until(1e9)
    assert engine.next_time() is None
    return told


def reports(told: list[tuple[float, list[Event]]]) -> list[tuple[float, EngineReport]]:
    return [(at, event) for at, events in told for event in events if isinstance(event, EngineReport)]


TICKS = st.integers(0, 40_000)
MODELS = st.sampled_from(["a", "a", "a", "b"])
INSERTS = st.builds(
    Act, TICKS, st.just("insert"), st.just(0), st.integers(1, 14), st.integers(1, 60), MODELS, keep=st.booleans()
)
REMOVES = st.builds(Act, st.integers(0, 60_000), st.sampled_from(["remove", "drop"]), st.integers(1, 7))
LOADS = st.builds(Act, st.integers(0, 60_000), st.sampled_from(["load", "load", "unload"]), model=MODELS)


@st.composite
def plans(draw: st.DrawFn) -> list[Act]:
    inserts = sorted(draw(st.lists(INSERTS, min_size=1, max_size=7)), key=lambda act: act.at)
    numbered = [act._replace(sequence=number) for number, act in enumerate(inserts, 1)]
    for number, act in enumerate(numbered):
        # Perhaps from the cache of an earlier one that begins alike, if it has one by then.
        cache = act.sequence - 2 * draw(st.integers(0, 3))
        if 0 < cache < act.sequence:
            shared = min(act.length - 1, numbered[cache - 1].length)
            numbered[number] = act._replace(cache=cache, cached=draw(st.integers(0, shared)))
    others = [*draw(st.lists(REMOVES, max_size=4)), *draw(st.lists(LOADS, max_size=3))]
    return sorted([*numbered, *others], key=lambda act: act.at)


@QUICK
@given(plans())
def test_skipping_ahead_changes_neither_tokens_nor_times_nor_reports(acts: list[Act]) -> None:
    assert run_timed(acts) == run_plain(acts)


@QUICK
@given(plans(), st.floats(0, 0.01))
def test_a_shell_that_comes_late_changes_nothing(acts: list[Act], late_s: float) -> None:
    assert run_timed(acts, late_s) == run_timed(acts)


@QUICK
@given(plans())
def test_each_stream_is_a_prefix_of_its_completion_and_whole_unless_it_was_removed(acts: list[Act]) -> None:
    made: dict[int, list[int]] = {}
    times_s: dict[int, list[float]] = {}
    failed: list[int] = []
    for at, report in reports(run_timed(acts)):
        for part in report.progress:
            if part.finish == "error":
                failed.append(part.sequence)
                continue
            assert part.tokens
            assert len(part.tokens) == len(part.times_s)
            assert part.times_s[-1] <= at
            made.setdefault(part.sequence, []).extend(part.tokens)
            times_s.setdefault(part.sequence, []).extend(part.times_s)
    removed = {act.sequence for act in acts if act.what == "remove"}
    for act in acts:
        if act.what != "insert":
            continue
        whole = completion(prompt(act), act.most, COSTS.vocabulary)
        got = made.get(act.sequence, [])
        assert got == whole[: len(got)]
        assert times_s.get(act.sequence, []) == sorted(set(times_s.get(act.sequence, [])))
        if act.sequence not in removed and act.sequence not in failed:
            assert len(got) == act.most


def test_the_first_token_comes_in_the_step_after_the_one_that_ended_the_prompt() -> None:
    """Nine prompt tokens are three chunks of four; then one decode."""
    ((at, report), *_) = reports(run_timed([Act(0, "insert", 1, 9, 5)]))
    assert at == (3 * 160 + 9 * 2 + 180) * TICK_S
    assert (report.steps, report.prefill_tokens) == (1, 9)
    assert (report.decode_s, report.prefill_s) == (180 * TICK_S, (3 * 160 + 9 * 2) * TICK_S)
    assert [(len(part.tokens), part.times_s) for part in report.progress] == [(1, (at,))]


def test_a_running_stream_goes_on_while_another_prompt_is_read_and_pays_for_it() -> None:
    told = reports(run_timed([Act(0, "insert", 1, 1, 9), Act(200, "insert", 2, 8, 2)]))
    first = [time_s for _, report in told for part in report.progress if part.sequence == 1 for time_s in part.times_s]
    steps = [round((later - earlier) / TICK_S) for earlier, later in pairwise(first)]
    assert steps[:4] == [188, 188, 200, 200], "two chunks of prompt beside it, then two in the batch"


def test_a_sequence_waits_while_the_batch_is_full_and_joins_when_one_ends() -> None:
    acts = [Act(0, "insert", number, 1, 4) for number in range(1, BATCH_MAX + 1)]
    told = reports(run_timed([*acts, Act(1, "insert", 9, 1, 2)]))
    ends = {part.sequence: at for at, report in told for part in report.progress if part.finish}
    begins = [at for at, report in told for part in report.progress if part.sequence == 9]
    assert begins[0] > ends[1]


@pytest.mark.parametrize("slowdown", [1.0, 8.0])
def test_a_slowdown_multiplies_every_step(slowdown: float) -> None:
    engine = TimedEngine(COSTS, POLICY, FLUSH_S)
    engine.slowdown = slowdown
    engine.load("a", 0.0)
    assert engine.next_time() == slowdown * COSTS.load_s
    engine.advance(slowdown * COSTS.load_s)
    engine.insert(Insert(1, "a", (1,), 3), 1.0)
    assert engine.next_time() == 1.0 + slowdown * (160 + 2) * TICK_S


@QUICK
@given(st.lists(st.integers(0, 300), min_size=1, max_size=20), st.integers(1, 40), st.data())
def test_a_completion_goes_on_alike_from_any_prefix(words: list[int], most: int, data: st.DataObject) -> None:
    whole = completion(words, most, 512)
    assert len(whole) == most
    assert all(0 <= token < 512 for token in whole)
    cut = data.draw(st.integers(0, most))
    assert completion([*words, *whole[:cut]], most - cut, 512) == whole[cut:]


def test_completions_depend_on_the_whole_prompt() -> None:
    base = list(range(40))
    others = [[*base[:at], base[at] + 1, *base[at + 1 :]] for at in range(40)]
    assert len({tuple(completion(words, 8, 512)) for words in [base, *others]}) == 41


def test_the_first_token_is_the_checksum_of_the_prompt() -> None:
    """The oracle that checkers believe, computed by other means."""
    assert completion([3, 1, 4], 1, 512) == [crc32(array("I", [3, 1, 4]).tobytes()) % 512]


def test_what_a_cache_holds_is_not_read_again() -> None:
    """Nine tokens of prompt, then five made: the next turn has all but one of its fifteen already."""
    first = Act(0, "insert", 1, 9, 5, keep=True)
    (*_, (_, told)) = reports(run_timed([first]))
    assert (told.progress[0].kept_tokens, told.progress[0].kept_bytes) == (14, 140)
    engine = TimedEngine(COSTS, POLICY, FLUSH_S)
    engine.load("a", 0.0)
    history = (*prompt(first), *completion(prompt(first), 5, 97))
    made, prefilled, cached = list[int](), 0, 0
    for command in [
        Insert(1, "a", history[:9], 5, keep_as=7),
        Insert(2, "a", (*history, 3), 4, cache=7, cached_tokens=14),
    ]:
        engine.insert(command, engine.next_time() or 1.0)
        while (end_s := engine.next_time()) is not None:
            for event in engine.advance(end_s):
                if isinstance(event, EngineReport) and event.progress[0].sequence == 2:
                    made += event.progress[0].tokens
                    prefilled += event.prefill_tokens
                    cached += event.progress[0].cached_tokens
    assert (prefilled, cached) == (1, 14)
    assert made == completion([*history, 3], 4, 97)


def test_a_wrong_cache_makes_wrong_tokens() -> None:
    """Otherwise no test could see that a worker has chosen one."""
    other = Act(0, "insert", 1, 9, 5, keep=True)
    told = reports(run_timed([other, Act(9_000, "insert", 2, 9, 5, cache=1, cached=8)]))
    made = [token for _, report in told for part in report.progress if part.sequence == 2 for token in part.tokens]
    assert made != completion(prompt(Act(0, "insert", 2, 9)), 5, 97)


def test_an_unknown_or_dropped_cache_saves_nothing() -> None:
    acts = [
        Act(0, "insert", 1, 9, 5, keep=True),
        Act(8_000, "drop", 1),
        Act(9_000, "insert", 3, 9, 5, cache=1, cached=8),
        Act(18_000, "insert", 5, 9, 5, cache=77, cached=8),
    ]
    for _, report in reports(run_timed(acts)):
        assert [part.cached_tokens for part in report.progress] == [0]


def test_prompts_share_one_budget_and_the_first_come_first() -> None:
    """Six and six tokens at four a step: the first is read after two steps, and leaves two to the second by then."""
    told = reports(run_timed([Act(0, "insert", 1, 6, 9), Act(0, "insert", 2, 6, 9)]))
    begins = {}
    for _, report in told:
        for part in report.progress:
            begins.setdefault(part.sequence, round(part.times_s[0] / TICK_S))
    assert begins[1] == (160 + 8) + (160 + 8) + (180 + 8)
    assert begins[2] == begins[1] + 2 * 20 + 160


def test_a_load_stops_all_streams_and_what_they_had_is_told_before() -> None:
    acts = [Act(0, "insert", 1, 1, 60), Act(1_000, "load", model="b"), Act(1_001, "insert", 2, 1, 2, "b")]
    told = run_timed(acts)
    at = next(at for at, events in told if any(isinstance(e, ModelLoaded) and e.model == "b" for e in events))
    times_s = [t for _, report in reports(told) for part in report.progress for t in part.times_s]
    begin_s = at - COSTS.load_s
    assert not [t for t in times_s if begin_s < t < at]
    assert any(end_s == begin_s for end_s, _ in reports(told)), "the report comes before the pause"
    assert begin_s in times_s
    seconds = [t for _, report in reports(told) for part in report.progress if part.sequence == 2 for t in part.times_s]
    assert seconds[0] > at


def test_an_insert_for_a_model_that_is_not_there_ends_at_once() -> None:
    ((_, report),) = reports(run_timed([Act(5, "insert", 1, 3, 3, "b")]))
    assert report.progress == (SequenceProgress(1, (), (), "error"),)


def test_a_broken_model_fails_and_a_dead_engine_says_nothing_more() -> None:
    engine = TimedEngine(COSTS, POLICY, FLUSH_S)
    engine.broken["b"] = "no such file"
    engine.load("b", 0.0)
    assert engine.advance(COSTS.load_s) == [ModelFailed("b", "no such file")]
    engine.load("a", 1.0)
    engine.advance(1.0 + COSTS.load_s)
    engine.insert(Insert(1, "a", (1, 2), 9), 2.0)
    assert engine.die("a signal") == EngineDied("a signal")
    assert engine.next_time() is None
    engine.insert(Insert(2, "a", (1, 2), 9), 3.0)
    assert engine.next_time() is None
    assert engine.advance(9.0) == []


def test_a_cache_serves_its_own_model_only_and_goes_with_it() -> None:
    first = Act(0, "insert", 1, 9, 5, keep=True)
    again = Act(20_000, "insert", 3, 9, 5, cache=1, cached=8)
    other = [Act(8_000, "load", model="b"), again._replace(model="b")]
    reloaded = [Act(8_000, "unload"), Act(9_000, "load"), again]
    for acts, cached in [([again], 8), (other, 0), (reloaded, 0)]:
        told = reports(run_timed([first, *acts]))
        assert sum(part.cached_tokens for _, report in told for part in report.progress) == cached


def test_models_take_turns_step_by_step() -> None:
    acts = [Act(0, "load", model="b"), Act(9_000, "insert", 1, 1, 9), Act(9_000, "insert", 2, 1, 9, "b")]
    assert run_timed(acts) == run_plain(acts)
    steps = sorted(
        (time_s, part.sequence)
        for _, report in reports(run_timed(acts))
        for part in report.progress
        for time_s in part.times_s
    )
    assert [sequence for _, sequence in steps] == [1, 2] * 9
