"""`python -m tests.bench`: ratios against raw parts and against real time, all from this one run. Asserts nothing.

Absolute numbers belong to this machine; a ratio compares two things that ran here within the same minute.
"""

import asyncio
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import nats

from analysis.judge import judge
from analysis.reader import load_history
from chaos.director import Director
from chaos.experiment import Experiment, find
from chaos.progress import Progress
from chaos.resolve import load
from chaos.results import ResultsDirectory
from chaos.worlds.simulated import SimulatedWorld
from cluster.client import ClientNode
from cluster.controller.controller import ControllerNode
from cluster.engine.bench import Gain, Ratio
from cluster.engine.blas import find_blas, preload_environment
from cluster.engine.weights import SMOLLM2, ModelUnavailable, model_directory
from cluster.node import (
    Ask,
    Command,
    Deliver,
    EngineReport,
    Event,
    Insert,
    LinkUp,
    Load,
    ModelLoaded,
    Node,
    Received,
    Send,
    SequenceProgress,
    Wake,
)
from cluster.policy import Policy
from cluster.protocol import (
    CONTROLLERS,
    EVERY_CONTROLLER,
    AttemptId,
    Chunk,
    Delivery,
    Dispatch,
    Heartbeat,
    Message,
    ModelState,
    StreamReport,
    Submit,
    decode,
    encode,
)
from cluster.worker.prewarm import ModelOffer
from cluster.worker.worker import WorkerNode
from tests.aggregate_bench import aggregate_rows
from tests.control_plane_bench import answering, control_plane_rows, running_broker, spread
from tests.processes import ROOT
from tests.roofline_bench import nats_client_rows, roofline_rows
from tests.serving_bench import serving_rows
from tests.toxiproxy_bench import toxiproxy_rows

SIMULATED = ("workload.rate=100/s", "workload.rate_max=100/s", "workload.sessions=200")
PHASES = {"warm_up": 10, "baseline": 25, "fault": 40, "recovery": 26}
ENGINE_ROUNDS = 3
IN_FLIGHT = (1, 32)
REQUESTS = 16_000
TOKENS = 16
PROMPT = tuple(range(1, 65))
CODEC_LOOPS = 20_000
Row = tuple[str, str, str, str]


def _experiment(scale: float = 1.0) -> Experiment:
    phases = [f"phases.{name}.duration_s={seconds * scale:g}" for name, seconds in PHASES.items()]
    fault = [f"faults.cut.start_s={1 * scale:g}", f"faults.cut.duration_s={30 * scale:g}"]
    return load(find("network_partition"), [*SIMULATED, *phases, *fault])


def _quiet() -> Progress:
    return Progress(open(os.devnull, "w", encoding="utf-8"))


def simulated_rows() -> list[Row]:
    """10,000 requests with a partition on virtual time: the run, and what it costs to judge it."""
    experiment = _experiment()
    with tempfile.TemporaryDirectory() as folder:
        began_s = time.perf_counter()
        results = ResultsDirectory(Path(folder), experiment, "simulated", 1)
        world = SimulatedWorld(experiment, 1, results.raw)
        director = Director(world, experiment, 1, _quiet())
        world.run(director.conduct())
        world.run(world.stop())
        ran_s = time.perf_counter() - began_s
        virtual_s = world.clock()
        results.write_plan(director.plan)
        results.merge(world.origin_s)
        results.write_info(
            world.invariants,
            world.exact_tokens,
            world.token_gap_max_nats,
            complete=director.complete,
            ended_by="the last phase",
            notes=[],
        )
        verdict = judge(load_history(results.path))
        judged_s = time.perf_counter() - began_s - ran_s
    offered = verdict.counts.offered
    rows = [
        (
            f"simulated run, {offered} requests, 3 workers, partition",
            f"{ran_s:.2f} s, {offered / ran_s:.0f} requests/s",
            f"{virtual_s:.0f} s of real time",
            f"{virtual_s / ran_s:.0f} x faster",
        ),
        (
            f"  merge, {len(verdict.invariants)} invariants, {len(verdict.criteria)} criteria",
            f"{judged_s:.2f} s",
            f"{ran_s:.2f} s for the run",
            f"{judged_s / ran_s:.2f}",
        ),
    ]
    return [*rows, *_shares()]


def _shares() -> list[Row]:
    """Where the time of a simulated run goes, from a second, shorter run whose nodes are timed."""
    experiment = _experiment(0.25)
    spent_s: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        world = SimulatedWorld(experiment, 1, Path(folder))
        for name, shell in world._cluster.nodes.items():
            shell.node.handle = _timed(shell.node.handle, name.split("-")[0], spent_s)  # type: ignore[method-assign, assignment]
        began_s = time.perf_counter()
        world.run(Director(world, experiment, 1, _quiet()).conduct())
        whole_s = time.perf_counter() - began_s
    spent_s["engines, network, clock, recorder"] = whole_s - sum(spent_s.values())
    return [(f"  share of {kind}", f"{part_s / whole_s:.0%}", "", "") for kind, part_s in spent_s.items()]


def _timed(
    handle: Callable[[Event, float], Sequence[Command]], kind: str, spent_s: dict[str, float]
) -> Callable[[Event, float], Sequence[Command]]:
    def timed(event: Event, now: float) -> Sequence[Command]:
        began_s = time.perf_counter()
        try:
            return handle(event, now)
        finally:
            spent_s[kind] = spent_s.get(kind, 0.0) + time.perf_counter() - began_s

    return timed


def engine_rows() -> list[Row]:
    """The engine against mlx-lm's bare BatchGenerator, in a process of its own with the fast BLAS in it."""
    blas = find_blas()
    found = _in_engine_process(f"from cluster.engine.bench import measure as m; found = m(rounds={ENGINE_ROUNDS})")
    ratios = msgspec.json.decode(found, type=list[Ratio])
    rows = [
        (
            f"engine at batch {ratio.batch} (BLAS: {blas.name})",
            f"{ratio.engine_per_s:.0f} tokens/s",
            f"BatchGenerator {ratio.raw_per_s:.0f} tokens/s",
            f"{ratio.ratio:.3f} ({ratio.ratio_min:.3f} to {ratio.ratio_max:.3f})",
        )
        for ratio in ratios
    ]
    one, most = ratios[0], ratios[-1]
    gain = most.engine_per_s / one.engine_per_s
    text = f"one saturated worker's engine, batch {most.batch} over batch {one.batch}"
    return [
        *rows,
        (text, f"{most.engine_per_s:.0f} tokens/s", f"{one.engine_per_s:.0f} tokens/s", f"{gain:.2f}"),
        *gain_rows(),
    ]


def gain_rows() -> list[Row]:
    """What kept caches and a loaded model save, for `tiny` and, where it has been pulled, for a real model."""
    rows: list[Row] = []
    for model in ("tiny", SMOLLM2):
        try:
            model_directory(model)
        except ModelUnavailable as error:
            rows.append((f"{model}: {error}", "", "", ""))
            continue
        found = _in_engine_process(f"from cluster.engine.gains import gains as g; found = g({model!r}, rounds=3)")
        rows += [
            (
                f"{model}: {gain.what}",
                f"{gain.with_s * 1e3:.1f} ms",
                f"without {gain.without_s * 1e3:.1f} ms",
                f"{gain.ratio:.3f}",
            )
            for gain in msgspec.json.decode(found, type=list[Gain])
        ]
    return rows


def _in_engine_process(code: str) -> bytes:
    """What the code leaves in `found`, as JSON. MLX stays out of this process, and has its BLAS in that one."""
    code = f"import sys, msgspec; {code}; sys.stdout.buffer.write(msgspec.json.encode(found))"
    environment = os.environ | preload_environment(find_blas())
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    return done.stdout


class NullCluster:
    """Client, controller and one worker in this process. The link is a queue; the engine answers at once.

    Every message is encoded and decoded as on the real link, so what is missing is the network and the model.
    """

    def __init__(self) -> None:
        policy = Policy()
        self._queue: deque[tuple[str, bytes]] = deque()
        self._nodes: dict[str, Node] = {
            "controller": ControllerNode("controller", 1, policy, random.Random(1)),
            "worker-0": WorkerNode("worker-0", 1, policy, (ModelOffer("null"),)),
            "client-0": ClientNode("client-0", 1, policy),
        }
        self._asked = 0
        self.ended = 0
        self.failed = 0
        self.messages = 0
        for name in self._nodes:
            self._feed(name, LinkUp())
        ends_s = time.monotonic() + 10
        controller = self._nodes["controller"]
        assert isinstance(controller, ControllerNode)
        while not controller.warm_workers("null"):
            self._turn()
            assert time.monotonic() < ends_s, "the null cluster does not come up"

    def serve(self, requests: int, in_flight: int) -> float:
        """Keep so many requests open until so many have ended; the seconds it took."""
        target, first = self.ended + requests, self._asked
        began_s = time.perf_counter()
        while self.ended < target:
            while self._asked < first + requests and self._asked - self.ended < in_flight:
                self._asked += 1
                now = time.monotonic()
                self._feed("client-0", Ask(f"r{self._asked}", "null", PROMPT, TOKENS, now, 10.0))
            self._turn()
        return time.perf_counter() - began_s

    def _turn(self) -> None:
        while self._queue:
            name, payload = self._queue.popleft()
            self.messages += 1
            self._feed(name, Received(decode(payload)))
        now = time.monotonic()
        for name, node in self._nodes.items():
            wake_s = node.next_wake()
            if wake_s is not None and wake_s <= now:
                self._feed(name, Wake())

    def _feed(self, name: str, event: Event) -> None:
        now = time.monotonic()
        for command in self._nodes[name].handle(event, now):
            match command:
                case Send(to, message):
                    to = "controller" if to in (CONTROLLERS, EVERY_CONTROLLER) else to
                    self._queue.append((to, encode(message)))
                case Insert(sequence, _, _, most):
                    tokens, times_s = tuple(range(most)), (now,) * most
                    done = SequenceProgress(sequence, tokens, times_s, "length")
                    self._feed(name, EngineReport((done,), most))
                case Load(model):
                    self._feed(name, ModelLoaded(model))
                case Deliver(finish=finish, code=code) if finish is not None or code is not None:
                    self.ended += 1
                    self.failed += code is not None


def node_rows() -> list[Row]:
    """Requests through all three nodes, against bare request and reply through a real nats-server on loopback."""
    cluster = NullCluster()
    cluster.serve(500, 8)
    rows = []
    raw_per_s = asyncio.run(_raw_nats())
    for in_flight in IN_FLIGHT:
        before = cluster.messages
        per_s = REQUESTS / cluster.serve(REQUESTS, in_flight)
        told = f"{(cluster.messages - before) / REQUESTS:.1f} messages a request"
        rows.append(
            (
                f"three nodes, null link and engine, {in_flight} in flight ({told})",
                f"{per_s:.0f} requests/s",
                f"nats-py request/reply {raw_per_s[in_flight]:.0f}/s",
                f"{per_s / raw_per_s[in_flight]:.2f}",
            )
        )
    if cluster.failed:
        rows.append((f"  {cluster.failed} of these requests failed", "", "", ""))
    return rows


async def _raw_nats() -> dict[int, float]:
    """Request and reply with a payload of a Submit's size; requests per second for each number in flight."""
    with running_broker(["asks", "answers"]) as broker:
        asks = await nats.connect(broker.url("asks"), inbox_prefix="mlxc.asks")
        answers = await nats.connect(broker.url("answers"))
        payload = await answering(answers)

        async def ask() -> None:
            await asks.request("mlxc.answers.in", payload, timeout=10)

        await spread(ask, 1, 200)
        found = {}
        for in_flight in IN_FLIGHT:
            took_s, times_s = await spread(ask, in_flight, REQUESTS)
            found[in_flight] = len(times_s) / took_s
        await asks.close()
        await answers.close()
    return found


def _messages() -> dict[str, Message]:
    attempt = AttemptId("r12345", 1, 1)
    chunk = Chunk(attempt, 8, tuple(range(8)), tuple(0.01 * i for i in range(8)), None, None, "worker-0", 1)
    return {
        "Submit": Submit("client-0", 1, "r12345", 1, "tiny", PROMPT, (), TOKENS, 12.5, "s1"),
        "Dispatch": Dispatch(attempt, "controller", 1, "tiny", PROMPT, (), TOKENS, 12.5, "s1"),
        "StreamReport": StreamReport("worker-0", 1, 1.5, (chunk,) * 4),
        "Delivery": Delivery(1, ((1, chunk),) * 4),
        "Heartbeat": Heartbeat("worker-0", 1, 1.5, (ModelState("tiny", "warm"),), 3, 8, 8, False),
    }


def codec_rows() -> list[Row]:
    """MessagePack for each kind of message, microseconds."""
    rows = []
    for name, message in _messages().items():
        payload = encode(message)
        began_s = time.perf_counter()
        for _ in range(CODEC_LOOPS):
            encode(message)
        encoded_s = time.perf_counter()
        for _ in range(CODEC_LOOPS):
            decode(payload)
        ended_s = time.perf_counter()
        encode_us = (encoded_s - began_s) / CODEC_LOOPS * 1e6
        decode_us = (ended_s - encoded_s) / CODEC_LOOPS * 1e6
        rows.append((f"{name}, {len(payload)} bytes", f"encode {encode_us:.2f} us", f"decode {decode_us:.2f} us", ""))
    return rows


def main() -> int:
    """Measure one after the other, then print one table."""
    rows: list[Row] = [("what", "ours", "against", "ratio")]
    began_s = time.perf_counter()
    for name, measure in (
        ("simulation", simulated_rows),
        ("nodes", node_rows),
        ("codec", codec_rows),
        ("engine", engine_rows),
        ("control plane on NATS", control_plane_rows),
        ("served cluster", serving_rows),
        ("embedded Toxiproxy", toxiproxy_rows),
        ("HTTP driver", roofline_rows),
        ("NATS client", nats_client_rows),
        ("ten million rows", aggregate_rows),
    ):
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        rows += measure()
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    rows.insert(1, ("-" * widths[0], "-" * widths[1], "-" * widths[2], "-" * widths[3]))
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for row in rows:
        print("| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |")
    print(f"measured in {time.perf_counter() - began_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
