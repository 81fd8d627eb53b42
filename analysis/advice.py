"""Bottleneck found and what to do: rules over a history, each with what it saw and a setting to try.

Advice never changes a verdict. Figures leave out the warm-up and, where enough is left, requests that met a fault: what
a fault costs is no matter of tuning.
"""

import re
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
import pandas as pd
from scipy.stats import theilslopes

from analysis.facts import CannotJudge, fault_windows, offered, policy, run_end_s, worker_count
from analysis.history import History, Phase
from analysis.statistics import percentile
from analysis.time_shares import PARTS, WAITING, TimeShares, arm_of, mean_request, request_times

REQUESTS_MIN = 20
"""Of fewer requests nothing is concluded."""
WAIT_SHARE, PREFILL_SHARE, DECODE_SHARE, BUS_SHARE = 0.3, 0.4, 0.6, 0.3
"""From these shares of the time on a part stands out. Decoding is the work itself, so it may have more."""
WAIT_MIN_S, BUS_MIN_S = 0.02, 0.02
"""Shorter waits and ways are not worth a change, whatever their share."""
SMALL_BATCH = 2.0
FULL_SHARE = 0.75
"""A batch is full, and a cache too, when it holds so much of what it may on average."""
BATCH_MAX, BATCH_USUAL = 64, 8
REUSE_SHARE = 0.5
"""Later turns that find less of their prompt in a cache than this could find more."""
KEPT_UP_SHARE = 0.95
P95_MAX_S, REQUESTS_PER_S_MIN = 3.0, 20.0
FLAPS, FLAP_WINDOW_S = 3, 60.0
GROWTH_MIN_SHARE, GROWTH_MIN_S, GROWTH_SAMPLES_MIN, GROWTH_SAMPLES_MAX = 0.1, 60.0, 30, 300
"""When full caches reuse what they let go of, in pieces of odd sizes, a process grows by some per cent more."""
KEPT_FACTOR = 2.0
"""A process that keeps caches holds up to half as much again as their bytes; twice as much is explained by them."""
FLUSH_MAX_S = 0.5
OPEN_MAX_S = 600.0

T = TypeVar("T")
_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(%|/s)\s*")


class Advice(msgspec.Struct, frozen=True):
    """One bottleneck. finding, evidence, remedy: sentences without a full stop, the evidence with its figures.

    setting: one or more `--set PATH=VALUE` to run the same experiment with, "" where no setting helps.
    """

    name: str
    finding: str
    evidence: str
    remedy: str
    setting: str


class Facts(msgspec.Struct, frozen=True):
    """What the rules look at. times: of request_times, without warm-up and, where enough is left, without faults.

    batch: sequences in a decode step as a token met them, None where no worker told.
    """

    history: History
    times: pd.DataFrame
    mean: TimeShares
    batch: float | None

    @property
    def wait_s(self) -> float:
        """How long the mean request waited for its turn."""
        return sum(self.mean.parts[part] for part in WAITING)

    def count(self, section: str, name: str) -> int:
        """A whole number of the policy. Raises CannotJudge when the experiment has none."""
        return int(policy(self.history, section, name))


def advise(history: History) -> list[Advice]:
    """What the data say should be changed, what matters most first; nothing where nothing stands out.

    A rule whose data or settings a history lacks says nothing. Arms of a comparison wait and compute differently on
    purpose, so about those there is no advice.
    """
    compared = bool((arm_of(history) != "").any())
    facts = None if compared else _facts(history)
    found = [] if facts is None else [_tried(rule, facts) for rule in REQUEST_RULES]
    found += [_tried(rule, history) for rule in RUN_RULES if not (compared and rule is _throughput)]
    return [advice for advice in found if advice is not None]


def measured_phases(history: History) -> list[Phase]:
    """The phases that are measured: a warm-up is not, unless there is nothing else."""
    phases = history.phases()
    return [phase for phase in phases if not phase.name.startswith("warm")] or phases


def _tried(rule: Callable[[T], Advice | None], told: T) -> Advice | None:
    try:
        return rule(told)
    except CannotJudge:
        return None


def _facts(history: History) -> Facts | None:
    times = request_times(history)
    measured = pd.Series(False, index=times.index)
    for phase in measured_phases(history):
        measured |= (times["intended_s"] >= phase.start_s) & (times["intended_s"] < phase.end_s)
    times = times[measured]
    calm = pd.Series(True, index=times.index)
    for window in fault_windows(history):
        calm &= (times["ended_s"] < window.injected_s) | (times["intended_s"] > window.healed_s)
    times = times[calm] if calm.sum() >= REQUESTS_MIN else times
    if len(times) < REQUESTS_MIN:
        return None
    return Facts(history, times, mean_request(times), _mean_batch(history, times))


def _mean_batch(history: History, times: pd.DataFrame) -> float | None:
    attempts = history.attempts
    told = attempts[(attempts["side"] == "worker") & (attempts["batch_mean"] > 0) & (attempts["tokens"] > 0)]
    told = told[told["request_id"].isin(times["request_id"])]
    return float(np.average(told["batch_mean"], weights=told["tokens"])) if len(told) else None


def _waiting(facts: Facts) -> Advice | None:
    share = facts.mean.share(*WAITING)
    if share < WAIT_SHARE or facts.wait_s < WAIT_MIN_S:
        return None
    remedy, setting, seen = _more_room(facts)
    where = "at the controller" if _at_controller(facts) else "on the workers"
    evidence = f"mean wait {_s(facts.wait_s)} of {_s(facts.mean.mean_s)}, mostly {where}; {seen}"
    return Advice(
        "queue_wait",
        f"Requests spend {_percent(share)} of their time waiting for their turn",
        evidence,
        remedy,
        setting,
    )


def _at_controller(facts: Facts) -> bool:
    return facts.mean.parts["controller"] > facts.mean.parts["queue"]


def _more_room(facts: Facts) -> tuple[str, str, str]:
    """What makes room for those who wait: remedy, setting, and what was seen of batches."""
    limit, room = facts.count("worker", "batch_max"), facts.count("routing", "outstanding_max")
    if facts.batch is None:
        return "Add workers, or lower the rate", _more_workers(facts.history), "no worker told of its batches"
    seen = f"mean batch {facts.batch:.1f} of {limit} allowed"
    if facts.batch >= FULL_SHARE * limit and 2 * limit <= BATCH_MAX:
        setting = f"--set policy.worker.batch_max={2 * limit}"
        setting += f" --set policy.routing.outstanding_max={4 * limit}" if room < 4 * limit else ""
        return "Let larger batches be made; where the engine gains nothing by them, add workers", setting, seen
    if room < 2 * limit and _at_controller(facts):
        seen += f", {room} requests per worker let through"
        setting = f"--set policy.routing.outstanding_max={2 * limit}"
        return "Let more requests through to each worker: a full batch and the next one", setting, seen
    return "Add workers, or lower the rate: no limit of ours holds requests back", _more_workers(facts.history), seen


def _more_workers(history: History) -> str:
    return f"--set cluster.workers={_workers(history) + 1}"


def _workers(history: History) -> int:
    count = worker_count(history)
    if not count:
        raise CannotJudge("the experiment does not say cluster.workers")
    return count


def _prefill(facts: Facts) -> Advice | None:
    share = facts.mean.share("prefill")
    if share < PREFILL_SHARE:
        return None
    rows = facts.history.requests.drop_duplicates("request_id")
    rows = rows[rows["request_id"].isin(facts.times["request_id"])]
    evidence = (
        f"mean {_s(facts.mean.parts['prefill'])} of {_s(facts.mean.mean_s)} a request, "
        f"prompts of {rows['prompt_tokens'].median():.0f} tokens (median)"
    )
    later = rows[rows["turn"] > 0]
    cached = float(later["cached_tokens"].sum() / max(1, later["prompt_tokens"].sum()))
    if len(later):
        evidence += f"; {_percent(cached)} of the prompt tokens of later turns came out of a cache"
    step = facts.count("worker", "prefill_step_tokens")
    if len(later) and cached < REUSE_SHARE:
        remedy, setting = _more_reuse(facts)
    elif float(rows["prompt_tokens"].quantile(0.9)) > step:
        remedy = "Let a step take more of a long prompt; running streams wait longer for it"
        setting = f"--set policy.worker.prefill_step_tokens={2 * step}"
    else:
        remedy, setting = "Shorten the prompts, or let them share their beginnings", ""
    return Advice(
        "prefill", f"Computing prompts takes {_percent(share)} of the time of requests", evidence, remedy, setting
    )


def _more_reuse(facts: Facts) -> tuple[str, str]:
    if _affinity(facts.history) is False:
        return "Send a session to the worker that holds its cache", "--set policy.routing.affinity=true"
    limit = facts.count("memory", "cache_bytes_max")
    workers = facts.history.nodes[facts.history.nodes["role"] == "worker"]
    if len(workers) and float(workers["cache_bytes"].max()) >= FULL_SHARE * limit:
        return "Keep more prompts: the caches are full", f"--set policy.memory.cache_bytes_max={2 * limit}"
    slack = facts.count("routing", "affinity_slack")
    return "Let a session stay with its worker for longer", f"--set policy.routing.affinity_slack={2 * slack}"


def _affinity(history: History) -> object:
    sections = history.experiment.get("policy")
    routing = sections.get("routing") if isinstance(sections, dict) else None
    return routing.get("affinity") if isinstance(routing, dict) else None


def _decode(facts: Facts) -> Advice | None:
    share = facts.mean.share("decode")
    if share < DECODE_SHARE or facts.batch is None or facts.batch >= SMALL_BATCH:
        return None
    limit = facts.count("worker", "batch_max")
    finding = f"Making tokens takes {_percent(share)} of the time of requests, in small batches"
    evidence = f"mean batch {facts.batch:.1f} of {limit} allowed; mean wait {_s(facts.wait_s)}"
    if facts.batch >= FULL_SHARE * limit:
        remedy = "Let several requests share each step of the engine"
        return Advice("decode", finding, evidence, remedy, f"--set policy.worker.batch_max={BATCH_USUAL}")
    remedy = "The workers have room for more: offer more, or let fewer workers make fuller batches"
    return Advice("decode", finding, evidence, remedy, _more_load(facts.history))


def _more_load(history: History) -> str:
    """Twice the rate, and twice what bounds it."""
    workload = history.experiment.get("workload")
    if not isinstance(workload, dict):
        return ""
    settings = []
    for name in ("rate", "rate_max"):
        told = _RATE.fullmatch(str(workload.get(name) or ""))
        if told:
            settings.append(f"--set workload.{name}={2 * float(told[1]):g}{told[2]}")
    return " ".join(settings)


def _bus(facts: Facts) -> Advice | None:
    share, mean_s = facts.mean.share("bus"), facts.mean.parts["bus"]
    if share < BUS_SHARE or mean_s < BUS_MIN_S:
        return None
    flush_s = policy(facts.history, "stream", "flush_s")
    lag_s = percentile(facts.history.nodes["loop_lag_s"].dropna().to_numpy(dtype=float), 0.95)
    evidence = f"mean {_s(mean_s)} of {_s(facts.mean.mean_s)} a request; tokens are gathered for {_s(flush_s)}"
    evidence += "" if lag_s is None else f"; 95 % of the nodes' wake-ups were at most {_s(lag_s)} late"
    remedy, setting = _fewer_messages(flush_s)
    return Advice(
        "bus",
        f"Requests are under way between the nodes for {_percent(share)} of their time",
        evidence,
        remedy,
        setting,
    )


def _fewer_messages(flush_s: float) -> tuple[str, str]:
    if flush_s >= FLUSH_MAX_S:
        return "Look at the network and at how busy the hosts are: messages are few already", ""
    setting = f"--set policy.stream.flush_s={min(4 * flush_s, FLUSH_MAX_S):g}"
    return "Send fewer and larger messages: gather tokens for longer", setting


def _slow_tail(facts: Facts) -> Advice | None:
    """PRD: p95 above 3 s."""
    level_s = percentile(facts.times["total_s"].to_numpy(dtype=float), 0.95)
    if level_s is None or level_s <= P95_MAX_S:
        return None
    slow = facts.times[facts.times["total_s"] >= level_s]
    mean = mean_request(slow)
    worst = max(mean.parts, key=lambda part: mean.parts[part])
    evidence = (
        f"of the time of the {len(slow)} slowest requests {_percent(mean.share(worst))} went here: {PARTS[worst]}"
    )
    remedy, setting = _remedy_for(facts, worst)
    return Advice("p95_latency", f"p95 latency is {_s(level_s)}, more than {P95_MAX_S:g} s", evidence, remedy, setting)


def _remedy_for(facts: Facts, part: str) -> tuple[str, str]:
    match part:
        case "controller" | "queue":
            remedy, setting, _ = _more_room(facts)
            return remedy, setting
        case "prefill":
            return _more_reuse(facts)
        case "decode":
            return "Share the streams among more workers, or ask for fewer tokens", _more_workers(facts.history)
        case "bus":
            return _fewer_messages(policy(facts.history, "stream", "flush_s"))
        case "retry":
            return "See which attempts failed, and why, in attempts.parquet", ""
        case "send":
            return "Use more load generators, or give them more of a processor", ""
    return "Find out which node left no rows, and why", ""


def _throughput(history: History) -> Advice | None:
    """PRD: under 20 requests/s with batching on. Where no more than was served was asked for, it is no bottleneck."""
    limit = int(policy(history, "worker", "batch_max"))
    lines, windows = offered(history), fault_windows(history)
    for phase in measured_phases(history) if limit > 1 else ():
        start_s, end_s = phase.start_s, min(phase.end_s, run_end_s(history))
        if end_s <= start_s or any(window.overlaps(start_s, end_s) for window in windows):
            continue
        asked = int(((lines["intended_s"] >= start_s) & (lines["intended_s"] < end_s)).sum())
        served = int(((lines["outcome"] == "completed") & lines["ended_s"].between(start_s, end_s)).sum())
        per_s = served / (end_s - start_s)
        if asked >= REQUESTS_MIN and per_s < REQUESTS_PER_S_MIN and served < KEPT_UP_SHARE * asked:
            return Advice(
                "throughput",
                f"{per_s:.3g} requests/s are served with batching on, less than {REQUESTS_PER_S_MIN:g}",
                f"{served:,} of {asked:,} requests of the phase {phase.name} were served in it, in batches of {limit} "
                "at most",
                "Add workers, take a smaller model, or ask for fewer tokens",
                _more_workers(history),
            )
    return None


def _memory(history: History) -> Advice | None:
    """PRD: memory grows. The node that grows most in the second half of what is measured.

    What kept caches explain is none of it: they fill up to their limit and stay there.
    """
    grown = []
    start_s = min((phase.start_s for phase in measured_phases(history)), default=0.0)
    samples = history.nodes[history.nodes["resident_bytes"].notna() & (history.nodes["time_s"] >= start_s)]
    # A host's sample is the sum of its nodes.
    samples = samples[samples["role"] != "host"]
    for (node, _), rows in samples.groupby(["node", "incarnation"]):
        growth = _growth(rows.sort_values("time_s"))
        if growth is not None:
            grown.append((growth, str(node)))
    if not grown:
        return None
    growth, node = max(grown, key=lambda each: each[0].share)
    minute, mib = 60.0, 2**20
    low, high = (minute * bound / mib for bound in growth.interval)
    evidence = (
        f"in the second half of the time measured its resident memory grew by {minute * growth.per_s / mib:.3g} MiB a "
        f"minute more than kept caches explain (95 % interval {low:.3g} to {high:.3g}), {_percent(growth.share)} in "
        f"{growth.span_s:.0f} s; the caches themselves grew by {growth.cache_bytes / mib:.3g} MiB"
    )
    remedy, setting = "Run for longer to see whether it levels off; if not, something is never freed", ""
    lasting = [phase for phase in measured_phases(history) if phase.end_s < float("inf")]
    if lasting:
        longest = max(lasting, key=lambda phase: phase.end_s - phase.start_s)
        setting = f"--set phases.{longest.name}.duration_s={3 * (longest.end_s - longest.start_s):.0f}"
    return Advice("memory_growth", f"The memory of {node} grows", evidence, remedy, setting)


class _Growth(NamedTuple):
    """Of a node's memory over `span_s` seconds: share of its median, bytes a second with the 95 % interval of that.

    cache_bytes: by how much its kept caches grew.
    """

    share: float
    per_s: float
    interval: tuple[float, float]
    span_s: float
    cache_bytes: float


def _growth(rows: pd.DataFrame) -> _Growth | None:
    """By the robust slope of Theil and Sen; None: no growth, or too short a time to tell."""
    middle_s = (rows["time_s"].min() + rows["time_s"].max()) / 2
    # What caches once took the process keeps, also after they let go of it.
    kept = rows["cache_bytes"].cummax()[rows["time_s"] >= middle_s].to_numpy(dtype=float)
    late = rows[rows["time_s"] >= middle_s]
    step = max(1, len(late) // GROWTH_SAMPLES_MAX)
    times = late["time_s"].to_numpy(dtype=float)[::step]
    resident = late["resident_bytes"].to_numpy(dtype=float)[::step]
    span_s = float(np.ptp(times)) if len(times) else 0.0
    if len(times) < GROWTH_SAMPLES_MIN or span_s < GROWTH_MIN_S:
        return None
    slope, _, low, high = theilslopes(resident - KEPT_FACTOR * kept[::step], times, alpha=0.95)
    share = float(slope * span_s / np.median(resident))
    if low <= 0 or share < GROWTH_MIN_SHARE:
        return None
    return _Growth(share, float(slope), (float(low), float(high)), span_s, float(kept[-1] - kept[0]))


def _flapping(history: History) -> Advice | None:
    """PRD: a breaker flaps. The same worker's opened FLAPS times or more within FLAP_WINDOW_S."""
    opened = history.events[history.events["kind"] == "breaker_opened"]
    worst: tuple[int, str] = (0, "")
    for worker, rows in opened.groupby("subject"):
        times = np.sort(rows["time_s"].to_numpy(dtype=float))
        within = np.searchsorted(times, times + FLAP_WINDOW_S, side="right") - np.arange(len(times))
        worst = max(worst, (int(within.max()), str(worker)))
    trips, worker = worst
    if trips < FLAPS:
        return None
    open_s, most_s = policy(history, "breaker", "open_s"), policy(history, "breaker", "open_max_s")
    longer_s = min(max(4 * open_s, most_s), OPEN_MAX_S)
    setting = f"--set policy.breaker.open_s={longer_s:g}"
    setting += f" --set policy.breaker.open_max_s={min(4 * longer_s, OPEN_MAX_S):g}"
    return Advice(
        "breaker_flapping",
        f"The breaker of {worker} flaps",
        f"it opened {trips} times within {FLAP_WINDOW_S:.0f} s, for {open_s:g} s at first and {most_s:g} s at most",
        "Keep it open for longer, and look for what is wrong with the worker",
        setting,
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _s(value: float) -> str:
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


REQUEST_RULES: tuple[Callable[[Facts], Advice | None], ...] = (_slow_tail, _waiting, _prefill, _bus, _decode)
"""About the time of requests; the first to speak is what to begin with."""

RUN_RULES: tuple[Callable[[History], Advice | None], ...] = (_throughput, _memory, _flapping)
"""About the run as a whole."""
