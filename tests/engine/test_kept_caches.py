"""Kept caches, sampling, prompts in chunks: whatever the engine saves or spreads, greedy tokens stay the same."""

import random
from typing import Any

import pytest

from cluster.engine.weights import ModelUnavailable, model_directory
from cluster.node import EngineReport
from cluster.protocol import Sampling, Token
from tests.engine.harness import MODEL, Bench, Start, prompts

pytestmark = pytest.mark.live


def text(length: int, seed: int) -> list[Token]:
    source = random.Random(seed)
    return [source.randrange(507) for _ in range(length)]


def fresh(start: Start, prompt: list[Token], most: int, model: str = MODEL) -> list[Token]:
    return start(model=model).complete((prompt, most), model=model)[0]


def serve(bench: Bench, prompt: list[Token], most: int, model: str = MODEL, **more: Any) -> list[Token]:
    number = bench.insert(prompt, most, model, **more)
    bench.finish(number)
    return bench.tokens(number)


def test_the_next_turn_of_a_session_goes_on_from_the_cache_of_the_one_before(start: Start) -> None:
    bench = start()
    first = text(40, 1)
    answer = serve(bench, first, 24, keep_as=1)
    end = bench.reports()[-1].progress[-1]
    assert end.kept_tokens == 40 + 24
    assert end.kept_bytes >= end.kept_tokens * 2 * 4 * 128 * 4
    second = first + answer + text(9, 2)
    assert serve(bench, second, 32, cache=1, cached_tokens=64) == fresh(start, second, 32)
    assert bench.reports()[-1].progress[-1].cached_tokens == 64


def test_a_shared_beginning_serves_another_session_and_leaves_the_kept_cache_as_it_was(start: Start) -> None:
    bench = start()
    system, one, other = text(50, 3), text(12, 4), text(17, 5)
    serve(bench, system + one, 8, keep_as=1)
    plain = start()
    for _ in range(2):
        tokens = serve(bench, system + other, 32, cache=1, cached_tokens=50, keep_as=None)
        assert tokens == plain.complete((system + other, 32))[0]


def test_cached_and_uncached_prompts_of_all_lengths_share_a_batch(start: Start) -> None:
    bench, plain = start(), start()
    system = text(30, 6)
    serve(bench, system + text(5, 7), 8, keep_as=1)
    jobs = [
        (system + text(3 + 5 * number, 10 + number) if number % 2 else text(7 * number + 2, number), 40)
        for number in range(8)
    ]
    bench.hold()
    numbers = [
        bench.insert(prompt, most, **({"cache": 1, "cached_tokens": 30} if place % 2 else {}))
        for place, (prompt, most) in enumerate(jobs)
    ]
    bench.release()
    bench.finish(*numbers)
    assert [bench.tokens(number) for number in numbers] == [plain.complete(job)[0] for job in jobs]


def test_a_stream_that_another_engine_goes_on_with_is_the_same_stream(start: Start) -> None:
    whole = fresh(start, prompts(1)[0], 60)
    other = start()
    for broken_at in (1, 17, 59):
        assert other.complete((prompts(1)[0] + whole[:broken_at], 60 - broken_at))[0] == whole[broken_at:]


@pytest.mark.parametrize("cached_tokens", [0, 48, 100])
def test_a_cache_that_does_not_fit_is_not_used(start: Start, cached_tokens: int) -> None:
    bench = start()
    prompt = text(40, 8)
    serve(bench, prompt, 8, keep_as=1)
    assert serve(bench, prompt, 16, cache=1, cached_tokens=cached_tokens) == fresh(start, prompt, 16)
    assert bench.reports()[-1].progress[-1].cached_tokens == 0


def test_a_dropped_cache_is_gone_and_its_memory_with_it(start: Start) -> None:
    bench = start()
    serve(bench, text(10, 1), 8)
    base = bench.engine.memory()["active_bytes"]
    prompt = text(1500, 9)
    serve(bench, prompt, 8, keep_as=1)
    kept = bench.reports()[-1].progress[-1].kept_bytes
    serve(bench, text(10, 1), 8)
    assert bench.engine.memory()["active_bytes"] > base + 0.9 * kept
    bench.engine.drop_cache(1)
    serve(bench, text(10, 1), 8, cache=1, cached_tokens=5)
    assert bench.reports()[-1].progress[-1].cached_tokens == 0
    serve(bench, text(10, 1), 8)
    assert bench.engine.memory()["active_bytes"] < base + kept / 4


def test_a_removed_sequence_keeps_nothing(start: Start) -> None:
    bench = start()
    number = bench.insert(text(20, 1), 4000, keep_as=5)
    bench.wait(lambda: bool(bench.progress(number)))
    bench.engine.remove(number)
    serve(bench, text(20, 1), 8, cache=5, cached_tokens=19)
    assert bench.reports()[-1].progress[-1].cached_tokens == 0


def prompt_tokens_by_step(reports: list[EngineReport]) -> list[tuple[int, int]]:
    return [(report.steps, report.prefill_tokens) for report in reports]


@pytest.mark.parametrize("lengths", [[4096], [600] * 8, [3000, 20, 20, 20]])
def test_running_streams_wait_for_one_chunk_at_most_whatever_the_prompts(start: Start, lengths: list[int]) -> None:
    """With a report at every step: between two steps of decoding no more than the budget of prompt tokens."""
    bench = start(prefill_step=128, flush_s=0.0)
    running = bench.insert(text(8, 1), 120)
    bench.wait(lambda: bool(bench.progress(running)))
    seen = len(bench.reports())
    late = [bench.insert(text(length, 20 + place), 4) for place, length in enumerate(lengths)]
    bench.finish(*late, running)
    work = prompt_tokens_by_step(bench.reports()[seen:])
    assert sum(tokens for _, tokens in work) >= sum(lengths) - len(lengths) - 128
    assert all(tokens <= 128 * max(1, steps) for steps, tokens in work)


def test_a_temperature_makes_answers_differ_and_a_greedy_neighbour_stays_exact(start: Start) -> None:
    bench = start()
    prompt = text(20, 30)
    bench.hold()
    warm = [bench.insert(prompt, 40, sampling=Sampling(1.5, 0.95)) for _ in range(3)]
    greedy = bench.insert(prompt, 40)
    bench.release()
    bench.finish(*warm, greedy)
    assert len({tuple(bench.tokens(number)) for number in warm}) == 3
    assert bench.tokens(greedy) == fresh(start, prompt, 40)


def test_a_report_tells_what_was_computed(start: Start) -> None:
    bench = start()
    serve(bench, text(33, 1), 20)
    reports = bench.reports()
    assert sum(report.prefill_tokens for report in reports) == 32
    assert 20 <= sum(report.steps for report in reports) <= 21
    assert sum(report.decode_s for report in reports) > 0
    assert sum(report.prefill_s for report in reports) > 0
    assert reports[-1].active_bytes > 2_000_000


@pytest.mark.verify
def test_a_real_model_says_the_same_alone_in_a_batch_from_a_cache_and_after_a_migration(start: Start) -> None:
    model = "smollm2-135m"
    try:
        model_directory(model)
    except ModelUnavailable as error:
        pytest.skip(str(error))
    bench = start(model=model)
    jobs = [(text(30 + 7 * place, 40 + place), 24) for place in range(8)]
    alone = [bench.complete(job, model=model)[0] for job in jobs]
    assert bench.complete(*jobs, model=model) == alone
    prompt, most = jobs[3]
    serve(bench, prompt + alone[3][:8], 4, model, keep_as=1)
    assert serve(bench, prompt + alone[3][:8], most - 8, model, cache=1, cached_tokens=len(prompt) + 4) == alone[3][8:]
    assert serve(bench, prompt + alone[3][:11], most - 11, model) == alone[3][11:]
