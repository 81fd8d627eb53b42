"""Histories of requests whose every part took as long as a test says."""

from typing import Any

import msgspec

from analysis.schema import AttemptRow, RequestRow
from cluster.policy import Policy
from tests.analysis.histories import Run, sample

EVERY_S = 0.5
PARTS_S = {
    "send": 0.001, "to_controller": 0.002, "controller": 0.0, "retry": 0.0, "to_worker": 0.002, "queue": 0.001,
    "prefill": 0.01, "decode": 0.05, "back": 0.003,
}  # fmt: skip
"""A request that nothing keeps waiting: seconds of each part in the order of its life."""


def timed_run(
    *, requests: int = 60, batch: float = 4.0, turn: int = 0, prompt_tokens: int = 40, cached_tokens: int = 0,
    arms: tuple[str, ...] = (), policy: dict[str, dict[str, Any]] | None = None, **parts_s: float,
) -> Run:  # fmt: skip
    """`requests` of them, one every EVERY_S, in the phase `measure`, all with the same parts (PARTS_S but for these).

    arms: whose they are, in turn. policy: what differs from the default, by section.
    """
    run = Run()
    sections: dict[str, Any] = msgspec.to_builtins(Policy())
    for section, values in (policy or {}).items():
        sections[section] |= values
    run.experiment = {
        "cluster": {"workers": 2}, "workload": {"rate": "35%", "rate_max": "40/s"}, "policy": sections,
        "arms": {arm: {} for arm in arms},
    }  # fmt: skip
    spent = PARTS_S | parts_s
    end_s = requests * EVERY_S
    run.event("director", 0.0, "run_started")
    run.event("director", 0.0, "phase_started", "measure")
    run.event("director", end_s, "phase_ended", "measure")
    run.event("director", end_s + sum(spent.values()), "run_ended")
    for number in range(requests):
        arm = arms[number % len(arms)] if arms else ""
        _add(run, f"r{number}", number * EVERY_S, spent, arm)
    for row in run.find("requests"):
        run.change(row, turn=turn, prompt_tokens=prompt_tokens, cached_tokens=cached_tokens)
    for row in run.find("attempts", side="worker"):
        run.change(row, batch_mean=batch)
    return run


def add_samples(run: Run, node: str = "worker-0", **of: Any) -> None:
    """Samples of a node every second; each value a number, or a function of the time in seconds."""
    end_s = int(max(row.time_s for row in run.find("events")))
    for second in range(end_s):
        levels = {name: value(second) if callable(value) else value for name, value in of.items()}
        run.add(node, sample(node, float(second), **levels))


def _add(run: Run, name: str, intended_s: float, spent: dict[str, float], arm: str) -> None:
    at_s, points = intended_s, {}
    for part, length_s in spent.items():
        at_s += length_s
        points[part] = at_s
    dispatched_s, deadline_s = points["retry"], intended_s + 100.0
    attempt: dict[str, Any] = {
        "request_id": name, "submission": 1, "worker_incarnation": 1, "deadline_s": deadline_s, "index": 0,
    }  # fmt: skip
    run.event("controller", points["to_controller"], "request_accepted", "client-0", request_id=name)
    number = 1
    if spent["retry"]:
        failed: dict[str, Any] = {
            "worker": "worker-1",
            "tokens": 0,
            "outcome": "failed",
            "code": "FIRST_TOKEN_TIMEOUT",
            "attempt": 1,
        }
        run.add("controller", AttemptRow(
            side="controller", begun_s=points["controller"], started_s=None, first_token_s=None, ended_s=dispatched_s,
            **attempt, **failed,
        ))  # fmt: skip
        number = 2
    done: dict[str, Any] = {"worker": "worker-0", "tokens": 12, "outcome": "completed", "code": "", "attempt": number}
    run.add("controller", AttemptRow(
        side="controller", begun_s=dispatched_s, started_s=None, first_token_s=None, ended_s=points["decode"],
        **attempt, **done,
    ))  # fmt: skip
    run.add("worker-0", AttemptRow(
        side="worker", begun_s=points["to_worker"], started_s=points["queue"], first_token_s=points["prefill"],
        ended_s=points["decode"], **attempt, **done,
    ))  # fmt: skip
    run.add("client-0", RequestRow(
        request_id=name, model="tiny", session_id=f"s{name}", turn=0, prompt_id="p", prompt_tokens=40, max_tokens=12,
        intended_s=intended_s, sent_s=points["send"], first_token_s=points["prefill"], ended_s=points["back"],
        deadline_s=deadline_s, outcome="completed", code="", finish="length", submissions=1, cached_tokens=0, strays=0,
        tokens=[1] * 12, segments=[],
    ))  # fmt: skip
    run.schedule.append({
        "request_id": name, "intended_s": intended_s, "session_id": f"s{name}", "turn": 0, "prompt_id": "p",
        "prompt_tokens": 40, "max_tokens": 12, "arm": arm,
    })  # fmt: skip
