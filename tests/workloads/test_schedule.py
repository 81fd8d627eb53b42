"""The load's plan: its times, its chats, and that neither depends on what it should not."""

import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from workloads.lengths import Lengths, length_limits
from workloads.schedule import ScheduledRequest, build_schedule, schedule_rows, split, unique_prompts
from workloads.spec import WorkloadSpec
from workloads.vocabulary import ByteVocabulary

WORDS = ByteVocabulary()
quick = settings(max_examples=40, deadline=None)
seeds = st.integers(min_value=0, max_value=2**64)
ranges = st.tuples(st.integers(1, 20), st.integers(0, 20)).map(lambda pair: (pair[0], sum(pair)))
specs = st.builds(
    WorkloadSpec,
    arrivals=st.sampled_from(["poisson", "constant"]),
    sessions=st.integers(1, 6),
    turns_max=st.integers(1, 5),
    prompt_tokens=ranges,
    output_tokens=ranges,
)


def plan(spec: WorkloadSpec, seed: int, rate_per_s: float = 20, duration_s: float = 4) -> list[ScheduledRequest]:
    return build_schedule(spec, rate_per_s, duration_s, seed, WORDS)


def within(lengths: Lengths, length: int) -> bool:
    least, most = length_limits(lengths)
    return least <= length <= most


def chats(schedule: list[ScheduledRequest]) -> dict[str, list[ScheduledRequest]]:
    found: dict[str, list[ScheduledRequest]] = {}
    for request in schedule:
        found.setdefault(request.session_id, []).append(request)
    return found


@quick
@given(specs, seeds)
def test_times_ascend_within_the_load_and_ids_are_unique(spec: WorkloadSpec, seed: int) -> None:
    schedule = plan(spec, seed)
    times = [request.intended_s for request in schedule]
    assert times == sorted(times)
    assert all(0 <= time_s < 4 for time_s in times)
    assert len({request.request_id for request in schedule}) == len(schedule)
    if spec.arrivals == "constant":
        assert len(schedule) == 80


@quick
@given(specs, seeds)
def test_one_seed_makes_one_schedule(spec: WorkloadSpec, seed: int) -> None:
    assert plan(spec, seed) == plan(spec, seed)
    assert plan(spec, seed) != plan(spec, seed + 1)


@quick
@given(specs, seeds, st.floats(1, 200), st.floats(0.5, 5))
def test_what_is_asked_depends_on_neither_rate_nor_duration(
    spec: WorkloadSpec, seed: int, rate_per_s: float, duration_s: float
) -> None:
    def asked(schedule: list[ScheduledRequest]) -> list[tuple[str, str, int, tuple[int, ...], int]]:
        return [(r.request_id, r.prompt_id, r.turn, r.prompt, r.max_tokens) for r in schedule]

    one, other = asked(plan(spec, seed)), asked(plan(spec, seed, rate_per_s, duration_s))
    common = min(len(one), len(other))
    assert one[:common] == other[:common]


@quick
@given(specs, seeds)
def test_arrivals_do_not_change_what_is_asked(spec: WorkloadSpec, seed: int) -> None:
    poisson = plan(WorkloadSpec(sessions=spec.sessions, arrivals="poisson"), seed)
    constant = plan(WorkloadSpec(sessions=spec.sessions, arrivals="constant"), seed)
    assert all(one.prompt == other.prompt for one, other in zip(poisson, constant, strict=False))


@quick
@given(specs, seeds)
def test_a_chat_grows_turn_by_turn_and_ends(spec: WorkloadSpec, seed: int) -> None:
    markers = WORDS.markers
    for session_id, requests in chats(plan(spec, seed)).items():
        assert [request.turn for request in requests] == list(range(len(requests)))
        assert len(requests) <= spec.turns_max
        for request in requests:
            assert request.prompt_id == f"{session_id}t{request.turn}"
            assert within(spec.output_tokens, request.max_tokens)
        for before, after in pairwise(requests):
            assert after.prompt[: len(before.prompt)] == before.prompt
            added = len(after.prompt) - len(before.prompt)
            message = added - before.max_tokens - len(markers.before_next) - len(markers.before_reply)
            assert within(spec.prompt_tokens, message)


@quick
@given(specs, seeds)
def test_no_more_chats_than_sessions_run_side_by_side(spec: WorkloadSpec, seed: int) -> None:
    running: set[str] = set()
    for request in plan(spec, seed):
        running.add(request.session_id)
        assert len(running) <= spec.sessions
        if request.turn == spec.turns_max - 1:
            running.remove(request.session_id)


@quick
@given(specs, seeds, st.integers(0, 60))
def test_a_long_chat_forgets_its_oldest_messages(spec: WorkloadSpec, seed: int, spare: int) -> None:
    context = len(WORDS.markers.before_first) + length_limits(spec.prompt_tokens)[1] + len(WORDS.markers.before_reply)
    context += length_limits(spec.output_tokens)[1] + spare
    bounded = build_schedule(spec, 20, 4, seed, WORDS, context_max_tokens=context)
    for short, whole in zip(bounded, plan(spec, seed), strict=True):
        assert len(short.prompt) + short.max_tokens <= context
        assert short.prompt[0] == whole.prompt[0]
        assert short.prompt[1:] == whole.prompt[len(whole.prompt) - len(short.prompt) + 1 :]
        if len(whole.prompt) + whole.max_tokens <= context:
            assert short.prompt == whole.prompt


def test_poisson_arrivals_have_the_rate_and_the_spread() -> None:
    times = np.array([request.intended_s for request in plan(WorkloadSpec(), 5, rate_per_s=50, duration_s=100)])
    gaps = np.diff(times)
    assert len(times) == pytest.approx(5000, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(1, rel=0.05)


def test_constant_arrivals_are_even() -> None:
    gaps = np.diff([request.intended_s for request in plan(WorkloadSpec(arrivals="constant"), 5)])
    assert gaps == pytest.approx(np.full(79, 0.05))


@pytest.mark.parametrize(
    ("rate_per_s", "duration_s", "complaint"),
    [(0, 1, "positive"), (1, 0, "positive"), (float("nan"), 1, "positive"), (1e6, 2, "more than 1000000")],
)
def test_impossible_loads_are_refused(rate_per_s: float, duration_s: float, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        plan(WorkloadSpec(), 1, rate_per_s, duration_s)


def test_a_message_that_no_context_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="can take 91 tokens, the context holds 90"):
        build_schedule(WorkloadSpec(), 1, 1, 1, WORDS, context_max_tokens=90)


@quick
@given(specs, seeds, st.integers(1, 5))
def test_a_session_stays_with_one_generator(spec: WorkloadSpec, seed: int, generators: int) -> None:
    schedule = plan(spec, seed)
    parts = split(schedule, generators)
    assert len(parts) == generators
    assert sorted((r for part in parts for r in part), key=lambda r: r.request_id) == schedule
    owners = [{request.session_id for request in part} for part in parts]
    assert sum(map(len, owners)) == len(set().union(*owners))
    assert all(part == sorted(part, key=lambda r: r.intended_s) for part in parts)


def test_what_names_its_generator_goes_there_and_everything_else_is_dealt_as_ever() -> None:
    free = plan(WorkloadSpec(), 3)
    bound = [
        replace(one, request_id=f"b{place}", session_id=f"b{place}", generator=2) for place, one in enumerate(free)
    ]
    parts = split([*bound, *free], 3)
    assert [request.request_id for request in parts[2][: len(bound)]] == [request.request_id for request in bound]
    assert [[one for one in part if one.generator is None] for part in parts] == split(free, 3)


def test_split_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="at least one generator"):
        split([], 0)


def test_rows_and_prompts_match_the_schedule() -> None:
    schedule = plan(WorkloadSpec(), 3)
    rows = schedule_rows(schedule)
    assert rows.column_names == [
        "request_id", "intended_s", "session_id", "turn", "prompt_id", "prompt_tokens", "max_tokens", "arm",
        "worker", "block", "segment",
    ]  # fmt: skip
    assert rows["prompt_tokens"].to_pylist() == [len(request.prompt) for request in schedule]
    assert schedule_rows([]).schema == rows.schema
    prompts = unique_prompts(schedule)
    assert prompts == {request.prompt_id: (request.prompt, request.max_tokens) for request in schedule}


def test_a_prompt_asked_twice_needs_its_longest_completion() -> None:
    once = ScheduledRequest("r0", 0.0, "s0", 0, "s0t0", (1, 2), 7)
    again = ScheduledRequest("r1", 1.0, "s0", 0, "s0t0", (1, 2), 5)
    assert unique_prompts([once, again]) == {"s0t0": ((1, 2), 7)}


def test_the_hash_seed_of_python_changes_nothing() -> None:
    program = (
        "import hashlib; from workloads.schedule import build_schedule; from workloads.spec import WorkloadSpec;"
        "from workloads.vocabulary import ByteVocabulary;"
        "print(hashlib.sha256(repr(build_schedule(WorkloadSpec(), 30, 3, 7, ByteVocabulary())).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1
