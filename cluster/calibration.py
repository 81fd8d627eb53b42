"""Calibrations: what the steps of a model's engine and the ways over the bus take on some kind of host, by name."""

from importlib import resources
from pathlib import Path
from typing import Literal

import msgspec

from cluster.engine.costs import StepCosts
from cluster.simulation.condition import NetworkCosts

_BYTES_MAX = 2**20


class CalibrationError(Exception):
    """There is no such calibration, or it is none. One line."""


class Fit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A least-squares fit. terms: the names of its coefficients in `costs`, seconds; covariance: of their estimates.

    A coefficient at its bound of 0 has no covariance: there are zeros. residuals: relative, from the smallest to the
    largest: the 5th, 25th, 50th, 75th and 95th percentile.
    """

    terms: tuple[str, ...]
    estimates: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    samples: int
    residuals: tuple[float, ...]


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a model on a kind of host.

    kind: `measured` here by cluster.calibrate, or computed from figures that somebody else has `published`; source says
    whose, and what of it was measured at all. workers: how many processes had the model in memory, side by side.
    round_trips_s: percentiles (5, 50, 95) of a message over the bus to oneself, by how many engines computed meanwhile.
    """

    model: str
    kind: Literal["measured", "published"]
    source: str
    workers: int
    costs: StepCosts
    bus: NetworkCosts
    fits: dict[str, Fit] = {}
    round_trips_s: dict[str, tuple[float, float, float]] = {}
    environment: dict[str, str | int] = {}


def calibration_names() -> list[str]:
    """Those that come with the package."""
    return sorted(path.stem for path in _folder().glob("*.json"))


def load_calibration(name_or_path: str) -> Calibration:
    """The calibration of that name, or in that file, whose name ends in .json. Raises CalibrationError."""
    path = Path(name_or_path)
    if path.suffix != ".json":
        if name_or_path not in calibration_names():
            known = ", ".join(calibration_names()) or "none yet"
            raise CalibrationError(f"no calibration {name_or_path!r}; there is {known} (or give a .json file)")
        path = _folder() / f"{name_or_path}.json"
    try:
        if path.stat().st_size > _BYTES_MAX:
            raise CalibrationError(f"{path}: more than {_BYTES_MAX} bytes, which no calibration has")
        found = msgspec.json.decode(path.read_bytes(), type=Calibration)
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise CalibrationError(f"{path}: no calibration: {error}") from error
    return msgspec.structs.replace(found, costs=msgspec.structs.replace(found.costs, profile=path.stem))


def measured_for(model: str) -> str | None:
    """The name of a shipped calibration that was measured with this model; None: there is none."""
    for name in calibration_names():
        found = load_calibration(name)
        if found.model == model and found.kind == "measured":
            return name
    return None


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Write it for people to read. Raises OSError."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(calibration), indent=1) + b"\n")


def _folder() -> Path:
    return Path(str(resources.files("cluster") / "calibrations"))
