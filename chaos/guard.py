"""The guard: how far a run may hurt the cluster, and when it has to stop."""

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
    """Asked before every injection, and again and again while a run goes on. It waits for nobody and reads one file."""

    def __init__(self, spec: GuardSpec, workers: Sequence[str]) -> None:
        """workers: all of the cluster."""
        self._spec = spec
        self._workers = workers
        self._heard: dict[str, tuple[str, float]] = {}

    def heard(self, liveness: Mapping[str, str], now: float) -> None:
        """What a controller says of the workers that it knows; nothing when none answers. now: seconds."""
        self._heard.update({worker: (state, now) for worker, state in liveness.items()})

    def struck(self, nodes: Collection[str]) -> None:
        """A fault has had them: what was said of them before it holds no longer."""
        for node in nodes:
            self._heard.pop(node, None)

    def forbids(self, targets: Collection[str], hurt: Collection[str], now: float | None) -> str | None:
        """Why a fault may not strike now, None if it may.

        hurt: targets of the faults in force. now: on the clock of `heard`; None where no controller can be asked,
        before a run or at somebody else's cluster: then all that is not hurt is taken to be healthy.
        """
        spec = self._spec
        together = {*targets, *hurt}
        if spec.targets_max is not None and len(together) > spec.targets_max:
            return f"{len(together)} nodes would be under a fault at once, guard.targets_max is {spec.targets_max}"
        if spec.last_worker or not any(role_of(target) == "worker" for target in targets):
            return None
        left = [worker for worker in self._workers if worker not in together]
        states = ["ready" if now is None else self._state(worker, now) for worker in left]
        if "ready" in states:
            return None
        allows = "guard.last_worker: true allows that"
        if None in states:
            age_s = spec.liveness_age_s_max
            told = f"no controller says which workers are healthy (guard.liveness_age_s_max is {age_s:g} s)"
            return f"{told}, so that perhaps none would be left; {allows}"
        return f"no healthy worker would be left; {allows}"

    def unrecovered(self, fault: str) -> None:
        """A heal is not proven. Raises Stopped when that ends the run."""
        if self._spec.stop_when_unrecovered:
            raise Stopped("stop_condition", f"the heal of {fault} is not proven")

    def heed(self) -> None:
        """Raises Stopped when somebody asks for the end."""
        file = self._spec.stop_file
        if file is None:
            return
        try:
            there = Path(file).exists()
        except OSError as error:
            # Whoever has made it may be asking for the end.
            raise Stopped("stop_file", f"{file} cannot be looked at: {error.strerror}") from error
        if there:
            raise Stopped("stop_file", f"{file} exists")

    def check(self, snapshot: Snapshot) -> None:
        """Raises Stopped when a stop condition is met, see GuardSpec."""
        spec = self._spec
        bad, ended = snapshot.bad_lately, snapshot.ended_lately
        if spec.error_share_max is not None and ended >= spec.requests_min and bad > spec.error_share_max * ended:
            told = f"{bad / ended:.0%} of {ended} requests failed in {spec.window_s:g} s"
            raise Stopped("stop_condition", f"{told}, guard.error_share_max is {spec.error_share_max:.0%}")
        most_s, p99_s = spec.latency_p99_s_max, snapshot.waited_p99_s
        if most_s is not None and p99_s is not None and snapshot.waited >= spec.requests_min and p99_s > most_s:
            told = f"p99 latency is {p99_s:.2f} s over {snapshot.waited} requests that ended in {spec.window_s:g} s"
            raise Stopped("stop_condition", f"{told} or are in flight, guard.latency_p99_s_max is {most_s:g} s")

    def _state(self, worker: str, now: float) -> str | None:
        state, said_s = self._heard.get(worker, (None, now))
        return state if now - said_s <= self._spec.liveness_age_s_max else None
