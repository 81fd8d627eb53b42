"""`python -m workloads.stub_controller`: a controller that computes nothing and keeps time, to measure clients against.

It accepts every request and delivers as many tokens as were asked for, `piece_tokens` in each message: the first piece
`ttft_s` after the request was taken, each next `gap_s` after the one before, as planned from the first moment, so that
one that is late does not delay the next. A gap of 0 sends all pieces one after the other at once.

The process takes its birth as a line of JSON on standard input, says `{}` when it is on the bus, and then answers
every line with its counts since the line before. It ends with its standard input.
"""

import asyncio
import heapq
import math
import sys
import time
from collections.abc import Sequence

import msgspec
import numpy as np

from analysis.schema import Gauges
from cluster.live.nats import LinkUnavailable
from cluster.live.node import LiveNode
from cluster.live.process import CountingSink
from cluster.node import Command, Event, Received, Send, Wake
from cluster.policy import LinkPolicy
from cluster.protocol import Accepted, AttemptId, Cancel, Chunk, Delivery, Ping, Pong, Submit
from workloads.stub_server import Stats

NAME = "controller-0"
_WORKER = "stub"
_TOKENS_MAX = 10_000
_OPEN_MAX = 10_000
_LATE_MAX = 200_000
_START_S = 10.0


class Timing(msgspec.Struct, frozen=True):
    """When what comes, seconds and tokens."""

    ttft_s: float
    gap_s: float
    piece_tokens: int = 1


class Birth(msgspec.Struct, frozen=True):
    """What the process needs. url: NATS with the controller's credentials."""

    url: str
    timing: Timing


class _Stream:
    """One request that is being answered. due_s: when its next piece is."""

    __slots__ = ("begun", "count", "due_s", "submit")

    def __init__(self, submit: Submit, due_s: float) -> None:
        self.submit = submit
        self.count = min(max(1, submit.max_tokens), _TOKENS_MAX)
        self.begun = 0
        self.due_s = due_s


class StubController:
    """A node, see cluster.node.Node; cluster.live.node drives it."""

    def __init__(self, name: str, incarnation: int, timing: Timing) -> None:
        self.name = name
        self.incarnation = incarnation
        self.requests = self.tokens = 0
        """Since somebody set them to 0."""
        self.late_s: list[float] = []
        """Of each piece against the plan."""
        self._timing = timing
        self._streams: dict[str, _Stream] = {}
        self._due: list[tuple[float, str]] = []
        """A heap of times and request ids; of those that are over, entries may be left."""

    def handle(self, event: Event, now: float) -> Sequence[Command]:
        """See cluster.node.Node."""
        match event:
            case Received(Ping(client)):
                return [Send(client, Pong(self.name, self.incarnation, now))]
            case Received(Submit() as submit):
                return self._submit(submit, now)
            case Received(Cancel(_, request_id)):
                self._streams.pop(request_id, None)
                return []
            case Wake():
                return self._deliver(now)
            case _:
                return []

    def next_wake(self) -> float | None:
        """See cluster.node.Node."""
        return self._due[0][0] if self._due else None

    def gauges(self) -> Gauges:
        """See cluster.node.Node."""
        return Gauges(role="controller", open_requests=len(self._streams))

    def _submit(self, submit: Submit, now: float) -> list[Command]:
        if len(self._streams) >= _OPEN_MAX:
            return []
        stream = self._streams[submit.request_id] = _Stream(submit, now + self._timing.ttft_s)
        self.requests += 1
        heapq.heappush(self._due, (stream.due_s, submit.request_id))
        accepted = Send(submit.client, Accepted(submit.request_id, submit.submission))
        return [accepted, *self._deliver(now)] if self._timing.ttft_s <= 0 else [accepted]

    def _deliver(self, now: float) -> list[Command]:
        commands: list[Command] = []
        while self._due and self._due[0][0] <= now:
            due_s, request_id = heapq.heappop(self._due)
            stream = self._streams.get(request_id)
            # Of one that was cancelled and came again, the old entry is no plan any more.
            if stream is not None and stream.due_s == due_s:
                commands.append(Send(stream.submit.client, self._piece(stream, now)))
                if stream.begun < stream.count:
                    stream.due_s = due_s + self._timing.gap_s
                    heapq.heappush(self._due, (stream.due_s, request_id))
                else:
                    del self._streams[request_id]
        return commands

    def _piece(self, stream: _Stream, now: float) -> Delivery:
        if len(self.late_s) < _LATE_MAX:
            self.late_s.append(now - stream.due_s)
        submit, index = stream.submit, stream.begun
        size = min(self._timing.piece_tokens, stream.count - index)
        stream.begun += size
        self.tokens += size
        chunk = Chunk(
            AttemptId(submit.request_id, submit.submission, 1),
            index,
            tuple(range(index, index + size)),
            (now,) * size,
            "length" if stream.begun >= stream.count else None,
            worker=_WORKER,
            worker_incarnation=1,
        )
        return Delivery(self.incarnation, ((submit.submission, chunk),))


class _Meter:
    """What the process took since it was asked last."""

    def __init__(self, node: StubController) -> None:
        self._node = node
        self._began_s, self._cpu_s = time.monotonic(), time.process_time()

    def read(self) -> Stats:
        """And begin anew."""
        node, now, cpu_s = self._node, time.monotonic(), time.process_time()
        late = np.array(node.late_s)
        p50, p99 = (float(np.quantile(late, share)) for share in (0.5, 0.99)) if late.size else (None, None)
        stats = Stats(node.requests, node.tokens, cpu_s - self._cpu_s, now - self._began_s, p50, p99)
        node.requests = node.tokens = 0
        node.late_s = []
        self._began_s, self._cpu_s = now, cpu_s
        return stats


async def serve(birth: Birth, lines: asyncio.StreamReader) -> None:
    """Be the controller until the lines end. Raises LinkUnavailable."""
    node = StubController(NAME, time.time_ns(), birth.timing)
    shell = LiveNode(node, birth.url, LinkPolicy(), CountingSink(), controller=True)
    try:
        await shell.start(_START_S)
        meter = _Meter(node)
        print("{}", flush=True)
        while await lines.readline():
            print(msgspec.json.encode(meter.read()).decode(), flush=True)
    finally:
        await shell.stop()


async def _main() -> int:
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    birth = msgspec.json.decode(await lines.readline(), type=Birth)
    if not (math.isfinite(birth.timing.ttft_s) and birth.timing.gap_s >= 0 and birth.timing.piece_tokens >= 1):
        print("workloads.stub_controller: expected a gap of 0 s or more and pieces of 1 token or more", file=sys.stderr)
        return 2
    try:
        await serve(birth, lines)
    except LinkUnavailable as error:
        print(f"workloads.stub_controller: {error}", file=sys.stderr)
        return 5
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
