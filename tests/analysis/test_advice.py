"""Each rule speaks of a history that shows its bottleneck, is silent of one that does not, and names what exists."""

import re
import shlex
from collections.abc import Callable

import pytest

from analysis.advice import Advice, advise
from analysis.judge import judge
from chaos.experiment import find
from chaos.resolve import load
from tests.analysis.histories import Run, clean_run
from tests.analysis.report_fixture import empty_history
from tests.analysis.timed_run import add_samples, timed_run

MIB = 2**20
GROWTH_REQUESTS = 320
LONGER = "phases.measure.duration_s=480"


def _found(run: Run) -> dict[str, Advice]:
    return {advice.name: advice for advice in advise(run.history())}


def _flapping(times: int, every_s: float) -> Run:
    run = timed_run()
    for number in range(times):
        run.event("controller", 1 + number * every_s, "breaker_opened", "worker-1")
        run.event("controller", 2 + number * every_s, "breaker_opened", f"worker-{number + 2}")
    return run


def _growing(
    bytes_per_s: float, cache_bytes_per_s: float = 0.0, full_s: float = 1_000.0, *, emptied: bool = False
) -> Run:
    """A node whose process grows, and whose caches do until they are full, at the end of which they may be dropped."""
    run = timed_run(requests=GROWTH_REQUESTS)
    add_samples(
        run,
        resident_bytes=lambda second: int(400 * MIB + bytes_per_s * second + 3 * MIB * (second % 7)),
        cache_bytes=lambda second: 0 if emptied and second > 100 else int(cache_bytes_per_s * min(second, full_s)),
    )
    return run


def _filling(full_s: float) -> Run:
    """Caches fill up, and the process takes half as much again for them as they say of themselves."""
    run = timed_run(requests=GROWTH_REQUESTS)
    add_samples(
        run,
        resident_bytes=lambda second: int(400 * MIB + 1.5 * 4 * MIB * min(second, full_s)),
        cache_bytes=lambda second: int(4 * MIB * min(second, full_s)),
    )
    return run


def _served(share: float, every_s: float = 0.5) -> Run:
    run = timed_run(requests=100)
    late = int(100 * (1 - share))
    for row in run.find("requests")[:late]:
        run.change(row, ended_s=row.intended_s + 90)
    return run


def _prompts(cached: int, **policy: object) -> Run:
    return timed_run(prefill=0.3, turn=1, prompt_tokens=600, cached_tokens=cached, policy={"routing": policy})


def _full_caches() -> Run:
    run = timed_run(prefill=0.3, turn=1, prompt_tokens=600, cached_tokens=30)
    add_samples(run, cache_bytes=500 * MIB)
    return run


TRIGGERED: dict[str, tuple[str, Callable[[], Run], str]] = {
    "waiting at full batches": ("queue_wait", lambda: timed_run(queue=0.2, batch=7.5), "policy.worker.batch_max=16"),
    "waiting with room in batches": ("queue_wait", lambda: timed_run(queue=0.2, batch=3), "cluster.workers=3"),
    "held back by the controller": (
        "queue_wait",
        lambda: timed_run(controller=0.2, batch=3, policy={"routing": {"outstanding_max": 4}}),
        "policy.routing.outstanding_max=16",
    ),
    "sessions sent anywhere": ("prefill", lambda: _prompts(30, affinity=False), "policy.routing.affinity=true"),
    "caches too small": ("prefill", _full_caches, f"policy.memory.cache_bytes_max={1024 * MIB}"),
    "sessions moved": ("prefill", lambda: _prompts(30), "policy.routing.affinity_slack=8"),
    "long prompts": (
        "prefill", lambda: timed_run(prefill=0.3, prompt_tokens=2000), "policy.worker.prefill_step_tokens=1024",
    ),
    "batches of one": (
        "decode", lambda: timed_run(batch=1, policy={"worker": {"batch_max": 1}}), "policy.worker.batch_max=8",
    ),
    "little to do": ("decode", lambda: timed_run(batch=1.2), "workload.rate=70%"),
    "a slow bus": ("bus", lambda: timed_run(back=0.3), "policy.stream.flush_s=0.2"),
    "a slow tail": ("p95_latency", lambda: timed_run(queue=4, batch=7.5), "policy.worker.batch_max=16"),
    "a slow tail of decoding": ("p95_latency", lambda: timed_run(decode=4), "cluster.workers=3"),
    "a cluster that does not keep up": ("throughput", lambda: _served(0.5), "cluster.workers=3"),
    "memory that grows": ("memory_growth", lambda: _growing(2 * MIB), LONGER),
    "memory that goes on growing when the caches are full": (
        "memory_growth", lambda: _growing(2 * MIB, 4 * MIB, full_s=50), LONGER,
    ),
    "memory that grows by far more than the caches": ("memory_growth", lambda: _growing(6 * MIB, 1 * MIB), LONGER),
    "a breaker that flaps": ("breaker_flapping", lambda: _flapping(3, 20.0), "policy.breaker.open_s=4"),
}  # fmt: skip
SILENT: dict[str, tuple[str, Callable[[], Run]]] = {
    "short waits": ("queue_wait", lambda: timed_run(queue=0.01)),
    "a large share of next to nothing": ("queue_wait", lambda: timed_run(queue=0.015, decode=0.001, prefill=0.001)),
    "short prompts": ("prefill", timed_run),
    "decoding in full batches": ("decode", lambda: timed_run(batch=6)),
    "a usual bus": ("bus", timed_run),
    "a tail of three seconds": ("p95_latency", lambda: timed_run(decode=2.8)),
    "less was asked for": ("throughput", lambda: timed_run(requests=100)),
    "batching is off": ("throughput", lambda: _without_batching()),
    "memory that moves and does not grow": ("memory_growth", lambda: _growing(0)),
    "memory that hardly grows": ("memory_growth", lambda: _growing(0.1 * MIB)),
    "memory that grows with the caches": ("memory_growth", lambda: _growing(2 * MIB, 1.9 * MIB)),
    "caches that fill up and are full": ("memory_growth", lambda: _filling(90)),
    "caches that still fill up when the run ends": ("memory_growth", lambda: _filling(1_000)),
    "caches that are dropped while the process keeps what they took": (
        "memory_growth",
        lambda: _growing(0, 4 * MIB, emptied=True),
    ),
    "growth at first": ("memory_growth", lambda: _growing_at_first()),
    "growth in a time too short to tell": ("memory_growth", lambda: _short()),
    "two trips": ("breaker_flapping", lambda: _flapping(2, 20.0)),
    "trips far apart": ("breaker_flapping", lambda: _flapping(5, 31.0)),
}


def _growing_at_first() -> Run:
    run = timed_run(requests=GROWTH_REQUESTS)
    add_samples(run, resident_bytes=lambda second: int(200 * MIB + 4 * MIB * min(second, 50) + MIB * (second % 7)))
    return run


def _short() -> Run:
    run = timed_run(requests=160)
    add_samples(run, resident_bytes=lambda second: int(400 * MIB + 4 * MIB * second))
    return run


def _without_batching() -> Run:
    run = _served(0.5)
    run.experiment["policy"]["worker"]["batch_max"] = 1
    return run


@pytest.mark.parametrize("case", TRIGGERED)
def test_a_bottleneck_is_found_with_figures_and_a_setting_that_exists(case: str) -> None:
    name, make, setting = TRIGGERED[case]
    advice = _found(make())[name]
    assert re.search(r"\d", advice.evidence)
    assert advice.remedy
    settings = _settings(advice)
    assert setting in settings
    load(find("sticky_sessions"), settings)


def _settings(advice: Advice) -> list[str]:
    words = shlex.split(advice.setting)
    assert words[::2] == ["--set"] * (len(words) // 2)
    return words[1::2]


@pytest.mark.parametrize("case", SILENT)
def test_nothing_is_said_of_what_is_none(case: str) -> None:
    name, make = SILENT[case]
    assert name not in _found(make())


def test_where_settings_cannot_help_none_is_named() -> None:
    assert _found(timed_run(prefill=0.3, prompt_tokens=100))["prefill"].setting == ""
    assert _found(timed_run(back=0.3, policy={"stream": {"flush_s": 0.5}}))["bus"].setting == ""


def test_larger_batches_have_a_limit() -> None:
    found = _found(timed_run(queue=0.2, batch=60, policy={"worker": {"batch_max": 64}}))
    assert found["queue_wait"].setting == "--set cluster.workers=3"


def test_more_room_for_batches_lets_enough_requests_through() -> None:
    assert "policy.routing.outstanding_max=32" in _settings(_found(timed_run(queue=0.2, batch=8))["queue_wait"])


def test_what_a_fault_costs_is_no_bottleneck() -> None:
    run = clean_run()
    for row in run.find("attempts", side="worker"):
        if 9 <= row.begun_s <= 14:
            run.change(row, started_s=row.ended_s)
    assert "queue_wait" not in _found(run)


def test_arms_that_differ_on_purpose_get_no_advice_about_their_requests() -> None:
    assert _found(timed_run(queue=4, batch=8, arms=("one", "many"))) == {}


def test_a_host_that_holds_more_because_its_nodes_do_is_not_named() -> None:
    run = _growing(2 * MIB)
    add_samples(run, "host-0", role="host", resident_bytes=lambda second: int(400 * MIB + 9 * MIB * second))
    assert _found(run)["memory_growth"].finding == "The memory of worker-0 grows"


def test_too_few_requests_say_nothing() -> None:
    assert _found(timed_run(requests=19, queue=4)) == {}
    assert advise(empty_history()) == []


def test_a_history_without_a_policy_has_no_advice_and_no_error() -> None:
    run = timed_run(queue=0.2)
    run.experiment = {}
    assert _found(run) == {}


def test_advice_changes_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    run = clean_run().history()
    before = judge(run)
    monkeypatch.setattr("analysis.advice.REQUEST_RULES", ())
    assert judge(run) == before
