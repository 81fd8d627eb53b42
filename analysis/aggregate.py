"""The figures of any number of rows, in little memory: in this process, or as tasks on a Ray cluster.

    python -m analysis.aggregate DIR... [--address ADDRESS] [--workers N] [--out FOLDER]

DIR is a results directory (merged or as its nodes left it), a folder of such, or a folder or file of bare rows, Parquet
or Arrow. It prints a table and writes `summary.json` and `summary.arrow`.
"""

import argparse
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.feather as feather

from analysis.arguments import NotWritable, check_writable, path, whole_number
from analysis.history import UnreadableError
from analysis.partitions import Found, Partition, find, line
from analysis.scan import Arms, arms, scan
from analysis.summary import ERROR, SHARES, Group, Summary
from analysis.text import clean
from analysis.whole_file import replacing, write_whole

TASKS_FROM_ROWS = 50_000_000
"""From so many rows on Ray is worth its start, unless the caller says."""

PER_WORKER_MAX = 2
"""Partitions under way for each worker: one at work, one waiting."""

WORKERS_MAX = 1_024
_USAGE = 2
_NO_RAY = 5
_NAME_MAX = 40
_WORKERS_SHOWN = 50
_PARTS = ("queue wait", "prefill", "decode", "inter token")


class AggregateError(Exception):
    """Ray cannot be had, or lost a task. The message is one line for the user."""


def summarise(*paths: Path | str) -> Summary:
    """The summary of results directories, folders of them, or bare rows, made in this process in little memory.

    Raises UnreadableError, one line, for what cannot be read.
    """
    return in_process(find([Path(path) for path in paths]))


def in_process(found: Found) -> Summary:
    """The summary of what was found, made here. Raises UnreadableError."""
    total = Summary(notes=frozenset(found.notes))
    for part, index in _work(found):
        total = total.merge(scan(part, index))
    return total


def as_tasks(found: Found, address: str | None = None, workers: int | None = None) -> Summary:
    """The same, a Ray task for each partition. Every host of the cluster must see the paths and have this package.

    address: of a running Ray cluster; None starts one on this host alone and ends it afterwards. workers: tasks at
    once; None: one for each core. Raises UnreadableError, and AggregateError when Ray cannot be had.
    """
    import ray

    lanes = workers or os.cpu_count() or 1
    with _ray(ray, address, lanes) as task:
        total, under_way = Summary(notes=frozenset(found.notes)), []
        for part, index in _work(found, put=ray.put):
            under_way.append(task.remote(part, index))
            if len(under_way) >= lanes * PER_WORKER_MAX:
                total, under_way = _taken(ray, total, under_way)
        while under_way:
            total, under_way = _taken(ray, total, under_way)
    return total


def _taken(ray: Any, total: Summary, under_way: list[Any]) -> tuple[Summary, list[Any]]:
    """The total with whatever is ready: merging knows no order."""
    done, left = ray.wait(under_way, num_returns=1)
    for reference in done:
        try:
            total = total.merge(ray.get(reference))
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UnreadableError):
                raise UnreadableError(str(error.cause)) from None
            raise
        except ray.exceptions.RayError as error:
            raise AggregateError(f"Ray lost a task: {line(error)}") from error
    return total, left


@contextlib.contextmanager
def _ray(ray: Any, address: str | None, workers: int) -> Iterator[Any]:
    """Ray, up, and the task."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    if address is None:
        options |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "num_cpus": workers}
        # Summaries are small; Ray would set apart a third of the memory.
        options["object_store_memory"] = 256 * 1024 * 1024
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ray.exceptions.RayError, RuntimeError, TimeoutError, ValueError) as error:
        raise AggregateError(f"Ray {address or 'on this host'} cannot be had: {line(error)}") from error
    try:
        yield ray.remote(num_cpus=1, max_retries=2)(scan)
    finally:
        ray.shutdown()


def _work(found: Found, put: Callable[[Arms], Any] | None = None) -> Iterator[tuple[Partition, Any]]:
    """The partitions with the arms of their run: request ids are of one run, and so is what belongs to them."""
    by_run: dict[str, list[Partition]] = {}
    for part in found.partitions:
        by_run.setdefault(part.run.name, []).append(part)
    for parts in by_run.values():
        index = arms(part for part in parts if part.table == "schedule")
        shared = put(index) if put is not None and index is not None else index
        for part in parts:
            yield part, shared


def write(summary: Summary, folder: Path) -> list[Path]:
    """Write `summary.json` and `summary.arrow` (see Summary.to_table) into a folder. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    text = msgspec.json.format(msgspec.json.encode(summary.to_builtins()), indent=1).decode() + "\n"
    write_whole(folder / "summary.json", text)
    with replacing(folder / "summary.arrow") as part:
        feather.write_feather(summary.to_table(), str(part))
    return [folder / "summary.json", folder / "summary.arrow"]


def printed(summary: Summary) -> str:
    """The figures as text tables: requests by phase and arm, then workers."""
    keys = sorted(key for key in summary.groups if key.table == "requests")
    groups = [(" / ".join(part for part in (key.phase, key.arm) if part) or "-", summary.groups[key]) for key in keys]
    shown = [*groups, ("all", summary.select())] if len(groups) != 1 else groups
    ended = ("completed", "failed", "refused", "cancelled")
    head = ["requests", "offered", *ended, "in flight", *(f"latency {name}" for name in SHARES), "ttft p50", "ttft p95"]
    lines = [head]
    for name, group in shown:
        outcomes = group.outcomes()
        counts = [group.offered, *(outcomes.get(outcome, 0) for outcome in ended), group.in_flight]
        times = [*(_time(group, "latency_s", share) for share in SHARES.values())]
        times += [_time(group, "ttft_s", share) for share in (0.5, 0.95)]
        lines.append([clean(name, _NAME_MAX), *(f"{count:,}" for count in counts), *times])
    workers = sorted({key.worker for key in summary.groups if key.table == "attempts"})
    head = [
        "attempts on",
        "all",
        "completed",
        "tokens",
        *(f"{name} {share}" for name in _PARTS for share in ("p50", "p95")),
    ]
    lines_of_workers = [head]
    for worker in workers[:_WORKERS_SHOWN]:
        group = summary.select("attempts", worker=worker)
        counts = [group.rows, group.outcomes().get("completed", 0), group.sums.get("tokens", 0)]
        times = [_time(group, f"{name.replace(' ', '_')}_s", share) for name in _PARTS for share in (0.5, 0.95)]
        lines_of_workers.append([clean(worker, _NAME_MAX), *(f"{count:,}" for count in counts), *times])
    parts = [_aligned(lines)]
    if workers:
        parts.append(_aligned(lines_of_workers))
    if len(workers) > _WORKERS_SHOWN:
        parts.append(f"and {len(workers) - _WORKERS_SHOWN} more workers")
    codes = {name: group.codes() for name, group in groups if group.codes()}
    told = [
        f"{name}: {', '.join(f'{code} {count:,}' for code, count in found.items())}" for name, found in codes.items()
    ]
    parts += [clean(f"codes in {text}") for text in told] + [clean(note) for note in sorted(summary.notes)]
    return "\n\n".join(parts[: 1 + bool(workers)]) + "".join(f"\n{part}" for part in parts[1 + bool(workers) :])


def _time(group: Group, name: str, share: float) -> str:
    part = group.sketches.get(name)
    value = part.percentile(share) if part is not None else None
    return "-" if value is None else f"{value * 1e3:,.1f} ms" if value < 1 else f"{value:,.2f} s"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            text.rjust(width) if place else text.ljust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in lines
    )


def main(arguments: Sequence[str]) -> int:
    """Print and write the summary. Returns the exit code: 2 for what cannot be read, 5 when Ray cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m analysis.aggregate", description=summarise.__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="DIR", help="results, a folder of results, or bare rows")
    parser.add_argument("--address", help="of a running Ray cluster (`auto`: the one of this host)")
    parser.add_argument(
        "--workers", type=whole_number(0, WORKERS_MAX), help="Ray tasks at once; 0: none, in this process"
    )
    parser.add_argument(
        "--out", type=path, help="where to write; default: DIR, or where you are when it is a file or many"
    )
    asked = parser.parse_args(arguments)
    paths: list[Path] = asked.paths
    out = asked.out or (paths[0] if len(paths) == 1 and paths[0].is_dir() else Path())
    if asked.workers == 0 and asked.address:
        parser.error("--workers 0 is in this process, and takes no --address")
    began_s = time.perf_counter()
    try:
        check_writable(out)
        found = find(paths)
        tasks = bool(asked.address or asked.workers) or (asked.workers is None and found.rows >= TASKS_FROM_ROWS)
        summary = as_tasks(found, asked.address, asked.workers) if tasks else in_process(found)
        took_s = time.perf_counter() - began_s
        written = write(summary, out)
    except NotWritable as error:
        print(f"analysis.aggregate: --out {clean(error)}", file=sys.stderr)
        return _USAGE
    except (UnreadableError, OSError) as error:
        print(f"analysis.aggregate: {clean(error)}", file=sys.stderr)
        return _USAGE
    except AggregateError as error:
        print(f"analysis.aggregate: {clean(error)}", file=sys.stderr)
        return _NO_RAY
    read = sum(summary.rows.values())
    where = "as Ray tasks" if tasks else "in this process"
    print(printed(summary))
    print(f"{read:,} rows in {len(found.partitions)} partitions, {where}: {took_s:.2f} s, {read / took_s:,.0f} rows/s")
    print(f"quantiles within {ERROR:.0%} of their value")
    print("\n".join(str(path) for path in written))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
