"""What the time to the first token is made of, and how much of it a model took to load."""

import json

import numpy as np
import pandas as pd

from analysis.history import History
from analysis.time_shares import PARTS, Floats, request_times

FIRST_TOKEN_PARTS: dict[str, str] = {
    **{part: said for part, said in PARTS.items() if part != "decode"},
    "weights": "reading the weights",
    "kernels": "first kernels, and a token to warm up",
    "prefill": "computing the prompt until the first token",
}
"""As analysis.time_shares.PARTS, up to the first token where the caller has it. What a load takes of the wait on the
worker is told apart from the wait for others."""

_LOADS = ["end_s", "weights_s", "kernels_s"]


def first_token_times(history: History) -> pd.DataFrame:
    """One line per completed request: request_id, arm, the seconds of each of FIRST_TOKEN_PARTS, and total_s."""
    lines = request_times(history, until_first_token=True)
    waited = _waits(history).reindex(lines["request_id"])
    begins_s, ends_s = (waited[name].to_numpy(dtype=float) for name in ("begun_s", "started_s"))
    weights_s, kernels_s = np.zeros(len(lines)), np.zeros(len(lines))
    for worker, loads in _loads(history).groupby("worker"):
        here = (waited["worker"] == worker).to_numpy()
        for end_s, weights, kernels in loads[_LOADS].to_numpy(dtype=float):
            warm_s = end_s - kernels
            weights_s += here * _overlap(begins_s, ends_s, warm_s - weights, warm_s)
            kernels_s += here * _overlap(begins_s, ends_s, warm_s, end_s)
    # No more than the wait itself, whatever the merge of clocks made of the points around it.
    wait_s = lines["queue"].to_numpy(dtype=float)
    lines["weights"] = np.minimum(weights_s, wait_s)
    lines["kernels"] = np.minimum(kernels_s, wait_s - lines["weights"])
    lines["queue"] = wait_s - lines["weights"] - lines["kernels"]
    return lines[["request_id", "arm", *FIRST_TOKEN_PARTS, "total_s"]]


def _waits(history: History) -> pd.DataFrame:
    """Of each request's last attempt on a worker: which worker, when it came there and when the engine got it."""
    told = history.attempts[(history.attempts["side"] == "worker") & history.attempts["started_s"].notna()]
    return told.sort_values("begun_s", kind="stable").drop_duplicates("request_id", keep="last").set_index("request_id")


def _loads(history: History) -> pd.DataFrame:
    """Loads of models that ended: worker, end_s, and for how long it read weights and then ran kernels."""
    told = history.events[history.events["kind"] == "model_timing"]
    lines = []
    for worker, at_s, detail in zip(told["subject"], told["time_s"], told["detail"], strict=True):
        parts = json.loads(detail)
        # A process tells of its imports in an event of the same kind.
        if "load_s" in parts:
            lines.append((worker, at_s, parts["weights_s"], parts["load_s"] - parts["weights_s"]))
    return pd.DataFrame(lines, columns=["worker", *_LOADS])


def _overlap(begins_s: Floats, ends_s: Floats, from_s: float, to_s: float) -> Floats:
    both: Floats = np.minimum(ends_s, to_s) - np.maximum(begins_s, from_s)
    return np.nan_to_num(np.maximum(both, 0.0))
