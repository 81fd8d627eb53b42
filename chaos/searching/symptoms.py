"""What must not be seen in a cluster of any policy, beyond the invariants: signs of failures known from the field.

Invariants hold a cluster to its own settings. These limits are absolute, for a policy that waits two minutes keeps its
promise and leaves its callers hanging all the same. All are far above what a cluster that watches its links needs.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

from analysis.checkers.finding import records
from analysis.facts import FaultWindow, fault_windows, finished, offered, recovery_limit_s, run_end_s, segments
from analysis.history import History
from chaos.searching.breach import Breach

SILENCE_S = 5.0
"""For so long an attempt may have been without any news: twice what the slowest of our engines needs for a token."""
PILE_MIN = 5
UNNOTICED_S = 8.0
"""By then somebody must have noticed that a link carries nothing."""
QUEUE_MAX = 40
"""Five full batches of eight: more than that waits for longer than anybody wants to."""
LOPSIDED_BY = 12
LOPSIDED_MIN = 3
_BUSY_S = 1.0
_SLOW_S = 3.0
RETRIES_FREE, RETRIES_SHARE = 100, 0.2
"""What may be tried again: so many, and this share of all requests."""
TIMES_MIN = 3
LOCKSTEP_MIN = 8
_LOCKSTEP_S = 0.001
_SILENT_CUTS = ("black_hole", "stall", "upstream", "downstream")
_NOTICED = ("link_down", "worker_suspected", "worker_dead")


class Run:
    """What several of the checks need of a history, made once."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.windows = fault_windows(history)
        self.limit_s = recovery_limit_s(history) if self.windows else 0.0
        self.end_s = run_end_s(history)
        sent = history.attempts[(history.attempts["side"] == "controller") & (history.attempts["begun_s"] >= 0)]
        self.sent = records(sent.sort_values(["begun_s", "node", "sequence"], kind="stable"))
        """Attempts as the controllers saw them, by time."""
        self.last_token_s: dict[tuple[str, int, int], float] = {}
        for part in records(segments(finished(history))):
            self.last_token_s[_attempt(part)] = part["received_s"]
        self.outcomes: dict[str, str] = dict(
            zip(history.requests["request_id"], history.requests["outcome"], strict=True)
        )

    def touching(self, node: str, start_s: float, end_s: float, linger_s: float = 0.0) -> tuple[str, ...]:
        """Kinds of the faults that are on for a node then."""
        return _kinds(
            window for window in self.windows if node in window.targets and _on(window, start_s, end_s, linger_s)
        )

    def is_clouded(self, start_s: float, end_s: float) -> bool:
        """Whether somebody else than workers is at fault then, or was within the recovery limit."""
        return any(
            any(not target.startswith("worker-") for target in window.targets)
            for window in self.windows
            if _on(window, start_s, end_s, self.limit_s)
        )


def _attempt(row: dict[str, Any]) -> tuple[str, int, int]:
    return row["request_id"], row["submission"], row["attempt"]


def _on(window: FaultWindow, start_s: float, end_s: float, linger_s: float) -> bool:
    return window.overlaps(start_s, end_s, linger_s)


def _kinds(windows: Iterable[FaultWindow]) -> tuple[str, ...]:
    return tuple(sorted({window.kind for window in windows}))


def _off_the_bus(run: Run) -> Iterator[Breach]:
    """Once all is healed for as long as the recovery limit, no node that lives is without its link."""
    due_s = max((window.healed_s for window in run.windows), default=math.inf) + run.limit_s
    if due_s >= run.end_s:
        return
    samples = run.history.nodes[run.history.nodes["time_s"].between(due_s, run.end_s)]
    last = samples.sort_values("time_s", kind="stable").drop_duplicates("node", keep="last")
    for row in records(last[~last["link_up"].astype(bool)]):
        text = f"{row['node']} is still off the bus {row['time_s'] - due_s + run.limit_s:.0f} s after the last heal"
        yield Breach("off_the_bus", text, _kinds(run.windows))


def _unnoticed(run: Run) -> Iterator[Breach]:
    """A link that carries nothing is noticed, by its node or by a controller, within UNNOTICED_S."""
    modes = {row["name"]: _mode(row["parameters"]) for row in records(run.history.faults)}
    events = run.history.events[run.history.events["kind"].isin(_NOTICED)]
    for window in run.windows:
        until_s = window.injected_s + UNNOTICED_S
        if window.kind != "partition" or modes.get(window.name) not in _SILENT_CUTS or window.healed_s <= until_s:
            continue
        for node in window.targets:
            others = [other for other in run.windows if other is not window and {node, "broker"} & set(other.targets)]
            if any(_on(other, window.injected_s, until_s, run.limit_s) for other in others):
                continue
            about = (events["subject"] == node) | ((events["node"] == node) & (events["kind"] == "link_down"))
            if not (about & events["time_s"].between(window.injected_s, until_s)).any():
                text = f"the link of {node} carried nothing for {UNNOTICED_S:g} s and nobody had noticed"
                yield Breach("unnoticed", text, (window.kind,))


def _mode(parameters: str) -> str:
    read = json.loads(parameters)
    return str(read.get("mode", "")) if isinstance(read, dict) else ""


def _hung(run: Run) -> Iterator[Breach]:
    """No attempt goes on without news for SILENCE_S from a worker that makes no token for anybody.

    `fed` where meanwhile PILE_MIN more were sent there, `hung` where there were fewer.
    """
    told: dict[str, list[float]] = defaultdict(list)
    for row in run.sent:
        first_s, last_s = row["first_token_s"], run.last_token_s.get(_attempt(row))
        told[row["worker"]] += [time_s for time_s in (first_s, last_s) if time_s is not None]
    for row in run.sent:
        key = _attempt(row)
        if row["tokens"] and key not in run.last_token_s:
            continue
        since_s = max(row["begun_s"], run.last_token_s.get(key, 0.0))
        kinds = run.touching(row["worker"], since_s - SILENCE_S, since_s + SILENCE_S)
        if row["ended_s"] - since_s <= SILENCE_S or not kinds or run.is_clouded(since_s, row["ended_s"]):
            continue
        if any(since_s < time_s < row["ended_s"] for time_s in told[row["worker"]]):
            continue
        more = sum(
            other["worker"] == row["worker"] and since_s + SILENCE_S < other["begun_s"] < row["ended_s"]
            for other in run.sent
        )
        what = f"request {row['request_id']} had no news of {row['worker']} for {row['ended_s'] - since_s:.1f} s"
        if more >= PILE_MIN:
            yield Breach("fed", f"{what}, and {more} more were sent there after {SILENCE_S:g} s of it", kinds)
        else:
            yield Breach("hung", what, kinds)


def _peer_not_asked(run: Run) -> Iterator[Breach]:
    """No request fails on one worker, tried again and again, while another completes what it gets."""
    done = [(row["ended_s"], row["worker"]) for row in run.sent if row["outcome"] == "completed"]
    for (_, request_id, _), rows in _by_request(run.sent).items():
        workers = {row["worker"] for row in rows}
        if len(rows) < 2 or len(workers) > 1 or run.outcomes.get(request_id) not in ("failed", "refused"):
            continue
        start_s, end_s = rows[0]["begun_s"], rows[-1]["begun_s"]
        others = {worker for time_s, worker in done if start_s - _BUSY_S <= time_s <= end_s + _BUSY_S} - workers
        sound = [worker for worker in sorted(others) if not run.touching(worker, start_s, end_s, run.limit_s)]
        if sound and not run.is_clouded(start_s, end_s):
            (worker,) = workers
            text = f"request {request_id} failed {len(rows)} times on {worker}, and {sound[0]} was never asked"
            yield Breach("peer_not_asked", text, run.touching(worker, start_s, end_s, run.limit_s))


def _by_request(sent: list[dict[str, Any]]) -> dict[tuple[str, str, int], list[dict[str, Any]]]:
    """Attempts in order, by controller, request and submission."""
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in sent:
        found[row["node"], row["request_id"], row["submission"]].append(row)
    return found


def _executed_again(run: Run) -> Iterator[Breach]:
    """No worker does the same request to its end three times.

    A caller whose own link is at fault asks again for what it has lost, and is right to.
    """
    worked = run.history.attempts[run.history.attempts["side"] == "worker"]
    done = worked[worked["outcome"] == "completed"]
    counted = done.groupby(["node", "request_id"], as_index=False).agg(
        times=("ended_s", "size"), start_s=("begun_s", "min"), end_s=("ended_s", "max")
    )
    for row in records(counted[counted["times"] >= TIMES_MIN]):
        met = [window for window in run.windows if _on(window, row["start_s"], row["end_s"], run.limit_s)]
        if not any(target == "broker" or target.startswith("client-") for each in met for target in each.targets):
            text = f"{row['node']} did request {row['request_id']} {row['times']} times"
            yield Breach("executed_again", text, _kinds(met))


def _storm(run: Run) -> Iterator[Breach]:
    """Retries stay a small part of the load, however much fails."""
    retries = int(((run.history.events["kind"] == "retry") & (run.history.events["time_s"] >= 0)).sum())
    count = len(offered(run.history))
    if retries > RETRIES_FREE + RETRIES_SHARE * count:
        yield Breach("storm", f"{count} requests were tried again {retries} times", _kinds(run.windows))


def _lockstep(run: Run) -> Iterator[Breach]:
    """Requests that failed do not all wait the same time before they are tried again."""
    waits: dict[int, list[float]] = defaultdict(list)
    for rows in _by_request(run.sent).values():
        for number, (failed, again) in enumerate(pairwise(rows)):
            if failed["outcome"] in ("failed", "refused") and failed["code"] != "CONTROLLER_UNREACHABLE":
                waits[number].append(again["begun_s"] - failed["ended_s"])
    for found in waits.values():
        middle_s = sorted(found)[len(found) // 2]
        alike = sum(abs(wait_s - middle_s) <= _LOCKSTEP_S for wait_s in found)
        if alike >= LOCKSTEP_MIN and 2 * alike >= len(found) and middle_s > 10 * _LOCKSTEP_S:
            text = f"{alike} of {len(found)} retries came exactly {middle_s:.3f} s after the failure, all in step"
            yield Breach("lockstep", text, _kinds(run.windows))


def _piled(run: Run) -> Iterator[Breach]:
    """What waits does not pile up at one worker."""
    samples = run.history.nodes[run.history.nodes["role"] == "worker"]
    for row in records(samples[samples["queue_depth"] > QUEUE_MAX]):
        kinds = run.touching(row["node"], row["time_s"], row["time_s"], run.limit_s)
        yield Breach("piled", f"{row['queue_depth']} requests wait on {row['node']}, its queue took them all", kinds)


def _lopsided(run: Run) -> Iterator[Breach]:
    """No first attempt goes to a slow worker with LOPSIDED_BY more open attempts than another that is quick and sound.

    Happens LOPSIDED_MIN times before it counts.
    """
    found: dict[str, list[float]] = defaultdict(list)
    changes = sorted(
        [(row["begun_s"], 1, row) for row in run.sent] + [(row["ended_s"], 0, row) for row in run.sent],
        key=lambda change: change[:2],
    )
    count: dict[str, int] = defaultdict(int)
    done_s: dict[str, float] = {}
    for now, begins, row in changes:
        worker = row["worker"]
        if not begins:
            count[worker] -= 1
            if row["outcome"] == "completed":
                done_s[worker] = now
            continue
        if row["attempt"] == 1 and now - done_s.get(worker, -math.inf) <= _SLOW_S:
            others = [other for other, time_s in done_s.items() if other != worker and now - time_s <= _BUSY_S]
            sound = [other for other in others if not run.touching(other, now, now, run.limit_s)]
            if sound and count[worker] - min(count[other] for other in sound) > LOPSIDED_BY:
                found[worker].append(now)
        count[worker] += 1
    for worker, times_s in found.items():
        if len(times_s) >= LOPSIDED_MIN and not run.is_clouded(times_s[0], times_s[-1]):
            text = f"{len(times_s)} requests were sent to {worker} although another had {LOPSIDED_BY} fewer to do"
            yield Breach("lopsided", text, run.touching(worker, times_s[0], times_s[-1], run.limit_s))


CHECKS: dict[str, Callable[[Run], Iterator[Breach]]] = {
    "off_the_bus": _off_the_bus,
    "unnoticed": _unnoticed,
    "hung": _hung,
    "peer_not_asked": _peer_not_asked,
    "executed_again": _executed_again,
    "storm": _storm,
    "lockstep": _lockstep,
    "piled": _piled,
    "lopsided": _lopsided,
}


def symptoms(history: History) -> list[Breach]:
    """The first of every sort: by check, or what it calls itself, and by kinds. Only of a complete run."""
    if not history.info.complete:
        return []
    run = Run(history)
    found: dict[tuple[str, tuple[str, ...]], Breach] = {}
    for check in CHECKS.values():
        for breach in check(run):
            found.setdefault((breach.by, breach.kinds), breach)
    return list(found.values())
