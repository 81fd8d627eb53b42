"""The cluster on the virtual clock, and what can be done to its processes."""

from collections import deque
from collections.abc import Callable
from functools import partial
from random import Random

from analysis.schema import Row
from cluster.birth import Birth
from cluster.controller.controller import ControllerNode
from cluster.engine.costs import SharedHost
from cluster.engine.timed import StepCosts, TimedEngine
from cluster.policy import Policy
from cluster.protocol import Drain
from cluster.record import Recorder
from cluster.simulation.impaired import ImpairedEngine
from cluster.simulation.kernel import Kernel
from cluster.simulation.network import Network, NetworkCosts
from cluster.simulation.shell import SimulatedNode, Sink
from cluster.worker.prewarm import ModelOffer


class SimulatedCluster:
    """Some controllers, workers and clients, and the network between them. Everything repeats itself by seed."""

    def __init__(
        self,
        policy: Policy,
        workers: int,
        clients: int,
        seed: int,
        sinks: Callable[[str, int], Sink],
        *,
        controllers: int = 1,
        model: str = "timed",
        costs: StepCosts | None = None,
        network: NetworkCosts | None = None,
        policy_of: Callable[[str], Policy] | None = None,
        recorders: Callable[[Birth, float], Recorder] | None = None,
        host_of: Callable[[str], str] = lambda node: "",
    ) -> None:
        """sinks: from node name and incarnation to where its rows go. A lone controller is named `controller`.

        policy_of: what each node lives by, where that is not the same for all. recorders: of what nodes decide, from
        what each is made from and how far its clock is ahead; None: nobody asks. host_of: whose engines share cores.
        """
        self.kernel = Kernel()
        self.model = model
        self.costs = costs or StepCosts()
        self.network = Network(self.kernel, policy.link, network or NetworkCosts(), Random(f"{seed}/network"))
        self.nodes: dict[str, SimulatedNode] = {}
        self.clock_ahead_s: dict[str, float] = {}
        """Of the next incarnation of a node."""
        self._policy = policy
        self._policy_of = policy_of
        self._seed = seed
        self._sinks = sinks
        self._host_of = host_of
        self._hosts: dict[str, SharedHost] = {}
        self._recorders = recorders
        several = [f"controller-{number}" for number in range(controllers)]
        self._controllers = several if controllers > 1 else ["controller"]
        for name in self._controllers:
            self._add(name, 1)
        for role, count in (("worker", workers), ("client", clients)):
            for number in range(count):
                self._add(f"{role}-{number}", 1)

    @property
    def memory_bytes_max(self) -> int | None:
        """What a worker may hold unless somebody tells it otherwise."""
        return self._policy.memory.bytes_max

    @property
    def controller(self) -> ControllerNode:
        """The only controller, or the first one, in its newest incarnation."""
        return self.controllers[0]

    @property
    def controllers(self) -> list[ControllerNode]:
        """All of them in their newest incarnations, whether they run or not."""
        nodes = [self.nodes[name].node for name in self._controllers]
        return [node for node in nodes if isinstance(node, ControllerNode)]

    def start(self) -> None:
        """Start every node at the present instant."""
        for node in self.nodes.values():
            node.start()

    def running(self, name: str) -> bool:
        """Whether the node's process is there and moves."""
        node = self.nodes[name]
        return not node.ended and not node.frozen

    def crash(self, name: str) -> None:
        """SIGKILL: its connection closes, its state and its engine are gone, and it writes nothing more."""
        self.nodes[name].crash()

    def freeze(self, name: str) -> None:
        """SIGSTOP: it handles nothing and its engine stands still, while messages pile up at its socket.

        The broker drops its connection when too many pings stay unanswered.
        """
        self.nodes[name].freeze()

    def thaw(self, name: str) -> None:
        """SIGCONT: it handles what has piled up, then what is overdue, and goes on where it stood."""
        self.nodes[name].thaw()

    def drain(self, name: str) -> None:
        """Tell a worker to finish what it has and take nothing new; a frozen one hears it when it has thawed."""
        self.nodes[name].hear(Drain())

    def stop(self, name: str) -> None:
        """End its process in an orderly way, and whatever way there is if it is frozen."""
        self.nodes[name].stop()

    def restart(self, name: str) -> None:
        """Start a new incarnation in place of the present one, which is stopped if it still runs.

        Its clock is as far ahead as `clock_ahead_s` says of it, and what impairs its engine impairs the new one too.
        """
        former = self.nodes[name]
        former.stop()
        self._add(name, former.node.incarnation + 1)
        engine = self.nodes[name].engine
        if engine is not None and former.engine is not None:
            engine.succeed(former.engine)
        self.nodes[name].start()

    def _add(self, name: str, incarnation: int) -> None:
        """A new node, without a memory of earlier incarnations, and a worker's engine."""
        birth, ahead_s = self._birth(name, incarnation), self.clock_ahead_s.get(name, 0.0)
        engine = None
        if birth.role == "worker":
            engine = ImpairedEngine(self.kernel, self._timed_engine(birth))
        self.nodes[name] = SimulatedNode(
            self.kernel,
            self.network,
            birth.node(),
            self._sinks(name, incarnation),
            engine,
            ahead_s,
            None if self._recorders is None else self._recorders(birth, ahead_s),
            self._shared_host(name) if engine is not None else None,
        )

    def _timed_engine(self, birth: Birth) -> TimedEngine:
        host = self._shared_host(birth.name)
        return TimedEngine(
            self.costs,
            birth.policy.worker,
            birth.policy.stream.flush_s,
            random=Random(f"{self._seed}/{birth.name}/{birth.incarnation}/engine"),
            contention=None if host is None else partial(host.factor, birth.name),
        )

    def _shared_host(self, name: str) -> SharedHost | None:
        """Whose cores a node's engine shares with others; None where that costs nothing."""
        if not self.costs.contention:
            return None
        return self._hosts.setdefault(self._host_of(name), SharedHost(self.costs))

    def _birth(self, name: str, incarnation: int) -> Birth:
        """All that a node is made from."""
        policy = self._policy if self._policy_of is None else self._policy_of(name)
        role = name.partition("-")[0]
        if role == "worker":
            return Birth(role, name, incarnation, policy, (ModelOffer(self.model),))
        seed = f"{self._seed}/{name}" if incarnation == 1 else f"{self._seed}/{name}/{incarnation}"
        return Birth(role, name, incarnation, policy, random_seed=seed if role == "controller" else "")


class RowList:
    """A sink that keeps its rows in memory."""

    def __init__(self, rows: list[tuple[str, Row]] | None = None, node: str = "", rows_max: int = 10_000_000) -> None:
        self.rows: deque[tuple[str, Row]] | list[tuple[str, Row]] = rows if rows is not None else deque(maxlen=rows_max)
        self._node = node

    def append(self, row: Row, now: float) -> None:
        """See Sink."""
        self.rows.append((self._node, row))
