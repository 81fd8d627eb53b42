"""`--like DIR`: play a recorded run once more in the simulated world, on the very schedule that it had."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec.structs import replace

from analysis.history import UnreadableError, read_info
from analysis.reader import load_history
from chaos.director import Director
from chaos.experiment import Experiment, ExperimentError
from chaos.progress import Silent
from chaos.resolve import load
from chaos.worlds.simulated import SimulatedWorld
from chaos.worlds.world import InfrastructureError
from cluster.calibration import measured_for
from cluster.engine.costs import StepCosts
from cluster.engine.weights import ModelUnavailable, UnknownModel, model_directory
from workloads.capacity import Capacity, plan_probe
from workloads.plan import LoadPlan, plan_rows
from workloads.vocabulary import ByteVocabulary, PromptVocabulary, TokenizerVocabulary

CAPACITY = "capacity"
"""Of environment.json: what the probe before the run measured."""
_SPEED_TRIES = 8
_SPEED_DAMPING = 0.8
_SPEED_TOLERANCE = 0.03
_STATED = re.compile(
    r"of the measured capacity of (?P<requests>[0-9.]+) requests/s(?: \([0-9]+ of (?P<tokens>[0-9]+) tokens/s\))?"
)


class Like(msgspec.Struct, frozen=True):
    """A recorded run, as far as it has to be known to be played again. schedule: its `schedule.parquet`."""

    run_id: str
    experiment: Experiment
    seed: int
    capacity: Capacity
    engine: str
    schedule: Path

    def checked(self, planned: Callable[[LoadPlan], None]) -> Callable[[LoadPlan], None]:
        """Tell of a plan once it is known to be the recorded one."""

        def check_and_tell(plan: LoadPlan) -> None:
            self.check(plan)
            planned(plan)

        return check_and_tell

    def check(self, plan: LoadPlan) -> None:
        """Raise InfrastructureError unless this plan is the recorded one."""
        recorded, made = pq.read_table(self.schedule), plan_rows(plan)
        same = [name for name in made.schema.names if name in recorded.schema.names]
        if not made.select(same).equals(recorded.select(same).cast(made.select(same).schema)):
            why = _difference(recorded, made)
            raise InfrastructureError(f"{self.schedule}: its load cannot be made again with this code: {why}")


def read_like(directory: Path, settings: Sequence[str]) -> Like:
    """A run to be played again, with settings laid over its experiment. Raises ExperimentError.

    Unless the settings name other costs, they are those of the calibration that was measured with its model.
    """
    try:
        info = read_info(directory)
        experiment = load(directory / "experiment.yaml", settings)
        capacity = _capacity(directory)
    except (UnreadableError, OSError) as error:
        raise ExperimentError(f"--like {' '.join(str(error).split())}") from None
    if info.world == "staging":
        raise ExperimentError(f"--like {directory}: nobody knows what somebody else's cluster is made of")
    told = any(setting.startswith("cluster.costs") for setting in settings)
    if experiment.cluster.costs == StepCosts() and not told:
        name = measured_for(experiment.cluster.model)
        if name is None:
            how = "see cluster.calibrate, then --set cluster.costs=FILE.json"
            what = f"no calibration was measured with {experiment.cluster.model}"
            raise ExperimentError(f"--like {directory}: {what}; {how}")
        experiment = load(directory / "experiment.yaml", [*settings, f"cluster.costs={name}"])
    schedule = directory / "schedule.parquet"
    return Like(info.run_id, experiment, info.seed, capacity, info.engine, schedule)


class LikeWorld(SimulatedWorld):
    """The simulated world with the prompts of the recorded run's model: what a cache saves depends on them."""

    def __init__(self, like: Like, raw: Path, record_policy: bool = False) -> None:
        super().__init__(like.experiment, like.seed, raw, record_policy)
        self._like = like

    async def vocabulary(self) -> PromptVocabulary:  # type: ignore[override]
        """See World."""
        if self._like.engine != "mlx":
            return ByteVocabulary()
        try:
            return TokenizerVocabulary(model_directory(self._like.experiment.cluster.model))
        except (ModelUnavailable, UnknownModel, ValueError) as error:
            raise InfrastructureError(str(error)) from error

    def environment(self) -> dict[str, object]:
        """See World."""
        return {**super().environment(), "like": self._like.run_id}


def at_its_speed(like: Like) -> Like:
    """The run with everything that computes so much slower or faster that the probe before it finds what it found live.

    A host that has other things to do is slower than it was when it was calibrated. The probe's requests are in none of
    the tables that are compared. Raises InfrastructureError, CapacityUnknown.
    """
    costs, factor, best, least = like.experiment.cluster.costs, 1.0, like, float("inf")
    for _ in range(_SPEED_TRIES):
        noise = tuple(factor * each for each in costs.noise or (1.0,))
        named = replace(costs, noise=noise, profile=f"{costs.profile or 'own costs'} x {factor:.2f}")
        cluster = replace(like.experiment.cluster, costs=named)
        tried = replace(like, experiment=replace(like.experiment, cluster=cluster))
        ratio = _probed(tried).requests_per_s / like.capacity.requests_per_s
        if abs(ratio - 1) < least:
            best, least = tried, abs(ratio - 1)
        if least < _SPEED_TOLERANCE:
            break
        # What the probe finds wavers by some percent from one factor to the next one.
        factor *= ratio**_SPEED_DAMPING
    return best


def _probed(like: Like) -> Capacity:
    with TemporaryDirectory() as raw:
        world = LikeWorld(like, Path(raw))
        found: list[Capacity] = []

        async def probe() -> None:
            found.append(await Director(world, like.experiment, like.seed, Silent()).probe())
            await world.stop()

        world.run(probe())
    return found[0]


def _capacity(directory: Path) -> Capacity:
    """As measured before the run. Of older runs only a rounded number is known, but it was completions by seconds."""
    environment = msgspec.json.decode((directory / "environment.json").read_bytes())
    if CAPACITY in environment:
        return msgspec.convert(environment[CAPACITY], Capacity)
    events = load_history(directory).events
    details = events.loc[events["kind"] == "run_started", "detail"].tolist()
    stated = _STATED.search(details[0]) if details else None
    if stated is None:
        raise UnreadableError(f"{directory}: it does not say what capacity was measured")
    window_s = plan_probe(1, 1).measure_s
    completions = round(float(stated["requests"]) * window_s)
    tokens_per_s = round(float(stated["tokens"] or 0.0) * window_s) / window_s
    return Capacity(completions / window_s, tokens_per_s, completions, window_s)


def _difference(recorded: pa.Table, made: pa.Table) -> str:
    if recorded.num_rows != made.num_rows:
        return f"{recorded.num_rows} requests were planned, and {made.num_rows} are now"
    for name in made.schema.names:
        if name in recorded.schema.names and not recorded[name].equals(made[name].cast(recorded[name].type)):
            return f"{name} is another"
    return "its columns are others"
