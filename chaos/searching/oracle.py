"""What became of a plan: played in the simulated world, judged by the invariants alone."""

import hashlib
import tempfile
from pathlib import Path

import msgspec

from analysis.judge import judge
from analysis.reader import load_history
from analysis.verdict import Outcome, Verdict
from chaos import oracle
from chaos.director import Director
from chaos.progress import Snapshot
from chaos.results import ResultsDirectory
from chaos.searching.plans import Plan
from chaos.worlds.simulated import SimulatedWorld
from chaos.worlds.world import InfrastructureError


class Judged(msgspec.Struct, frozen=True):
    """broken: by the number of each invariant that was broken, what happened first. digest: of all rows, SHA-256."""

    broken: dict[int, str]
    digest: str


class _Silent:
    def phase(self, name: str, duration_s: float | None = None) -> None:
        """See chaos.director.Watcher."""

    def update(self, snapshot: Snapshot) -> None:
        """See chaos.director.Watcher."""

    def note(self, text: str) -> None:
        """See chaos.director.Watcher."""


def consult(plan: Plan) -> Judged:
    """Play it. What our own code raises is not caught: a plan that makes it raise is a finding as well."""
    with tempfile.TemporaryDirectory(prefix="search-") as folder:
        results = ResultsDirectory(Path(folder), plan.experiment, "simulated", plan.seed)
        _play(plan, results)
        verdict = judge(load_history(results.path))
        return Judged(_broken(verdict), _digest(results.raw))


def _play(plan: Plan, results: ResultsDirectory) -> None:
    world = SimulatedWorld(plan.experiment, plan.seed, results.raw)
    director = Director(world, plan.experiment, plan.seed, _Silent(), results.write_plan)

    async def whole() -> None:
        try:
            await director.conduct()
        finally:
            await world.stop()
            results.merge(world.origin_s)
            results.write_environment(world.environment())
            await oracle.consult(world, results, director.plan.every_request())

    try:
        world.run(whole())
    except InfrastructureError as error:
        # Without a fault there is nothing that could keep a simulated cluster from coming up.
        raise AssertionError(f"the simulated cluster did not come up: {error}") from error
    results.write_info(
        world.invariants,
        world.exact_tokens,
        world.token_gap_max_nats,
        complete=director.complete,
        ended_by="the last phase",
        notes=[],
    )


def _broken(verdict: Verdict) -> dict[int, str]:
    return {
        invariant.number: f"{invariant.name}: {invariant.explanation}"
        for invariant in verdict.invariants
        if invariant.verdict is Outcome.FAIL
    }


def _digest(raw: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted(raw.iterdir()):
        whole.update(path.name.encode())
        whole.update(path.read_bytes())
    return whole.hexdigest()
