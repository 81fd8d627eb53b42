"""Simulated runs of a sweep as tasks of a Ray cluster. Each comes back whole, so its numbers can be traced here."""

import io
import logging
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from analysis.sweep_table import SweepRow
from chaos.children import Children
from chaos.grid import Trial
from chaos.sweeping import POINTS, Measuring, NoVerdict, kept, play

Ended = Callable[[Trial, list[SweepRow] | None, str], None]


def play_on_ray(address: str, trials: Sequence[Trial], measuring: Measuring, out: Path, ended: Ended) -> None:
    """Run them, as many at once as the cluster has processors, and tell `ended` of each.

    Every host needs this code and its packages. Raises KeyboardInterrupt once no task runs any more.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RayError, RuntimeError, TimeoutError, ValueError) as error:
        why = f"Ray at {address} cannot be had: {' '.join(str(error).split())[:300]}"
        for trial in trials:
            ended(trial, None, why)
        return
    try:
        _spread(trials, measuring, out, ended)
    finally:
        # Ends the tasks too; each has tied its run to itself.
        ray.shutdown()


def _spread(trials: Sequence[Trial], measuring: Measuring, out: Path, ended: Ended) -> None:
    at_once = max(1, int(ray.cluster_resources().get("CPU", 1)))
    path = ":".join(part for part in sys.path if part)
    task = ray.remote(num_cpus=1, max_retries=0, runtime_env={"env_vars": {"PYTHONPATH": path}})(_packed)
    waiting, running = list(trials), dict[Any, Trial]()
    while waiting or running:
        while waiting and len(running) < at_once:
            trial = waiting.pop(0)
            print(f"{trial.name}: running", flush=True)
            running[task.remote(trial, measuring)] = trial
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            trial = running.pop(reference)
            ended(trial, *_unpacked(reference, trial, measuring, out))


def _packed(trial: Trial, measuring: Measuring) -> tuple[bytes, str]:
    """On some host: play it in a folder that is gone afterwards; its files, or why there are none."""
    with tempfile.TemporaryDirectory() as place:
        try:
            play(trial, measuring, Path(place), Children(), None)
        except NoVerdict as error:
            return b"", str(error)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
            archive.add(Path(place) / POINTS / trial.key, trial.key, filter=_without_raw)
        return packed.getvalue(), ""


def _without_raw(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """The tables hold what the raw files of the nodes said."""
    return None if Path(member.name).name == "raw" else member


def _unpacked(reference: Any, trial: Trial, measuring: Measuring, out: Path) -> tuple[list[SweepRow] | None, str]:
    try:
        packed, why = ray.get(reference)
    except RayError as error:
        return None, " ".join(str(error).split())[:300]
    if why:
        return None, why
    folder = out / POINTS
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    rows = kept(trial, measuring, out)
    return (rows, "") if rows is not None else (None, "what came back from Ray has no rows")
