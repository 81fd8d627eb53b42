"""A recorded run, read back: the tables of a results directory as pandas frames, and what is known about the run."""

from pathlib import Path

import msgspec
import pandas as pd
import yaml


class UnreadableError(Exception):
    """A results directory or a file in it cannot be read. The message is one line for the user."""


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """`run.json`: facts that the tables do not hold.

    invariants: numbers that this world can judge for this experiment, declared before the run. exact_tokens: greedy
    tokens equal the reference but for near-ties (float32 CPU, timed engine). log_probability_gap_max: how far, in
    nats, a delivered token that differs may lie below the best one of the reference model. left_behind: what of the run
    was still there after its end; None: nobody looked, or nothing could be. outside: only callers were watched, as of
    somebody else's endpoint: invariants are judged as far as callers can see. engine: what computed: mlx, or timed,
    which computes nothing; empty where nobody knows.
    """

    run_id: str
    experiment: str
    world: str
    seed: int
    complete: bool
    ended_by: str
    invariants: list[int]
    exact_tokens: bool = True
    log_probability_gap_max: float = 0.0
    notes: list[str] = []
    left_behind: list[str] | None = None
    outside: bool = False
    engine: str = ""


class Phase(msgspec.Struct, frozen=True):
    """A phase as it really ran, seconds since the run began. end_s is infinite in a run that was cut there."""

    name: str
    start_s: float
    end_s: float


class History(msgspec.Struct, frozen=True):
    """Everything that checkers, criteria and reports are functions of. Frames have the columns of analysis.schema.

    references: columns prompt_id (str), tokens (list of int): the greedy completion of each prompt, at least as long
    as the largest output cap that was asked for it, or ended by an end token; None where there is no oracle.
    token_gaps: columns request_id (str), index (int), gap (float): how far the reference model puts a delivered token
    below its best one, in log probability, for every token of a stream that differs; None where nobody measured it.
    """

    info: RunInfo
    experiment: dict[str, object]
    requests: pd.DataFrame
    attempts: pd.DataFrame
    events: pd.DataFrame
    nodes: pd.DataFrame
    faults: pd.DataFrame
    schedule: pd.DataFrame
    references: pd.DataFrame | None
    token_gaps: pd.DataFrame | None = None

    def phases(self) -> list[Phase]:
        """The phases in order, from the director's events."""
        started = self.events[self.events["kind"] == "phase_started"]
        ended = self.events[self.events["kind"] == "phase_ended"]
        ends: dict[str, float] = dict(zip(ended["subject"], ended["time_s"], strict=True))
        return [
            Phase(row["subject"], row["time_s"], ends.get(row["subject"], float("inf")))
            for row in started.sort_values("time_s").to_dict("records")
        ]


def read_info(directory: Path) -> RunInfo:
    """`run.json` of a results directory. Raises UnreadableError."""
    path = directory / "run.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunInfo)
    except FileNotFoundError:
        raise UnreadableError(f"{directory}: no run.json here; is this a results directory?") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableError(f"{path}: not a run description: {error}") from None


def read_experiment(directory: Path) -> dict[str, object]:
    """The fully resolved experiment of a results directory. Raises UnreadableError."""
    path = directory / "experiment.yaml"
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnreadableError(f"{path}: missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableError(f"{path}: not readable as text: {type(error).__name__}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UnreadableError(f"{path}: not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(loaded, dict):
        raise UnreadableError(f"{path}: expected a mapping")
    return loaded
