"""What the control plane costs on a real nats-server: client, controller and a worker whose engine answers at once.

All three nodes run in this process, on one loop, against bare nats-py request and reply that runs here too.
"""

import asyncio
import contextlib
import random
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import nats
import numpy as np
from nats.aio.client import Client
from nats.aio.msg import Msg

from cluster.client import ClientNode
from cluster.controller.controller import ControllerNode
from cluster.live.broker import Broker
from cluster.live.node import LiveNode
from cluster.live.process import CountingSink
from cluster.node import Ask, Deliver, EngineAnswered, EngineReport, Insert, ModelLoaded, Node, SequenceProgress
from cluster.policy import Policy
from cluster.protocol import Submit, encode
from cluster.worker.prewarm import ModelOffer
from cluster.worker.worker import WorkerNode

Row = tuple[str, str, str, str]
IN_FLIGHT = (1, 32)
REQUESTS = 6_000
TOKENS = 16
PROMPT = tuple(range(1, 65))
_START_S = 10.0


class _NullEngine:
    """Completes every sequence at once."""

    def __init__(self, shell: LiveNode) -> None:
        self._shell = shell

    def load(self, model: str) -> None:
        self._shell.feed(ModelLoaded(model))

    def insert(self, command: Insert) -> None:
        now = time.monotonic()
        most = command.max_tokens
        done = SequenceProgress(command.sequence, tuple(range(most)), (now,) * most, "length")
        self._shell.feed(EngineReport((done,), most))

    def unload(self, model: str) -> None:
        pass

    def probe(self) -> None:
        self._shell.feed(EngineAnswered())

    def remove(self, sequence: int) -> None:
        pass

    def drop_cache(self, cache: int) -> None:
        pass

    def memory(self) -> dict[str, int]:
        return {}

    def close(self, timeout_s: float) -> bool:
        return True


class _Caller:
    """Asks through a client node and waits for the end of each request."""

    def __init__(self, shell: LiveNode) -> None:
        self._shell = shell
        self._ends: dict[str, asyncio.Future[Deliver]] = {}
        self._asked = 0
        self.failed = 0
        shell.delivered = self._delivered

    async def ask(self) -> None:
        self._asked += 1
        name = f"r{self._asked}"
        end = self._ends[name] = asyncio.get_running_loop().create_future()
        self._shell.feed(Ask(name, "null", PROMPT, TOKENS, time.monotonic(), 10.0))
        self.failed += (await end).code is not None

    def _delivered(self, delivery: Deliver) -> None:
        if delivery.finish is not None or delivery.code is not None:
            self._ends.pop(delivery.request_id).set_result(delivery)


def control_plane_rows() -> list[Row]:
    """Requests per second, and the time that one request alone takes, ours over bare request and reply."""
    with running_broker(["controller", "worker-0", "client-0", "asks", "answers"], ["controller"]) as broker:
        return asyncio.run(_measure(broker))


@contextlib.contextmanager
def running_broker(users: Sequence[str], controllers: Sequence[str] = ()) -> Iterator[Broker]:
    """A nats-server that ends with the `with`."""
    processes: list[subprocess.Popen[bytes]] = []

    def spawn(name: str, argv: Sequence[str]) -> int:
        processes.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL))
        return processes[-1].pid

    with tempfile.TemporaryDirectory() as folder:
        broker = Broker(Path(folder), users, controllers=controllers)
        try:
            broker.start(spawn)
            yield broker
        finally:
            for process in processes:
                process.kill()
                process.wait()


async def _measure(broker: Broker) -> list[Row]:
    policy = Policy()
    nodes: list[Node] = [
        ControllerNode("controller", 1, policy, random.Random(1)),
        WorkerNode("worker-0", 1, policy, (ModelOffer("null"),)),
        ClientNode("client-0", 1, policy),
    ]
    shells = [
        LiveNode(node, broker.url(node.name), policy.link, CountingSink(), controller=node.name == "controller")
        for node in nodes
    ]
    shells[1].engine = _NullEngine(shells[1])
    raw = await nats.connect(broker.url("asks"), inbox_prefix="mlxc.asks")
    answers = await nats.connect(broker.url("answers"))
    try:
        for shell in shells:
            await shell.start(_START_S)
        caller = _Caller(shells[2])
        await caller.ask()
        payload = await answering(answers)
        rows: list[Row] = []
        for in_flight in IN_FLIGHT:
            ours_s, ours = await spread(caller.ask, in_flight)
            bare_s, bare = await spread(lambda: raw.request("mlxc.answers.in", payload, timeout=10), in_flight)
            per_s, bare_per_s = len(ours) / ours_s, len(bare) / bare_s
            rows.append(
                (
                    f"control plane on NATS, {in_flight} in flight",
                    f"{per_s:.0f} requests/s",
                    f"nats-py request/reply {bare_per_s:.0f}/s",
                    f"{per_s / bare_per_s:.2f}",
                )
            )
            if in_flight == 1:
                rows += [_added(share, ours, bare) for share in (50, 99)]
        if caller.failed:
            rows.append((f"  {caller.failed} of these requests failed", "", "", ""))
        return rows
    finally:
        for shell in shells:
            await shell.stop()
        await raw.close()
        await answers.close()


def _added(share: int, ours: list[float], bare: list[float]) -> Row:
    mine_s, theirs_s = (float(np.percentile(times, share)) for times in (ours, bare))
    text = f"  added latency p{share}: {(mine_s - theirs_s) * 1e3:.2f} ms"
    return text, f"{mine_s * 1e3:.2f} ms", f"{theirs_s * 1e3:.2f} ms", f"{mine_s / theirs_s:.2f}"


async def answering(answers: Client) -> bytes:
    """Answer requests from now on; a payload of a Submit's size, for both ways."""
    payload = encode(Submit("client-0", 1, "r12345", 1, "null", PROMPT, (), TOKENS, 12.5))

    async def answer(msg: Msg) -> None:
        await msg.respond(payload)

    await answers.subscribe("mlxc.answers.in", cb=answer)
    # nats-py writes the ping of a flush ahead of a subscription that still waits; only the second one comes after it.
    await answers.flush()
    await answers.flush()
    return payload


async def spread(
    one: Callable[[], Awaitable[object]], in_flight: int, requests: int = REQUESTS
) -> tuple[float, list[float]]:
    """So many at a time until `requests` are done; the seconds it took, and those of each."""
    times: list[float] = []

    async def one_after_the_other() -> None:
        for _ in range(requests // in_flight):
            began_s = time.perf_counter()
            await one()
            times.append(time.perf_counter() - began_s)

    began_s = time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(in_flight)))
    return time.perf_counter() - began_s, times


if __name__ == "__main__":
    for row in control_plane_rows():
        print(" | ".join(row))
