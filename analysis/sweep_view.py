"""What a sweep says: series over workers with their laws, curves over load, points, and what limited them."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, median

import msgspec

from analysis.scaling import (
    Efficiency,
    Gain,
    Interval,
    Knee,
    Law,
    Level,
    Runs,
    efficiencies,
    fit_law,
    gains,
    knee_of_load,
    knee_of_workers,
    levels,
    why_no_law,
)
from analysis.sweep_table import INVALID, WORKERS, SweepRow

CONFIDENCE = 0.95
BUSY_SHARE = 0.9
"""Of a host's processor, from which on the host and not the cluster is the limit."""
_ALIKE = 0.1
_OWN_SHARE = 0.6
"""Of a host's cores. What Ray, the broker and Toxiproxy need comes on top of what the nodes use."""


class Series(msgspec.Struct, frozen=True):
    """Throughput over workers where all else is equal. label: the phase and the other settings. kind: `weak`, the load
    grows with the workers; `strong`, it stays; empty for neither. levels: requests per second. knee: see scaling."""

    label: str
    phase: str
    kind: str
    load: str
    faults: list[str]
    levels: list[Level]
    efficiencies: list[Efficiency]
    gains: list[Gain]
    knee: int | None
    law: Law | None
    no_law: str
    latency_p50_s: list[tuple[int, float]]
    latency_p95_s: list[tuple[int, float]]


class Loaded(msgspec.Struct, frozen=True):
    """One load of a curve: what is asked, and means over its runs, per second and in seconds."""

    load: str
    throughput: float
    latency_p50_s: float
    latency_p95_s: float | None


class Curve(msgspec.Struct, frozen=True):
    """Latency against load with one cluster, by rising load."""

    label: str
    points: list[Loaded]
    knee: Knee | None


class PointRow(msgspec.Struct, frozen=True):
    """A point in one phase over its runs; figures are means, percentiles medians over runs. verdicts: how many."""

    point: str
    phase: str
    workers: int
    load: str
    runs: int
    verdicts: dict[str, int]
    requests_per_s: float | None
    interval: Interval | None
    tokens_per_s: float | None
    goodput_per_s: float | None
    latency_p50_s: float | None
    latency_p95_s: float | None
    ttft_p95_s: float | None
    batch: float | None
    success: float | None
    host_cpu_share: float | None


class Missing(msgspec.Struct, frozen=True):
    """A run that has no verdict, and why."""

    name: str
    why: str


class SweepReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the pages show, and what `sweep.json` holds. planned: runs, of which `done` have a verdict."""

    experiment: str
    title: str
    question: str
    world: str
    engine: str
    command: str
    axes: dict[str, list[str]]
    repeats: int
    planned: int
    done: int
    settle_s: float
    statements: list[str]
    limits: list[str]
    notes: list[str]
    missing: list[Missing]
    series: list[Series]
    curves: list[Curve]
    points: list[PointRow]
    rows: list[SweepRow]

    @property
    def is_timed(self) -> bool:
        """Whether a live cluster had an engine that computes nothing."""
        return self.world == "live" and self.engine == "timed"


def series_of(rows: Sequence[SweepRow]) -> list[Series]:
    """A series for each phase and each combination of the settings other than the number of workers."""
    found = []
    for group in _groups(rows, lambda row: (row.figures.phase, _others(row, (WORKERS,)))):
        runs = _runs(group)
        if len(runs) < 2:
            continue
        found.append(
            Series(
                label=_label(group[0], (WORKERS,)),
                phase=group[0].figures.phase,
                kind=_kind(group),
                load=_load_of_series(group),
                faults=sorted({fault for row in group for fault in row.faults}),
                levels=levels(runs, CONFIDENCE),
                efficiencies=efficiencies(runs, CONFIDENCE),
                gains=gains(runs, CONFIDENCE),
                knee=knee_of_workers(runs),
                law=fit_law(runs, CONFIDENCE),
                no_law=why_no_law(runs),
                latency_p50_s=_over_workers(group, lambda row: row.figures.latency_p50_s),
                latency_p95_s=_over_workers(group, lambda row: row.figures.latency_p95_s),
            )
        )
    order = {"weak": 0, "strong": 1}
    return sorted(found, key=lambda each: order.get(each.kind, 2))


def curves_of(rows: Sequence[SweepRow]) -> list[Curve]:
    """Latency against load, for each cluster that was given more than one."""
    found = []
    paths = list(dict.fromkeys(path for row in rows for path in row.values if is_load(path)))
    for group in _groups(rows, lambda row: (row.figures.phase, row.workers, _others(row, paths))):
        points = []
        for load in _groups(group, lambda row: row.load if row.figures.in_flight else _others(row, _but(row, paths))):
            told = [row for row in load if row.throughput is not None and row.figures.latency_p50_s is not None]
            if told:
                points.append((fmean(row.load for row in told), _loaded(told)))
        points.sort(key=lambda each: each[0])
        if len(points) < 2 or points[-1][0] <= points[0][0] * (1 + _ALIKE):
            continue
        shown = [each for _, each in points]
        knee = knee_of_load([each.throughput for each in shown], [each.latency_p50_s for each in shown])
        found.append(Curve(_label(group[0], paths), shown, knee))
    return found


def point_rows(rows: Sequence[SweepRow]) -> list[PointRow]:
    """All points, in the order of the rows."""
    intervals = {
        (each.label, level.workers): level.interval for each in series_of(rows) for level in each.levels
    }  # fmt: skip
    found = []
    for group in _groups(rows, lambda row: (row.point, row.figures.phase)):
        first, valid = group[0], [row for row in group if row.verdict != INVALID]
        counted: dict[str, int] = {}
        for row in group:
            counted[row.verdict] = counted.get(row.verdict, 0) + 1
        figures = [row.figures for row in valid]
        found.append(
            PointRow(
                point=first.point,
                phase=first.figures.phase,
                workers=first.workers,
                load=_load(first),
                runs=len(valid),
                verdicts=counted,
                requests_per_s=_mean(each.requests_per_s for each in figures),
                interval=intervals.get((_label(first, (WORKERS,)), first.workers)),
                tokens_per_s=_mean(each.tokens_per_s for each in figures),
                goodput_per_s=_mean(each.goodput_per_s for each in figures),
                latency_p50_s=_median(each.latency_p50_s for each in figures),
                latency_p95_s=_median(each.latency_p95_s for each in figures),
                ttft_p95_s=_median(each.ttft_p95_s for each in figures),
                batch=_mean(each.batch_mean for each in figures),
                success=_mean(each.success for each in figures),
                host_cpu_share=_mean(each.host_cpu_share for each in figures),
            )
        )
    return sorted(found, key=lambda each: (each.phase, each.workers))


def limits_of(rows: Sequence[SweepRow]) -> list[str]:
    """Where the host and not the cluster was the limit, a sentence each."""
    if not rows:
        return []
    first = rows[0]
    if first.world == "simulated":
        return ["Time is virtual here, so no host is a limit: what is slow is slow by the cost model."]
    found = []
    crowded = max(rows, key=lambda row: -(-row.workers // row.hosts))
    most = -(-crowded.workers // crowded.hosts)
    if first.engine == "mlx" and "Darwin" in first.machine:
        if most > 1:
            found.append(f"Up to {most} workers share the one GPU of a host, which makes it the limit.")
    elif first.engine == "mlx" and most > crowded.cores:
        found.append(
            f"Core-limited on this machine: {most} workers on {crowded.cores} cores, and MLX computes on them. What "
            "more workers bring here says how cores are shared, and nothing about a cluster with hosts of its own."
        )
    disturbed = _others_at_work(rows)
    busy = sorted({row.workers for row in rows if _is_busy(row) and row not in [each for _, each in disturbed]})
    known = [row for row in rows if row.figures.host_cpu_share is not None]
    if busy:
        counts = ", ".join(map(str, busy))
        found.append(
            f"The processor of a host was busy for {BUSY_SHARE:.0%} of the time or more with {counts} workers: there "
            "the host is the limit, and not the cluster."
        )
    elif known and not disturbed:
        highest = max(known, key=lambda row: row.figures.host_cpu_share or 0.0)
        found.append(
            f"The processor of the busiest host was busy for {highest.figures.host_cpu_share:.0%} of the time at most, "
            f"with {highest.workers} workers: no host was the limit by its processor."
        )
    if disturbed:
        own, row = min(disturbed, key=lambda each: each[0])
        found.append(
            f"Something else kept a host busy in {len(disturbed)} of {len(rows)} measurements: of {row.cores} cores "
            f"the nodes of the cluster used {own:.1f} with {row.workers} workers. A host of its own would show more."
        )
    return found


def _is_busy(row: SweepRow) -> bool:
    return (row.figures.host_cpu_share or 0.0) >= BUSY_SHARE


def _others_at_work(rows: Sequence[SweepRow]) -> list[tuple[float, SweepRow]]:
    """The rows in which a busy host was busy with something else, and how many cores the cluster's nodes used."""
    told = [(row.figures.nodes_cpu_cores, row) for row in rows if _is_busy(row)]
    return [(own / row.hosts, row) for own, row in told if own is not None and own / row.hosts < _OWN_SHARE * row.cores]


def statements_of(series: Sequence[Series]) -> list[str]:
    """What the series say, a sentence each."""
    found = []
    for each in series:
        last, base = each.levels[-1], each.levels[0]
        share = each.efficiencies[-1]
        kind = {"weak": "With a load that grows with the cluster", "strong": "With a fixed load"}.get(
            each.kind, "There"
        )
        said = f"{kind} ({each.label}), {last.workers} workers complete {last.mean / base.mean:.2f} times the requests "
        said += f"of {base.workers}: an efficiency of {share.value:.0%}"
        if share.interval is not None:
            said += f" ({share.interval[0]:.0%} to {share.interval[1]:.0%})"
        if each.knee is not None:
            said += f"; beyond {each.knee} a worker adds less than half of what one does in the smallest cluster"
        found.append(said + ".")
    return found


def notes_of(rows: Sequence[SweepRow]) -> list[str]:
    """What else a reader must know of the runs."""
    found = []
    invalid = sorted({row.key: row for row in rows if row.verdict == INVALID}.values(), key=lambda row: row.key)
    found += [f"{row.point}, repeat {row.repeat} is invalid and does not count: {row.reason}" for row in invalid]
    dry = sorted({f"{row.point} in {row.figures.phase}" for row in rows if row.figures.ran_dry})
    found += [f"{name}: the closed load had nothing left to ask, so its throughput is too low" for name in dry]
    nothing = sorted({f"{row.point} in {row.figures.phase}" for row in rows if not row.figures.requests_per_s})
    found += [f"{name}: nothing was completed, so it is in no series" for name in nothing]
    repeats: dict[tuple[str, str], set[int]] = {}
    for row in rows:
        repeats.setdefault((row.point, row.figures.phase), set()).add(row.repeat)
    if rows and all(len(each) < 2 for each in repeats.values()):
        found.append("Nothing was repeated, so there are no intervals: add --repeats 2 or more.")
    return found


def is_load(path: str) -> bool:
    """Whether a setting says how much is asked."""
    return path.startswith("workload.rate") or (path.startswith("phases.") and ".load" in path)


def _groups(rows: Iterable[SweepRow], by: Callable[[SweepRow], object]) -> list[list[SweepRow]]:
    found: dict[object, list[SweepRow]] = {}
    for row in rows:
        found.setdefault(by(row), []).append(row)
    return list(found.values())


def _others(row: SweepRow, paths: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple((path, text) for path, text in row.values.items() if path not in paths)


def _but(row: SweepRow, paths: Sequence[str]) -> list[str]:
    return [path for path in row.values if path not in paths]


def _label(row: SweepRow, without: Sequence[str]) -> str:
    settings = [f"{path}={text}" for path, text in _others(row, without)]
    return ", ".join([row.figures.phase.replace("_", " "), *settings])


def _runs(rows: Iterable[SweepRow]) -> Runs:
    found: dict[int, list[float]] = {}
    for row in rows:
        if row.throughput is not None:
            found.setdefault(row.workers, []).append(row.throughput)
    return found


def _kind(rows: Sequence[SweepRow]) -> str:
    each = [row.load / row.workers for row in rows]
    whole = [row.load for row in rows]
    if _is_alike(each) and not _is_alike(whole):
        return "weak"
    return "strong" if _is_alike(whole) else ""


def _is_alike(values: Sequence[float]) -> bool:
    return max(values) <= min(values) * (1 + _ALIKE)


def _load_of_series(rows: Sequence[SweepRow]) -> str:
    first, kind = rows[0], _kind(rows)
    if kind == "weak":
        each = fmean(row.load / row.workers for row in rows)
        return f"{each:.3g} in flight per worker" if first.figures.in_flight else f"{each:.3g}/s per worker"
    return _load(first) if kind == "strong" else "differs"


def _load(row: SweepRow) -> str:
    return f"{row.figures.in_flight} in flight" if row.figures.in_flight else f"{row.figures.offered_per_s:.3g}/s"


def _loaded(rows: Sequence[SweepRow]) -> Loaded:
    throughput = fmean(row.throughput or 0.0 for row in rows)
    p50_s = _median(row.figures.latency_p50_s for row in rows)
    return Loaded(_load(rows[0]), throughput, p50_s or 0.0, _median(row.figures.latency_p95_s for row in rows))


def _over_workers(rows: Sequence[SweepRow], value: Callable[[SweepRow], float | None]) -> list[tuple[int, float]]:
    found = []
    for group in _groups(sorted(rows, key=lambda row: row.workers), lambda row: row.workers):
        middle = _median(value(row) for row in group if row.throughput is not None)
        if middle is not None:
            found.append((group[0].workers, middle))
    return found


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
