"""The guard: how far a run may hurt the cluster, and when it has to stop."""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from chaos.experiment import GuardSpec
from chaos.faults.roles import role_of
from chaos.progress import Snapshot


class Stopped(Exception):
    """The run must end now. by: `stop_condition`, or `stop_file`, which says nothing about the cluster."""

    def __init__(self, by: str, reason: str) -> None:
        super().__init__(reason)
        self.by = by
        self.reason = reason


class Guard:
    """Asked before every injection and after every look at the cluster. It waits for nobody and reads one file."""

    def __init__(self, spec: GuardSpec, workers: Sequence[str]) -> None:
        """workers: all of the cluster."""
        self._spec = spec
        self._workers = workers
        self._seen: deque[Snapshot] = deque(maxlen=1_000)

    def forbids(self, targets: Collection[str], hurt: Collection[str], liveness: Mapping[str, str]) -> str | None:
        """Why a fault may not strike now, None if it may.

        hurt: targets of the faults in force. liveness: of each worker as a controller sees it, empty when none answers.
        """
        most = self._spec.targets_max
        together = {*targets, *hurt}
        if most is not None and len(together) > most:
            return f"{len(together)} nodes would be under a fault at once, guard.targets_max is {most}"
        if self._spec.last_worker or not any(role_of(target) == "worker" for target in targets):
            return None
        left = [worker for worker in self._workers if worker not in together]
        healthy = [worker for worker in left if liveness.get(worker, "ready") == "ready"]
        if not healthy:
            return "no healthy worker would be left; guard.last_worker: true allows that"
        return None

    def unrecovered(self, fault: str) -> None:
        """A heal is not proven. Raises Stopped when that ends the run."""
        if self._spec.stop_when_unrecovered:
            raise Stopped("stop_condition", f"the heal of {fault} is not proven")

    def check(self, snapshot: Snapshot) -> None:
        """Raises Stopped when somebody asks for the end, or a stop condition is met."""
        spec = self._spec
        if spec.stop_file is not None and Path(spec.stop_file).exists():
            raise Stopped("stop_file", f"{spec.stop_file} exists")
        self._seen.append(snapshot)
        while len(self._seen) > 1 and self._seen[1].elapsed_s <= snapshot.elapsed_s - spec.window_s:
            self._seen.popleft()
        first = self._seen[0]
        bad = snapshot.failed + snapshot.refused - first.failed - first.refused
        ended = bad + snapshot.completed - first.completed
        share = bad / ended if ended >= spec.requests_min else 0.0
        if spec.error_share_max is not None and share > spec.error_share_max:
            told = f"{share:.0%} of {ended} requests failed in {spec.window_s:g} s"
            raise Stopped("stop_condition", f"{told}, guard.error_share_max is {spec.error_share_max:.0%}")
        p99_s = snapshot.latency_p99_s
        if spec.latency_p99_s_max is not None and p99_s is not None and p99_s > spec.latency_p99_s_max:
            most_s = spec.latency_p99_s_max
            raise Stopped("stop_condition", f"p99 latency is {p99_s:.2f} s, guard.latency_p99_s_max is {most_s:g} s")
