"""A simulated cluster under load whose processes and links a test hurts, and whose history the real checkers judge."""

from collections.abc import Callable
from random import Random

import msgspec

from analysis.checkers import CHECKERS
from analysis.history import RunInfo
from analysis.schema import AttemptRow, EventRow, FaultRow, RequestRow, Row
from analysis.verdict import Outcome
from cluster.engine.timed import completion
from cluster.node import Ask, Deliver
from cluster.policy import ClientPolicy, Policy
from cluster.simulation.cluster import SimulatedCluster
from cluster.simulation.network import Condition, Flow
from tests.analysis.histories import Run
from workloads.load import OpenLoop
from workloads.schedule import ScheduledRequest

DEADLINE_S = 8.0
POLICY = Policy(client=ClientPolicy(deadline_s=DEADLINE_S))
INVARIANTS = (1, 2, 3, 4, 5, 6, 8)
CUTS = {
    "refuse": Condition(refused=True),
    "black_hole": Condition(Flow.DROP, Flow.DROP, close_passes=False),
    "stall": Condition(Flow.HOLD, Flow.HOLD, close_passes=False),
    "upstream": Condition(upstream=Flow.DROP),
    "downstream": Condition(downstream=Flow.DROP),
}


class Ends:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.asked_for: dict[str, Ask] = {}
        self.ended_s: dict[str, float] = {}

    def asked(self, ask: Ask) -> None:
        """See Observer."""
        assert ask.request_id not in self.asked_for
        self.asked_for[ask.request_id] = ask

    def ended(self, ask: Ask, end: Deliver, now: float) -> None:
        """See Observer."""
        assert self.asked_for[ask.request_id] is ask
        assert ask.request_id not in self.ended_s
        self.ended_s[ask.request_id] = now


class NodeRows:
    """A sink that notes who wrote a row."""

    def __init__(self, run: Run, node: str, incarnation: int) -> None:
        self._run, self._node, self._incarnation = run, node, incarnation

    def append(self, row: Row, now: float) -> None:
        """See Sink."""
        self._run.add(self._node, row, self._incarnation)


class Stage:
    """Three workers unless it says otherwise, ready to serve. Times are those of the virtual clock."""

    def __init__(
        self, seed: int = 1, *, workers: int = 3, clients: int = 2, controllers: int = 1, policy: Policy = POLICY
    ) -> None:
        self.run = Run()
        self.run.references = []
        self.seed = seed
        self.cluster = SimulatedCluster(
            policy, workers, clients, seed, lambda *node: NodeRows(self.run, *node), controllers=controllers
        )
        self.cluster.start()
        self._ends: list[Ends] = []
        self._hurt: set[str] = set()
        self.draining: set[str] = set()
        self.wait(2.0)

    @property
    def now(self) -> float:
        """The virtual clock, seconds."""
        return self.cluster.kernel.now

    @property
    def workers(self) -> list[str]:
        """Names of all workers."""
        return [name for name in self.cluster.nodes if name.startswith("worker-")]

    def wait(self, seconds: float) -> None:
        """Let the cluster go on."""
        self.cluster.kernel.run_until(self.now + seconds)

    def wait_for(self, condition: Callable[[], bool], limit_s: float) -> None:
        """Let the cluster go on until the condition holds, looked at every 10 ms; fails after `limit_s`."""
        end_s = self.now + limit_s
        while not condition():
            assert self.now < end_s, f"not within {limit_s:g} s"
            self.wait(0.01)

    def offer(self, count: int, every_s: float, name: str = "load", tokens_max: int = 100) -> None:
        """Let each client ask for `count` completions of up to `tokens_max` tokens, at a fixed interval."""
        for number in range(sum(node.startswith("client-") for node in self.cluster.nodes)):
            random = Random(f"{self.seed}/{name}/{number}")
            plan = [
                ScheduledRequest(
                    request_id=f"{name}-{number}-{turn}",
                    intended_s=turn * every_s,
                    session_id=f"s{number}-{turn % 5}",
                    turn=turn,
                    prompt=tuple(random.randrange(200) for _ in range(random.randrange(1, 60))),
                    max_tokens=random.randrange(1, tokens_max + 1),
                    prompt_id=f"{name}-{number}-{turn}",
                )
                for turn in range(count)
            ]
            self._note(plan)
            self._ends.append(Ends())
            loop = OpenLoop(plan, self.now, self.cluster.model, DEADLINE_S)
            self.cluster.nodes[f"client-{number}"].drive(loop, self._ends[-1])

    def do(self, action: str, node: str) -> None:
        """Hurt a node: an action of SimulatedCluster, the name of a cut, or `mend` for its link."""
        self._hurt.add(node)
        if action in CUTS:
            self.cluster.nodes[node].link.set_condition(CUTS[action])
        elif action == "mend":
            self.cluster.nodes[node].link.set_condition(Condition())
        elif action != "drain":
            getattr(self.cluster, action)(node)
            if action == "restart":
                self.draining.discard(node)
        elif node in self.workers and not self.cluster.nodes[node].ended:
            self.cluster.drain(node)
            self.draining.add(node)

    def heal(self) -> None:
        """Mend every link, thaw what is frozen, and start anew what has ended or drains."""
        for name in list(self.cluster.nodes):
            self.cluster.nodes[name].link.set_condition(Condition())
            self.cluster.thaw(name)
            if self.cluster.nodes[name].ended or name in self.draining:
                self.cluster.restart(name)
        self.draining.clear()

    def requests(self) -> list[RequestRow]:
        """The ended requests."""
        return [row for _, _, row in self.run.rows["requests"] if isinstance(row, RequestRow)]

    def attempts(self, side: str, node: str | None = None) -> list[AttemptRow]:
        """The ended attempts as the controllers or the workers saw them, or as one of them did."""
        rows = self.run.rows["attempts"]
        seen = [row for name, _, row in rows if isinstance(row, AttemptRow) and node in (None, name)]
        return [row for row in seen if row.side == side]

    def events(self, kind: str) -> list[tuple[str, EventRow]]:
        """The events of a kind, each with its writer."""
        return [
            (name, row) for name, _, row in self.run.rows["events"] if isinstance(row, EventRow) and row.kind == kind
        ]

    def assert_sound(self) -> None:
        """Call it when all is over: every request has one end, in time; the checkers find nothing; all is empty."""
        asked = {name: ask for ends in self._ends for name, ask in ends.asked_for.items()}
        ended = [name for ends in self._ends for name in ends.ended_s]
        assert sorted(ended) == sorted(asked) == sorted(row["request_id"] for row in self.run.schedule)
        assert sorted(row.request_id for row in self.requests()) == sorted(asked)
        for row in self.requests():
            assert row.ended_s <= row.deadline_s + 1e-9
            whole = completion(asked[row.request_id].prompt, row.max_tokens, self.cluster.costs.vocabulary)
            assert row.tokens == whole[: len(row.tokens)]
            assert row.outcome != "completed" or row.tokens == whole
        for name, node in self.cluster.nodes.items():
            if node.ended:
                continue
            gauges = node.node.gauges()
            levels = (gauges.queue_depth, gauges.active, gauges.open_requests, gauges.kv_bytes)
            assert levels == (0, 0, 0, 0), name
        self._assert_judged()

    def assert_whole(self) -> None:
        """Every controller would give work to every worker now."""
        for controller in self.cluster.controllers:
            assert controller.warm_workers(self.cluster.model) == len(self.workers), controller.workers()

    def _assert_judged(self) -> None:
        run = self.run
        run.info = RunInfo(
            run_id="stage",
            experiment="bad_day",
            world="simulated",
            seed=self.seed,
            complete=True,
            ended_by="the last phase was over",
            invariants=list(INVARIANTS),
        )
        run.experiment = {"recovery_limit_s": 20.0, "policy": msgspec.to_builtins(POLICY)}
        run.event("director", self.now, "run_ended")
        if self._hurt:
            run.add("director", self._fault())
        history = run.history()
        for number in INVARIANTS:
            result = CHECKERS[number].check(history)
            assert result.verdict is Outcome.PASS, result

    def _fault(self) -> FaultRow:
        return FaultRow(
            name="bad_day",
            kind="several",
            targets=sorted(self._hurt),
            parameters="{}",
            injected_s=0.0,
            verified=True,
            verified_s=0.0,
            healed_s=self.now,
            heal_verified=True,
            explains=[],
            evidence="{}",
        )

    def _note(self, plan: list[ScheduledRequest]) -> None:
        vocabulary, references = self.cluster.costs.vocabulary, self.run.references
        assert references is not None
        for request in plan:
            self.run.schedule.append(
                {
                    "request_id": request.request_id,
                    "intended_s": self.now + request.intended_s,
                    "session_id": request.session_id,
                    "turn": request.turn,
                    "prompt_id": request.prompt_id,
                    "prompt_tokens": len(request.prompt),
                    "max_tokens": request.max_tokens,
                }
            )
            tokens = completion(request.prompt, request.max_tokens, vocabulary)
            references.append({"prompt_id": request.prompt_id, "tokens": tokens})
