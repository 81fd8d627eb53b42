"""What was promised of the cluster, which experiment measures it, and what came of it in a suite of runs."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from analysis.advice import advise
from analysis.facts import CannotJudge
from analysis.history import History, UnreadableError
from analysis.judge import read_verdict
from analysis.metrics import METRICS, measure
from analysis.promises_page import Baseline, Finding, Kept, PromisesReport, Run, html, markdown, text
from analysis.reader import load_history
from analysis.verdict import CriterionResult, Outcome, Verdict
from analysis.whole_file import write_whole
from chaos.playing import Line, Play

_BASELINES = ("success_rate", "ttft_p50_s", "latency_p50_s", "latency_p95_s", "throughput_tokens_per_s")
_CONFIDENCE = 0.95


class Promise(msgspec.Struct, frozen=True):
    """A promise in words, and the expectation of an experiment that says whether it is kept."""

    text: str
    experiment: str
    criterion: str


PROMISES: tuple[Promise, ...] = (
    Promise("Sticky sessions answer at least 40 % sooner", "sticky_sessions", "sticky_latency"),
    Promise("More than 90 % of the turns of a session find its cache", "sticky_sessions", "hit_rate"),
    Promise("Pre-warming takes away at least 90 % of a cold start", "pre_warming", "warm_first_token"),
    Promise("More than 95 % of pre-warmings succeed", "pre_warming", "prewarmed"),
    Promise("Continuous batching makes at least twice the tokens", "continuous_batching", "batch_of_8"),
    Promise("Batches hold at least 3 sequences at a limit of 8", "continuous_batching", "full_batches"),
    # A hundred requests can show 97 %, and no more: the 99 % are claimed of those in flight.
    Promise("A burst of 100 requests succeeds", "high_concurrency", "success_of_100"),
    Promise("More than 99 % succeed with 100 requests in flight", "high_concurrency", "success_sustained"),
    Promise("p99 stays below 5 s with 100 requests in flight", "high_concurrency", "latency_sustained"),
    Promise("More than 99 % succeed while a worker fails", "worker_failure", "success_during_fault"),
    Promise("What a failed worker had is served elsewhere", "worker_failure", "lost_on_the_victim"),
    Promise("A tenfold spike is served", "load_spike", "success_in_spike"),
    Promise("Batches grow in a spike", "load_spike", "batches_grow"),
    Promise("After a spike latency is less than 2 % worse", "load_spike", "latency_after"),
    Promise("Latency drifts by less than 10 % under sustained load", "sustained_load", "latency_drift"),
    Promise("Throughput drifts by less than 10 % under sustained load", "sustained_load", "throughput_drift"),
    Promise("Memory grows by less than 10 % under sustained load", "sustained_load", "memory_drift"),
    Promise("Fewer than 50 requests wait under sustained load", "sustained_load", "queue"),
    Promise("More than 99 % succeed under sustained load", "sustained_load", "success"),
    Promise("With no worker left callers are told so at once", "all_workers_offline", "refused_at_once"),
    Promise("When workers return so does the service", "all_workers_offline", "return_to_steady"),
    Promise("What does not fit into memory is refused in time", "memory_pressure", "told_in_time"),
    Promise("When memory is back so is the service", "memory_pressure", "success_after_heal"),
    Promise("Retries turn 95 % of good requests into more than 99 %", "retry_value", "with_retries"),
    Promise("A circuit breaker keeps requests away from a sick worker", "breaker_value", "wasted_ratio"),
    Promise("More than 99 % succeed while a node is cut off", "network_partition", "success_during_fault"),
    Promise("The cluster is whole again soon after a cut", "network_partition", "return_to_steady"),
)


def report(out: Path, lines: Sequence[tuple[Play, Line]]) -> str:
    """Write `prd.json`, `prd.md` and `prd.html` about the runs so far; the same as text for a terminal."""
    whole = PromisesReport(
        kept=[
            _kept(promise, what, line, out)
            for promise in PROMISES
            for what, line in lines
            if what.experiment == promise.experiment
        ],
        runs=[_run(what, line, out) for what, line in lines],
    )
    write_whole(out / "prd.json", msgspec.json.format(msgspec.json.encode(whole), indent=1))
    write_whole(out / "prd.md", markdown(whole))
    write_whole(out / "prd.html", html(whole))
    return text(whole)


def _kept(promise: Promise, what: Play, line: Line, out: Path) -> Kept:
    verdict = _verdict(line, out)
    found = next((each for each in verdict.criteria if each.name == promise.criterion), None) if verdict else None
    page = f"{line.results}/report.html" if verdict is not None else ""
    model = what.label or "its own"
    if verdict is None or found is None:
        why = line.reason if verdict is None else f"the run has no criterion {promise.criterion}"
        found = CriterionResult(promise.criterion, Outcome.NOT_APPLICABLE, None, "", "", 0, None, why)
    # What a run measured that did not do what it claims is no measurement.
    outcome = Outcome.INVALID if verdict is not None and verdict.verdict is Outcome.INVALID else found.verdict
    return Kept(promise.text, promise.experiment, model, line.world, outcome, found, page)


def _run(what: Play, line: Line, out: Path) -> Run:
    verdict = _verdict(line, out)
    run = Run(what.experiment, what.label or "its own", line.world, line.verdict, line.reason, line.results)
    if verdict is None:
        return run
    try:
        history = load_history(out / line.results)
    except UnreadableError as error:
        return msgspec.structs.replace(run, reason=str(error))
    advice = [Finding(each.finding, each.evidence, each.remedy, each.setting) for each in advise(history)]
    return msgspec.structs.replace(run, baselines=_baselines(history), advice=advice)


def _verdict(line: Line, out: Path) -> Verdict | None:
    if not line.has_verdict:
        return None
    try:
        return read_verdict(out / line.results)
    except UnreadableError:
        return None


def _baselines(history: History) -> list[Baseline]:
    """What each phase measured in the figures that everybody compares."""
    found = []
    for phase in history.phases():
        for name in _BASELINES:
            try:
                seen = measure(history, name, phase.name, _CONFIDENCE)
            except CannotJudge:
                continue
            if seen.value is not None:
                found.append(Baseline(phase.name, name, METRICS[name].unit, seen.value, seen.interval, seen.samples))
    return found
