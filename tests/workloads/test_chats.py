"""Think times and shared system prompts."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.arrivals import Stretch
from workloads.lengths import Lognormal, Times, time_limits
from workloads.schedule import ScheduledRequest, build_schedule, first_requests
from workloads.spec import SystemPrompts, WorkloadSpec
from workloads.vocabulary import ByteVocabulary, ChatMarkers

WORDS = ByteVocabulary()
quick = settings(max_examples=30, deadline=None)
thinks: st.SearchStrategy[Times] = st.one_of(
    st.floats(0, 4),
    st.tuples(st.floats(0, 2), st.floats(2, 4)),
    st.just(Lognormal(mean=2, cv=1, most=9)),
)


def chats(schedule: list[ScheduledRequest]) -> dict[str, list[ScheduledRequest]]:
    found: dict[str, list[ScheduledRequest]] = {}
    for request in schedule:
        found.setdefault(request.session_id, []).append(request)
    return found


@quick
@given(thinks, st.integers(1, 6), st.integers(0, 2**32))
def test_a_turn_comes_a_think_time_after_the_one_before(think_s: Times, turns_max: int, seed: int) -> None:
    schedule = build_schedule(WorkloadSpec(think_s=think_s, turns_max=turns_max), 10, 12, seed, WORDS)
    times = [request.intended_s for request in schedule]
    assert times == sorted(times)
    assert all(0 <= time_s < 12 for time_s in times)
    assert [request.request_id for request in schedule] == [f"r{number:06d}" for number in range(len(schedule))]
    least_s, most_s = time_limits(think_s)
    for requests in chats(schedule).values():
        assert [request.turn for request in requests] == list(range(len(requests)))
        assert len(requests) <= turns_max
        for before, after in pairwise(requests):
            assert least_s - 1e-9 <= after.intended_s - before.intended_s <= most_s + 1e-9
            assert after.prompt[: len(before.prompt)] == before.prompt


def test_the_rate_holds_from_the_first_second_to_the_last() -> None:
    spec = WorkloadSpec(think_s=(1, 9), turns_max=5)
    times = np.array([r.intended_s for seed in range(20) for r in build_schedule(spec, 10, 30, seed, WORDS)])
    for start_s in range(0, 30, 5):
        count = ((times >= start_s) & (times < start_s + 5)).sum()
        assert count == pytest.approx(20 * 50, rel=0.12), start_s


@quick
@given(st.integers(0, 2**32), st.floats(4, 40))
def test_a_chat_says_and_thinks_the_same_at_any_rate(seed: int, rate_per_s: float) -> None:
    spec = WorkloadSpec(think_s=(0.5, 2.0), turns_max=3)
    one = chats(build_schedule(spec, 10, 20, seed, WORDS))
    other = chats(build_schedule(spec, rate_per_s, 20, seed, WORDS))
    common = one.keys() & other.keys()
    for session in common:
        for ours, theirs in zip(one[session], other[session], strict=False):
            assert (ours.prompt, ours.max_tokens) == (theirs.prompt, theirs.max_tokens)
    whole = [name for name in common if len(one[name]) == 3 == len(other[name])]
    for session in whole:
        gaps = [np.diff([r.intended_s for r in found[session]]) for found in (one, other)]
        assert gaps[0] == pytest.approx(gaps[1])


def test_a_phase_without_load_begins_no_chat_and_lets_the_running_ones_go_on() -> None:
    spec = WorkloadSpec(think_s=2.0, turns_max=4)
    schedule = build_schedule(spec, 40, 60, 3, WORDS, profile=(Stretch(20, 60, 0.0),))
    times = np.array([request.intended_s for request in schedule])
    assert ((times >= 20) & (times < 26)).sum() > 20
    assert times.max() <= 26.0


def test_a_chat_that_could_last_for_ever_is_refused() -> None:
    with pytest.raises(ValueError, match="too many requests"):
        build_schedule(WorkloadSpec(think_s=3000.0, turns_max=1000), 10, 10, 1, WORDS)


def begins(prompt: tuple[int, ...], system: int) -> tuple[int, ...]:
    return prompt[1 : 1 + system]


@quick
@given(st.integers(1, 4), st.integers(5, 30), st.floats(0.2, 1), st.integers(0, 2**32))
def test_chats_share_system_prompts_and_nothing_else(count: int, tokens: int, share: float, seed: int) -> None:
    spec = WorkloadSpec(system_prompts=SystemPrompts(count=count, tokens=tokens, share=share), sessions=50, turns_max=2)
    plain = WorkloadSpec(sessions=50, turns_max=2)
    with_prompts = first_requests(spec, 300, seed, WORDS)
    without = first_requests(plain, 300, seed, WORDS)
    systems: Counter[tuple[int, ...]] = Counter()
    for ours, theirs in zip(with_prompts, without, strict=True):
        if len(ours.prompt) == len(theirs.prompt):
            assert ours.prompt == theirs.prompt
            continue
        assert len(ours.prompt) == len(theirs.prompt) + tokens
        assert ours.prompt[:1] + ours.prompt[1 + tokens :] == theirs.prompt
        systems[begins(ours.prompt, tokens)] += 1
    assert len(systems) <= count
    assert systems.total() / 300 == pytest.approx(share, abs=0.3)
    if share == 1:
        assert systems.total() == 300


def test_a_share_of_the_chats_has_one_and_all_of_them_come() -> None:
    spec = WorkloadSpec(system_prompts=SystemPrompts(count=3, tokens=(9, 20), share=0.6), turns_max=1)
    plain = {r.request_id: r for r in first_requests(WorkloadSpec(turns_max=1), 2000, 1, WORDS)}
    systems = Counter(
        len(request.prompt) - len(plain[request.request_id].prompt) for request in first_requests(spec, 2000, 1, WORDS)
    )
    assert systems[0] / 2000 == pytest.approx(0.4, abs=0.04)
    assert len(systems) == 4
    assert all(count == pytest.approx(400, rel=0.2) for size, count in systems.items() if size)


def test_a_long_chat_never_forgets_its_system_prompt() -> None:
    spec = WorkloadSpec(system_prompts=SystemPrompts(count=1, tokens=40), sessions=1, turns_max=50)
    requests = first_requests(spec, 50, 1, WORDS, context_max_tokens=200)
    assert len({begins(request.prompt, 40) for request in requests}) == 1
    assert all(len(request.prompt) + request.max_tokens <= 200 for request in requests)
    assert max(len(request.prompt) for request in requests) > 150


def test_a_system_prompt_that_leaves_no_room_is_refused() -> None:
    spec = WorkloadSpec(system_prompts=SystemPrompts(count=1, tokens=(1, 40)), prompt_tokens=30, output_tokens=30)
    assert build_schedule(spec, 5, 2, 1, WORDS, context_max_tokens=103)
    with pytest.raises(ValueError, match="the context holds 62"):
        build_schedule(spec, 5, 2, 1, WORDS, context_max_tokens=62)


def test_a_template_decides_where_a_system_prompt_stands() -> None:
    plain = ChatMarkers(before_first=(1,), before_reply=(2,), before_next=(3,))
    assert plain.opening() == (1,)
    assert plain.opening((8, 9)) == (1, 8, 9)
    own = ChatMarkers((1,), (2,), (3,), before_system=(4,), after_system=(5,))
    assert own.opening() == (1,)
    assert own.opening((8, 9)) == (4, 8, 9, 5)
