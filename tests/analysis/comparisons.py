"""Synthetic runs that compare two arms."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from analysis.history import History
from analysis.schema import AttemptRow, RequestRow, Segment
from tests.analysis.histories import INFO, Run

BLOCK_S, PAUSE_S = 4.0, 1.0
START_S = 2.0
ARMS: dict[str, Any] = {"new": {"worker": "worker-0"}, "old": {"worker": "worker-1"}}


def by_blocks(
    latencies: dict[str, Sequence[Sequence[float]]], *, spacing_s: float = 0.5, tokens: int = 10, settle_s: float = 0.0
) -> Run:
    """A run whose blocks, in turn, ask a request every `spacing_s`, with these latencies by arm and block."""
    run = _run({"phase": "measure", "by": "blocks", "block_s": BLOCK_S, "pause_s": PAUSE_S})
    start_s = START_S
    for number in range(max(map(len, latencies.values()))):
        for arm in sorted(latencies, reverse=bool(number % 2)):
            if number < len(latencies[arm]):
                start_s += PAUSE_S
                run.event("director", start_s + settle_s - 0.001, "block_started", arm, detail=str(number))
                for place, latency_s in enumerate(latencies[arm][number]):
                    add(run, arm, number, f"{arm}-{number}-{place}", start_s + place * spacing_s, latency_s, tokens)
                start_s += BLOCK_S
                run.event("director", start_s, "block_ended", arm, detail=str(number))
    _phases(run, start_s)
    return run


def by_sessions(pairs: Sequence[tuple[int, float, float]], *, missed: int = 0) -> Run:
    """A run of sessions of two arms: prefix in tokens, latency of `sticky` and of `moved`; `missed` found no cache."""
    run = _run({"phase": "measure", "by": "sessions"})
    run.experiment["arms"] = {"sticky": {}, "moved": {"worker": "away"}}
    at_s = START_S
    for number, (prefix, sticky_s, moved_s) in enumerate(pairs):
        for arm, latency_s in (("sticky", sticky_s), ("moved", moved_s)):
            session = f"{arm}-{number}"
            add(run, "", -1, f"{session}-0", at_s, 0.01, 1, session=session, prompt_tokens=prefix)
            cached = prefix if arm == "sticky" and number >= missed else 3
            add(
                run, arm, number, f"{session}-1", at_s + 1, latency_s, 10,
                session=session, turn=1, prompt_tokens=prefix + 40, cached=cached,
            )  # fmt: skip
            at_s += 0.5
    _phases(run, at_s + 2)
    return run


def add(
    run: Run,
    arm: str,
    number: int,
    request_id: str,
    intended_s: float,
    latency_s: float,
    tokens: int,
    *,
    session: str = "",
    turn: int = 0,
    prompt_tokens: int = 30,
    cached: int = 0,
    batch: float = 1.0,
) -> None:
    """A completed request, planned, asked and answered."""
    ended_s = intended_s + latency_s
    session = session or request_id
    plan = {
        "request_id": request_id,
        "intended_s": intended_s,
        "session_id": session,
        "turn": turn,
        "prompt_id": request_id,
        "prompt_tokens": prompt_tokens,
        "max_tokens": tokens,
    }
    run.schedule.append({**plan, "arm": arm, "worker": "", "block": number, "segment": ""})
    segments = [Segment(0, tokens, 1, 1, "worker-0", 1, ended_s)]
    row = RequestRow(
        **plan, model="tiny", sent_s=intended_s, first_token_s=ended_s - latency_s / 2, ended_s=ended_s,
        deadline_s=intended_s + 10, outcome="completed", code="", finish="length", submissions=1, cached_tokens=cached,
        strays=0, tokens=[1] * tokens, segments=segments,
    )  # fmt: skip
    run.add("client-0", row)
    attempt = AttemptRow(
        side="worker", request_id=request_id, submission=1, attempt=1, worker="worker-0", worker_incarnation=1,
        begun_s=intended_s, started_s=intended_s, first_token_s=ended_s - latency_s / 2, ended_s=ended_s,
        deadline_s=intended_s + 10, index=0, tokens=tokens, outcome="completed", code="", batch_mean=batch,
    )  # fmt: skip
    run.add("worker-0", attempt)
    run.add("controller", msgspec.structs.replace(attempt, side="controller", started_s=None, batch_mean=0.0))


def action(run: Run, at_s: float, done: bool, what: str = "prewarm") -> None:
    """A worker was told to do something."""
    run.event("director", at_s, "worker_action", "worker-0", detail=json.dumps({"action": what, "done": done}))


def _run(comparison: dict[str, Any]) -> Run:
    run = Run()
    run.info = INFO
    run.references = None
    run.experiment = {"name": "compared", "arms": dict(ARMS), "comparison": comparison, "expectations": {}}
    return run


def _phases(run: Run, stop_s: float) -> None:
    run.event("director", 0.0, "run_started")
    run.event("director", START_S, "phase_started", "measure")
    run.event("director", stop_s, "phase_ended", "measure")
    run.event("director", stop_s + 5, "run_ended")


def history(run: Run) -> History:
    """Read it back."""
    return run.history()
