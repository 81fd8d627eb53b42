"""What a worker writes into the history and reports of its streams, and the counters that it samples."""

from collections import Counter
from itertools import chain

import msgspec

from analysis.schema import AttemptRow, EventRow
from cluster.node import Command, EngineReport, ModelLoaded, Record, Send, SequenceProgress
from cluster.protocol import AttemptId, Chunk, StreamReport
from cluster.worker.scheduler import Work


class EngineTotals:
    """What the engine has done since the worker began. None of these ever falls."""

    __slots__ = ("cached_tokens", "decode_s", "prefill_s", "prefill_tokens", "steps", "tokens_made")

    def __init__(self) -> None:
        self.steps = 0
        self.decode_s = 0.0
        self.prefill_tokens = 0
        self.prefill_s = 0.0
        self.tokens_made = 0
        self.cached_tokens = 0

    def add(self, report: EngineReport) -> None:
        """Count the steps and prompts of a report; its streams are counted as they are told."""
        self.steps += report.steps
        self.decode_s += report.decode_s
        self.prefill_tokens += report.prefill_tokens
        self.prefill_s += report.prefill_s

    def told(self, work: Work, part: SequenceProgress, batch: Counter[float]) -> None:
        """Count news of an attempt. batch: how many sequences made a token at each time."""
        self.tokens_made += len(part.tokens)
        work.batch_sum += sum(map(batch.__getitem__, part.times_s))
        if part.tokens and work.first_token_s is None:
            work.first_token_s = part.times_s[0]
        if not work.cached_tokens:
            work.cached_tokens = part.cached_tokens
            self.cached_tokens += part.cached_tokens


def batch_sizes(report: EngineReport) -> Counter[float]:
    """How many sequences made a token at each time. All tokens of a step have the same time."""
    return Counter(chain.from_iterable([part.times_s for part in report.progress]))


def attempt_row(work: Work, worker: str, incarnation: int, outcome: str, code: str, now: float) -> Record:
    """The end of an attempt at `now`."""
    dispatch = work.dispatch
    row = AttemptRow(
        side="worker",
        request_id=dispatch.attempt.request_id,
        submission=dispatch.attempt.submission,
        attempt=dispatch.attempt.attempt,
        worker=worker,
        worker_incarnation=incarnation,
        begun_s=work.received_s,
        started_s=work.started_s,
        first_token_s=work.first_token_s,
        ended_s=now,
        deadline_s=dispatch.deadline_s,
        index=len(dispatch.delivered),
        tokens=len(work.made),
        outcome=outcome,
        code=code,
        cached_tokens=work.cached_tokens,
        batch_mean=work.batch_mean,
        priority=dispatch.priority,
    )
    return Record(row)


def event_row(now: float, kind: str, worker: str, attempt: AttemptId | None = None, detail: str = "") -> Record:
    """Something that happened on the worker, perhaps to an attempt."""
    if attempt is None:
        return Record(EventRow(now, kind, worker, detail=detail))
    return Record(EventRow(now, kind, worker, attempt.request_id, attempt.submission, attempt.attempt, detail))


def timing_row(now: float, worker: str, loaded: ModelLoaded) -> Record:
    """How long a model took to become warm."""
    parts = {"load_s": loaded.load_s, "weights_s": loaded.weights_s, "first_token_s": loaded.first_token_s}
    detail = msgspec.json.encode({"model": loaded.model, **parts}).decode()
    return event_row(now, "model_timing", worker, detail=detail)


def reports(worker: str, incarnation: int, news: list[tuple[str, Chunk]], now: float) -> list[Command]:
    """One report to each controller of what is new of the streams that it asked for. news: controller and chunk."""
    by_controller: dict[str, list[Chunk]] = {}
    for controller, chunk in news:
        by_controller.setdefault(controller, []).append(chunk)
    return [
        Send(controller, StreamReport(worker, incarnation, now, tuple(chunks)), needs_responder=True)
        for controller, chunks in by_controller.items()
    ]
