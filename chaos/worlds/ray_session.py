"""The connection of a live world with Ray: a cluster of its own on this machine, or one that runs already."""

import os
from typing import Any

from chaos.experiment import Experiment
from chaos.worlds.hosts import PLACES, head_resources
from chaos.worlds.world import InfrastructureError
from cluster.live.actors import RayUnavailable, connect


def start_ray(experiment: Experiment) -> None:
    """Start Ray here, which ends with us. Raises InfrastructureError."""
    resources = head_resources(experiment, PLACES)
    cpus = max(2, os.cpu_count() or 2)
    _connect(None, include_dashboard=False, _node_ip_address="127.0.0.1", num_cpus=cpus, resources=resources)


def join_ray(address: str) -> None:
    """Join a cluster that runs already, as one of its hosts. Raises InfrastructureError."""
    if address.startswith("ray://"):
        raise InfrastructureError(
            "--address: a Ray client (ray://) is no host of the cluster; start the run on one of its hosts, with the "
            "address that `ray start` was given, or `auto`"
        )
    _connect(address)


def _connect(address: str | None, **options: Any) -> None:
    try:
        connect(address, **options)
    except RayUnavailable as error:
        raise InfrastructureError(str(error)) from error
