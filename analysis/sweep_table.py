"""The dataset of a sweep: a row for each phase that was measured in each run of each point, and its form in Arrow."""

from collections.abc import Sequence

import msgspec
import pyarrow as pa
import yaml

from analysis.point import Figures

WORKERS = "cluster.workers"
INVALID = "invalid"


class SweepRow(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a point, in one phase. values: by setting, in YAML. key: names exactly what was run.

    run: the folder of the run, below that of the sweep. took_s: seconds from its start to its end. engine, world: what
    computed, and where. workers, hosts: of the cluster; cores: of the runner's host; machine: its platform. faults:
    kinds that struck in the phase. reason: the first one of the verdict.
    """

    point: str
    key: str
    repeat: int
    seed: int
    values: dict[str, str]
    world: str
    engine: str
    verdict: str
    reason: str
    run: str
    took_s: float
    workers: int
    hosts: int
    cores: int
    machine: str
    faults: list[str]
    figures: Figures

    @property
    def load(self) -> float:
        """How much is asked of the cluster: in flight where the load is closed, else offered per second."""
        return float(self.figures.in_flight) if self.figures.in_flight is not None else self.figures.offered_per_s

    @property
    def throughput(self) -> float | None:
        """Requests per second, None where the run did not do what it claims or none was completed."""
        made = self.figures.requests_per_s
        return made if made and self.verdict != INVALID else None


def to_table(rows: Sequence[SweepRow]) -> pa.Table:
    """The rows with a column for each setting, of numbers where all of its values are numbers, and for each figure."""
    lines = []
    for row in rows:
        line = msgspec.to_builtins(row)
        figures, values = line.pop("figures"), line.pop("values")
        lines.append({**{path: yaml.safe_load(text) for path, text in values.items()}, **line, **figures})
    paths = list(dict.fromkeys(path for row in rows for path in row.values))
    for path in paths:
        held = [line.get(path) for line in lines]
        if not all(value is None or type(value) in (int, float) for value in held) and not _alike(held):
            for line, row in zip(lines, rows, strict=True):
                line[path] = row.values.get(path)
    names = [*paths, *_NAMES]
    return pa.table({name: _column(name, [line.get(name) for line in lines]) for name in names})


def _alike(values: Sequence[object]) -> bool:
    return len({type(value) for value in values if value is not None}) <= 1 and not any(
        isinstance(value, dict | list) for value in values
    )


def _column(name: str, values: list[object]) -> pa.Array:
    kind = _KINDS.get(name)
    if kind is None and any(isinstance(value, float) for value in values):
        kind = pa.float64()
    return pa.array(values, type=kind)


_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _kind(annotation: object) -> pa.DataType:
    found = [kind for python, kind in _TYPES.items() if annotation in (python, python | None)]
    return found[0] if found else pa.list_(pa.string())


_FIELDS = [
    field for field in msgspec.structs.fields(SweepRow) if field.name not in ("values", "figures")
]  # fmt: skip
_KINDS = {
    field.name: _kind(field.type) for field in [*_FIELDS, *msgspec.structs.fields(Figures)]
}  # fmt: skip
_NAMES = list(_KINDS)
