"""The points of a sweep: every combination of the values of some settings, checked as a whole before any is run."""

import hashlib
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from random import Random

import msgspec
import yaml

from chaos.experiment import Experiment, ExperimentError
from chaos.resolve import load
from cluster.yaml_file import YamlError, parse_yaml

POINTS_MAX = 10_000
_RANGE = re.compile(r"^(-?\d+)\.\.(-?\d+)(?:\.\.(\d+))?$", re.ASCII)
_SHOWN_MAX = 200


class GridError(Exception):
    """The grid is wrong. The message is one line: which option or point, and what was expected."""


class Axis(msgspec.Struct, frozen=True):
    """A setting and the values that it takes, each as YAML in one line, as it would follow `--set path=`."""

    path: str
    values: tuple[str, ...]


class Base(msgspec.Struct, frozen=True):
    """What all points have in common. file, settings, policy, profile: as for chaos.resolve.load. world, seed: of the
    runs; each repeat has the next seed, so that all points of one are asked the same."""

    file: Path
    world: str
    seed: int
    settings: tuple[str, ...] = ()
    policy: str | None = None
    profile: str | None = None


class Point(msgspec.Struct, frozen=True):
    """A combination of values, and what the experiment is with them. values: by path, as in Axis."""

    values: dict[str, str]
    experiment: Experiment

    @property
    def name(self) -> str:
        """For people, such as `cluster.workers=2, workload.rate=20/s`."""
        return named(self.values)


class Trial(msgspec.Struct, frozen=True):
    """One run of a point. repeat: from 1. key: names what is run, so that nothing else has the same."""

    point: Point
    repeat: int
    world: str
    seed: int
    key: str

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.point.name}, repeat {self.repeat}"


def named(values: dict[str, str]) -> str:
    """The values of a point in one line."""
    return ", ".join(f"{path}={text}" for path, text in values.items())


def parse_axis(text: str) -> Axis:
    """`path=v1,v2,...`: values are YAML, quoted where they hold a comma; `1..10` is a range, `2..20..6` one in steps.

    Raises GridError.
    """
    path, equals, listed = text.partition("=")
    path = path.strip()
    if not equals or not all(path.split(".")):
        raise GridError(f"--over {_shown(text)}: expected path.to.field=value,value,...")
    try:
        values = parse_yaml(f"[{listed}]")
    except YamlError:
        raise GridError(f"--over {_shown(text)}: the values are not YAML; quote one that holds a comma") from None
    if not isinstance(values, list) or not values:
        raise GridError(f"--over {_shown(text)}: expected values with commas between them")
    found = [one for value in values for one in _expanded(value, text)]
    lines = [_line(value) for value in found]
    if len(set(lines)) != len(lines):
        raise GridError(f"--over {_shown(text)}: a value is there twice")
    return Axis(path, tuple(lines))


def points(axes: Sequence[Axis], base: Base, *, skip_invalid: bool = False) -> tuple[list[Point], list[str]]:
    """Every combination, each resolved and checked; and what of them was left out, a line each.

    Raises GridError for a combination that cannot be run, unless `skip_invalid` leaves it out, and when none is left.
    """
    paths = [axis.path for axis in axes]
    for path in paths:
        if paths.count(path) > 1:
            raise GridError(f"--over {path}: given twice")
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > POINTS_MAX:
        raise GridError(f"--over: {count} points, expected at most {POINTS_MAX}")
    found, left_out = [], []
    for combination in product(*(axis.values for axis in axes)):
        values = dict(zip(paths, combination, strict=True))
        settings = [*base.settings, *(f"{path}={text}" for path, text in values.items())]
        try:
            found.append(Point(values, load(base.file, settings, base.policy, base.profile)))
        except ExperimentError as error:
            said = str(error).split(": ", 1)[1] if ": " in str(error) else str(error)
            line = f"point {named(values)}: {said}"
            if not skip_invalid:
                raise GridError(line) from None
            left_out.append(line)
    if not found:
        raise GridError(f"no point is left; {left_out[0]}")
    return found, left_out


def trials(found: Sequence[Point], base: Base, repeats: int) -> list[Trial]:
    """All repeats of all points in the order in which they are run: a repeat after the other, each in a seeded random
    order of its own, so that whatever changes with time meets no point more than another. Points that are the same
    experiment after all, such as one without the fault whose setting differs, are run once."""
    ordered: dict[str, Trial] = {}
    for repeat in range(1, repeats + 1):
        block = list(found)
        Random(f"{base.seed}/{repeat}").shuffle(block)
        for trial in (_trial(point, repeat, base) for point in block):
            ordered.setdefault(trial.key, trial)
    return list(ordered.values())


def resolved(experiment: Experiment) -> str:
    """The experiment as a file that needs no other one."""
    return yaml.safe_dump(msgspec.to_builtins(experiment), sort_keys=False)


def _trial(point: Point, repeat: int, base: Base) -> Trial:
    seed = base.seed + repeat - 1
    named_by = f"{resolved(point.experiment)}\n{base.world}\n{seed}"
    digest = hashlib.sha256(named_by.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    # Nothing of the grid is in it: the same run under another grid keeps its name.
    key = f"{point.experiment.cluster.workers}-workers.seed-{seed}.{digest}"
    return Trial(point, repeat, base.world, seed, key)


def _expanded(value: object, text: str) -> list[object]:
    match = _RANGE.match(value) if isinstance(value, str) else None
    if match is None:
        return [value]
    first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
    if last < first or step < 1 or (last - first) // step >= POINTS_MAX:
        raise GridError(f"--over {_shown(text)}: {value}: expected a range that rises, of at most {POINTS_MAX} values")
    return list(range(first, last + 1, step))


def _line(value: object) -> str:
    """YAML in one line that reads back as the same value."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1_000_000).strip()
    return text.removesuffix("...").strip()


def _shown(text: str) -> str:
    short = text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}..."
    return "".join(char if char.isprintable() else "?" for char in short)
