"""Lanes of numbers: one per node, all to one scale, on the time axis of the run. And the lanes of what nodes used."""

import msgspec
import numpy as np
import pandas as pd

from analysis import canvas
from analysis.canvas import FAINT, INK, SKY, VERMILLION, Floats, Size
from analysis.history import History

USAGE = ("memory", "processor", "gpu")
"""Names of the plots of what nodes used."""
LANES_MAX = 8
_MIB = 2.0**20
_PERCENT = 100.0


@canvas.drawing
def memory(history: History, size: Size) -> str:
    """Resident memory of each node in MiB, where the world has processes, and what MLX holds; else the ledgers."""
    # A host's sample is the sum of its nodes and would flatten them.
    nodes = msgspec.structs.replace(history, nodes=history.nodes[history.nodes["role"] != "host"])
    if nodes.nodes["resident_bytes"].notna().any():
        active = _levels(nodes, nodes.nodes, "mlx_active_bytes", 1 / _MIB)
        return _sampled(nodes, size, "memory", "Memory of each node over time", "resident_bytes", "MiB", active)
    return _sampled(nodes, size, "memory", "Memory ledger of each worker over time", "memory_bytes", "MiB", {})


@canvas.drawing
def processor(history: History, size: Size) -> str:
    """How much of a processor core each node's process used."""
    return _sampled(history, size, "processor", "Processor use of each node over time", "cpu_share", "%", {})


@canvas.drawing
def gpu(history: History, size: Size) -> str:
    """How busy the GPU was."""
    return _sampled(history, size, "gpu", "GPU use over time", "gpu_busy", "%", {})


def unmeasured(history: History) -> str:
    """What of the usage nobody measured, with the reason for the GPU where a node told it; empty when all was."""
    samples = history.nodes
    missing = [
        name
        for name, column in (("resident memory", "resident_bytes"), ("processor", "cpu_share"))
        if samples[column].isna().all()
    ]
    if samples["gpu_busy"].isna().all():
        # The host's own sample says only that nodes know better.
        told = samples[(samples["gpu_busy_reason"].fillna("") != "") & (samples["role"] != "host")]["gpu_busy_reason"]
        missing.append(f"GPU ({told.mode().iloc[0]})" if len(told) else "GPU")
    return ", ".join(missing)


def _sampled(
    history: History, size: Size, name: str, alternative: str, column: str, unit: str, lines: dict[str, Floats]
) -> str:
    factor = 1 / _MIB if unit == "MiB" else _PERCENT
    areas = _levels(history, history.nodes, column, factor)
    if not areas:
        return canvas.blank(size, "No sample was recorded.", alternative)
    edges = canvas.nice_bins(canvas.time_axis(history).end_s)
    nothing = np.full(len(edges) - 1, np.nan)
    over = {node: lines.get(node, nothing) for node in areas} if lines else None
    return worker_lanes(history, size, name, alternative, areas, edges, unit, over)


def _levels(history: History, samples: pd.DataFrame, column: str, factor: float) -> dict[str, Floats]:
    """The largest sample in each bin by node, of the nodes that ever had one above zero."""
    edges = canvas.nice_bins(canvas.time_axis(history).end_s)
    known = samples[samples[column].fillna(0) > 0]
    return {str(node): factor * largest(rows, column, edges) for node, rows in known.groupby("node", sort=True)}


def largest(rows: pd.DataFrame, column: str, edges: Floats) -> Floats:
    """The largest sample in each bin, NaN where there is none."""
    times, values = canvas.floats(rows, "time_s"), canvas.floats(rows, column)
    found = np.full(len(edges) - 1, -np.inf)
    places = np.searchsorted(edges, times, side="right") - 1
    inside = (places >= 0) & (places < len(found)) & np.isfinite(values)
    np.maximum.at(found, places[inside], values[inside])
    return np.where(np.isfinite(found), found, np.nan)


def worker_lanes(
    history: History, size: Size, name: str, alternative: str, areas: dict[str, Floats], edges: Floats, unit: str,
    lines: dict[str, Floats] | None = None,
) -> str:  # fmt: skip
    """One lane per node, all to one scale: an area, and a line over it."""
    shown, hidden = chosen(history, list(areas))
    everything = np.concatenate([levels[worker] for levels in (areas, lines or areas) for worker in shown])
    peak = max(1.0, float(np.nanmax(everything, initial=0)))
    pitch = 58.0 if len(shown) <= 4 else 42.0
    # The text of a lane has a strip of its own above the tallest area.
    share = 0.92 - (size.font + 4) / pitch
    figure, axes = canvas.over_time(size, pitch * len(shown) + (18 if hidden else 0), canvas.time_axis(history))
    axes.set_ylim(len(shown) + (18 / pitch if hidden else 0), 0)
    for row, worker in enumerate(shown):
        ground = row + 0.92
        axes.axhline(ground, color=FAINT, linewidth=0.6, zorder=1)
        level = ground - np.nan_to_num(areas[worker]) / peak * share
        axes.stairs(level, edges, baseline=ground, fill=True, color=SKY, alpha=0.85, linewidth=0)
        if lines is not None:
            axes.stairs(ground - lines[worker] / peak * share, edges, baseline=None, color=VERMILLION, linewidth=1.5)
        highest = float(np.nanmax(areas[worker], initial=0))
        text = f"max {highest:.0f}{' ' + unit if unit else ''}"
        canvas.legible(axes, size, text, (edges[0] + 0.004 * edges[-1], row + 0.04), INK, va="top")
    middles = [0.92 + row - share / 2 for row in range(len(shown))]
    axes.set_yticks(middles, [canvas.short(worker, size) for worker in shown])
    if hidden:
        axes.text(0, len(shown) + 0.1, f"and {hidden} more", va="top", fontsize=size.font, color=FAINT)
    return canvas.svg(figure, f"{name}-{size.name}", alternative)


def chosen(history: History, workers: list[str]) -> tuple[list[str], int]:
    """The nodes to show, those that a fault was aimed at first, and how many are left out."""
    hit = {str(target) for targets in history.faults["targets"] for target in targets}
    ordered = sorted(workers, key=lambda worker: (worker not in hit, canvas.natural(worker)))
    kept = ordered[:LANES_MAX]
    return sorted(kept, key=canvas.natural), len(workers) - len(kept)
