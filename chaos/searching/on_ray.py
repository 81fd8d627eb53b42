"""The tasks of a search as tasks of a Ray cluster, of this host or of many."""

import logging
import os
import sys
from typing import Any

import ray
from ray.exceptions import RayError

from chaos.searching.crews import RUNS_MAX
from chaos.searching.tasks import Result, Task, perform


class RayUnavailable(Exception):
    """There is no such cluster. One line."""


class RayCrew:
    """As many at once as the cluster has processors. Every host needs this code and its packages."""

    def __init__(self, address: str | None) -> None:
        """address: of a cluster that runs; None starts one here, which ends with us. Raises RayUnavailable."""
        from chaos.run import prepare_ray

        prepare_ray(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        alone: dict[str, Any] = {} if address is not None else {"include_dashboard": False}
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **alone)
        except (ConnectionError, RayError, RuntimeError, TimeoutError, ValueError) as error:
            where = f"Ray at {address}" if address is not None else "a Ray cluster here"
            raise RayUnavailable(f"{where} cannot be had: {' '.join(str(error).split())[:300]}") from error
        self.at_once = max(1, int(ray.cluster_resources().get("CPU", 1)))
        path = ":".join(part for part in sys.path if part)
        # A task whose process is killed is run again; one that raises is not, for it would raise again.
        self._perform = ray.remote(
            num_cpus=1, max_retries=RUNS_MAX - 1, runtime_env={"env_vars": {"PYTHONPATH": path}}
        )(perform)
        self._running: dict[Any, int] = {}

    def submit(self, number: int, task: Task) -> None:
        """See Crew."""
        self._running[self._perform.remote(task)] = number

    def next(self) -> tuple[int, Result]:
        """See Crew."""
        (done,), _ = ray.wait(list(self._running), num_returns=1)
        number = self._running.pop(done)
        try:
            result: Result = ray.get(done)
        except RayError as error:
            return number, Result(lost=" ".join(str(error).split())[:300])
        return number, result

    def close(self) -> None:
        """See Crew."""
        ray.shutdown()
