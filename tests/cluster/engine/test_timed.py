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
from cluster.node import EngineReport, SequenceProgress
from tests.cluster import QUICK

TICK_S = 2.0**-16
COSTS = StepCosts(step_s=160 * TICK_S, decode_each_s=20 * TICK_S, prefill_each_s=2 * TICK_S, vocabulary=97)
FLUSH_S = 3_000 * TICK_S
BATCH_MAX = 3
CHUNK = 4


class Act(NamedTuple):
    """Something that the shell does at a tick."""

    at: int
    what: str
    sequence: int
    length: int = 1
    most: int = 1


class Plain:
    """The law, written down as it is said: one step at a time, nothing skipped."""

    def __init__(self, costs: StepCosts, batch_max: int, chunk: int, flush_s: float) -> None:
        self.costs, self.batch_max, self.chunk, self.flush_s = costs, batch_max, chunk, flush_s
        self.prompts: dict[int, list[int]] = {}
        self.unread: dict[int, int] = {}
        self.made: dict[int, list[int]] = {}
        self.wanted: dict[int, int] = {}
        self.decoding: list[int] = []
        self.reading: list[int] = []
        self.news: dict[int, tuple[list[int], list[float]]] = {}
        self.commands: list[Act] = []
        self.end_s: float | None = None
        self.reported_s = 0.0
        self.steps = 0

    def act(self, act: Act, now: float) -> None:
        self.commands.append(act)
        if self.end_s is None:
            self.reported_s = now
            self.apply()
            self.begin(now)

    def apply(self) -> None:
        for act in self.commands:
            if act.what == "insert":
                self.prompts[act.sequence] = prompt(act)
                self.unread[act.sequence], self.wanted[act.sequence] = act.length, act.most
                self.made[act.sequence] = []
                self.reading.append(act.sequence)
            else:
                self.leave(act.sequence)
        self.commands.clear()

    def leave(self, sequence: int) -> None:
        self.news.pop(sequence, None)
        self.decoding = [other for other in self.decoding if other != sequence]
        self.reading = [other for other in self.reading if other != sequence]

    def joining(self) -> list[int]:
        return self.reading[: self.batch_max - len(self.decoding)]

    def begin(self, now: float) -> None:
        """A step costs its decodes and its one chunk of prompts; without either there is none."""
        joining = self.joining()
        if not self.decoding and not joining:
            self.end_s = None
            return
        costs, read = self.costs, sum(min(self.chunk, self.unread[sequence]) for sequence in joining)
        self.end_s = now + costs.step_s + len(self.decoding) * costs.decode_each_s + read * costs.prefill_each_s

    def advance(self) -> EngineReport | None:
        now = self.end_s
        assert now is not None
        joining, first, ended = self.joining(), False, []
        for sequence in self.decoding:
            made = self.made[sequence]
            first = first or not made
            token = completion([*self.prompts[sequence], *made], 1, self.costs.vocabulary)[0]
            made.append(token)
            tokens, times_s = self.news.setdefault(sequence, ([], []))
            tokens.append(token)
            times_s.append(now)
            if len(made) == self.wanted[sequence]:
                ended.append(sequence)
        for sequence in joining:
            self.unread[sequence] -= min(self.chunk, self.unread[sequence])
        self.decoding += [sequence for sequence in joining if not self.unread[sequence]]
        self.reading = [sequence for sequence in self.reading if self.unread[sequence]]
        self.steps += 1
        self.apply()
        report = None
        if first or ended or now - self.reported_s >= self.flush_s:
            progress = tuple(
                SequenceProgress(sequence, tuple(tokens), tuple(times_s), "length" if sequence in ended else None)
                for sequence in self.decoding
                for tokens, times_s in [self.news.pop(sequence, ([], []))]
                if tokens
            )
            report = EngineReport(progress, self.steps) if progress else None
            self.steps, self.reported_s = 0, now
        for sequence in ended:
            self.leave(sequence)
        self.begin(now)
        return report


def prompt(act: Act) -> list[int]:
    return [(act.sequence * 7 + at) % 50 for at in range(act.length)]


def command(engine: TimedEngine, act: Act, now: float) -> None:
    if act.what == "insert":
        engine.insert(act.sequence, prompt(act), act.most, now)
    else:
        engine.remove(act.sequence, now)


def run_plain(acts: Sequence[Act]) -> list[tuple[float, EngineReport]]:
    engine, reports = Plain(COSTS, BATCH_MAX, CHUNK, FLUSH_S), list[tuple[float, EngineReport]]()

    def steps_until(now: float) -> None:
        while engine.end_s is not None and engine.end_s <= now:
            at = engine.end_s
            report = engine.advance()
            if report is not None:
                reports.append((at, report))

    for act in acts:
        steps_until(act.at * TICK_S)
        engine.act(act, act.at * TICK_S)
    steps_until(1e9)
    return reports


def run_timed(acts: Sequence[Act], late_s: float = 0.0) -> list[tuple[float, EngineReport]]:
    engine, reports = TimedEngine(COSTS, BATCH_MAX, CHUNK, FLUSH_S), list[tuple[float, EngineReport]]()

    def steps_until(now: float) -> None:
        while (end_s := engine.next_time()) is not None and end_s <= now:
            assert engine.advance(end_s - TICK_S) is None, "not before its time"
            assert engine.next_time() == end_s
            report = engine.advance(end_s + late_s)
            if report is not None:
                reports.append((end_s, report))

    for act in acts:
        steps_until(act.at * TICK_S)
        command(engine, act, act.at * TICK_S)
    steps_until(1e9)
    assert engine.next_time() is None
    return reports


INSERTS = st.builds(Act, st.integers(0, 40_000), st.just("insert"), st.just(0), st.integers(1, 14), st.integers(1, 60))
REMOVES = st.builds(Act, st.integers(0, 60_000), st.just("remove"), st.integers(1, 7))


@st.composite
def plans(draw: st.DrawFn) -> list[Act]:
    inserts = sorted(draw(st.lists(INSERTS, min_size=1, max_size=7)))
    numbered = [act._replace(sequence=number) for number, act in enumerate(inserts, 1)]
    return sorted([*numbered, *draw(st.lists(REMOVES, max_size=4))], key=lambda act: act.at)


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
    for at, report in run_timed(acts):
        for part in report.progress:
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
        if act.sequence not in removed:
            assert len(got) == act.most


def test_the_first_token_comes_in_the_step_after_the_one_that_ended_the_prompt() -> None:
    """Nine prompt tokens are three chunks of four; then one decode."""
    ((at, report), *_) = run_timed([Act(0, "insert", 1, 9, 5)])
    assert at == (3 * 160 + 9 * 2 + 180) * TICK_S
    assert report.steps == 4
    assert [(len(part.tokens), part.times_s) for part in report.progress] == [(1, (at,))]


def test_a_running_stream_goes_on_while_another_prompt_is_read_and_pays_for_it() -> None:
    reports = run_timed([Act(0, "insert", 1, 1, 9), Act(200, "insert", 2, 8, 2)])
    first = [
        time_s for _, report in reports for part in report.progress if part.sequence == 1 for time_s in part.times_s
    ]
    steps = [round((later - earlier) / TICK_S) for earlier, later in pairwise(first)]
    assert steps[:4] == [188, 188, 200, 200], "two chunks of prompt beside it, then two in the batch"


def test_a_sequence_waits_while_the_batch_is_full_and_joins_when_one_ends() -> None:
    acts = [Act(0, "insert", number, 1, 4) for number in range(1, BATCH_MAX + 1)]
    reports = run_timed([*acts, Act(1, "insert", 9, 1, 2)])
    ends = {part.sequence: at for at, report in reports for part in report.progress if part.finish}
    begins = [at for at, report in reports for part in report.progress if part.sequence == 9]
    assert begins[0] > ends[1]


@pytest.mark.parametrize("slowdown", [1.0, 8.0])
def test_a_slowdown_multiplies_every_step(slowdown: float) -> None:
    engine = TimedEngine(COSTS, BATCH_MAX, CHUNK, FLUSH_S)
    engine.slowdown = slowdown
    engine.insert(1, [1], 3, 0.0)
    assert engine.next_time() == slowdown * (160 + 2) * TICK_S


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
