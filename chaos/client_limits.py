"""What the load clients of a live run can do on this host, beside what the run asked of them."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.parquet as pq

from workloads.nats_roofline import nats_roofline
from workloads.roofline import Roofline
from workloads.stub_process import StubFailed

WINDOW_S = 5.0
LIMITS = "client_roofline"
CLIENTS = "load_clients"
"""Where both are in `environment.json`."""
_TROUBLE = "not_measured"


def client_limits() -> dict[str, object]:
    """For `environment.json`: the roofline of this host, or why it is not known. Seconds, the first time in an hour.

    Not for use within a running event loop.
    """
    try:
        found: dict[str, object] = msgspec.to_builtins(nats_roofline())
    except (StubFailed, OSError) as error:
        return {_TROUBLE: str(error)}
    # People read them too.
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in found.items()}


def limits_lines(environment: Mapping[str, object], directory: Path) -> list[str]:
    """For the notes of a run, from its environment and its merged requests; nothing where no client was measured."""
    told, clients = environment.get(LIMITS), environment.get(CLIENTS)
    if not isinstance(told, dict) or not isinstance(clients, int):
        return []
    if _TROUBLE in told:
        return [f"the load clients' roofline was not measured: {told[_TROUBLE]}"]
    limits = msgspec.convert(told, Roofline)
    return [*limits.lines(), f"  the run's busiest {WINDOW_S:g} s {limits.beside(*busiest(directory), clients)}"]


def busiest(directory: Path) -> tuple[float, float]:
    """Requests sent and tokens received per second, each in its busiest WINDOW_S.

    A request's tokens count as received at its end, so a window may hold some that came a little before.
    """
    table = pq.read_table(directory / "requests.parquet", columns=["sent_s", "ended_s", "token_count"])
    if not table.num_rows:
        return 0.0, 0.0
    sent_s, ended_s, tokens = (table[name].to_numpy() for name in table.column_names)
    return _most(sent_s, np.ones(len(sent_s))), _most(ended_s, tokens)


def _most(times_s: np.ndarray, weights: np.ndarray) -> float:
    windows = np.floor((times_s - times_s.min()) / WINDOW_S).astype(np.int64)
    return float(np.bincount(windows, weights).max()) / WINDOW_S
