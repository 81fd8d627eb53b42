"""`python -m chaos.run NAME|FILE.yaml`: run one experiment and say what came of it."""

import argparse
import asyncio
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import yaml

from analysis.arguments import NotWritable, check_writable, path, seed
from analysis.history import UnreadableError
from analysis.recorder import RecorderError
from analysis.verdict import EXIT_CODES, Verdict
from chaos.director import Director
from chaos.experiment import Experiment, ExperimentError, catalogue, find
from chaos.faults import kinds
from chaos.faults.listing import listing
from chaos.like import Like, at_its_speed, read_like
from chaos.progress import Progress
from chaos.publishing import PublishedProgress
from chaos.resolve import load
from chaos.results import ResultsDirectory
from chaos.session import INTERRUPTED, Session, play_simulated
from chaos.staging.command import announce, chosen_target
from chaos.target import Target
from chaos.worlds.staging import StagingWorld
from chaos.worlds.world import HandleError, InfrastructureError
from cluster.live.ray_variables import prepare_to_join
from workloads.capacity import CapacityUnknown, HostTooSlow, InfeasibleRate

EXIT_USAGE = 2
EXIT_INFRASTRUCTURE = 5
EXIT_INTERRUPTED = 130
WORLDS = ("live", "simulated", "staging")
_TIMED = "timed engine: workers compute nothing and take the time that cluster.costs say; this does not measure MLX"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.list:
        for name, path in catalogue().items():
            print(f"{name:24} {yaml.safe_load(path.read_text())['title']}")
        return 0
    if options.faults:
        return _list_faults()
    if options.like is not None:
        return _play_again(options)
    if options.experiment is None:
        _parser().error("name an experiment of the catalogue (--list) or a .yaml file")
    if options.world == "simulated" and options.address is not None:
        return _complain("--address: the simulated world has no Ray cluster to join", EXIT_USAGE)
    if options.world == "staging" and options.record_policy:
        return _complain("--record-policy: the nodes of a staging target are not ours to record", EXIT_USAGE)
    settings = list(options.set)
    if options.model is not None:
        settings.append(f"cluster.model={options.model}")
    try:
        target = chosen_target(options.world, options.target, options.address)
        settings += target.settings() if target is not None else []
        experiment = load(find(options.experiment), settings, options.policy, options.profile)
        if target is not None:
            code = announce(experiment, target, options.seed)
            if code or options.dry_run:
                return code
            check_writable(options.out)
            return run(experiment, "staging", options.seed, options.out, target=target)
        if options.dry_run:
            print(yaml.safe_dump(msgspec.to_builtins(experiment), sort_keys=False), end="")
            return 0
        check_writable(options.out)
        return run(
            experiment,
            options.world,
            options.seed,
            options.out,
            options.address,
            record_policy=options.record_policy,
        )
    except ExperimentError as error:
        return _complain(str(error), EXIT_USAGE)
    except NotWritable as error:
        return _complain(f"--out {error}", EXIT_USAGE)
    except RecorderError as error:
        return _complain(str(error), EXIT_INFRASTRUCTURE)
    except KeyboardInterrupt:
        # While nothing had been started yet: from then on the world takes the signal, heals and reports.
        return _complain("interrupted", EXIT_INTERRUPTED)


def _play_again(options: argparse.Namespace) -> int:
    """Play a recorded run in the simulated world, on its own schedule."""
    if options.experiment is not None or options.world != "simulated":
        return _complain("--like DIR takes the experiment of that run, and goes with --world simulated", EXIT_USAGE)
    try:
        like = read_like(options.like, options.set)
        if options.at_its_speed:
            like = at_its_speed(like)
        check_writable(options.out)
        return run(like.experiment, "simulated", like.seed, options.out, like=like, record_policy=options.record_policy)
    except ExperimentError as error:
        return _complain(str(error), EXIT_USAGE)
    except NotWritable as error:
        return _complain(f"--out {error}", EXIT_USAGE)
    except (RecorderError, InfrastructureError, CapacityUnknown) as error:
        return _complain(str(error), EXIT_INFRASTRUCTURE)


def run(
    experiment: Experiment,
    world: str,
    seed: int,
    out: Path,
    address: str | None = None,
    target: Target | None = None,
    like: Like | None = None,
    record_policy: bool | None = None,
) -> int:
    """Run an experiment in a world and leave its results below `out`; returns the exit code.

    record_policy: whether what the nodes decide is recorded, see chaos.replay; None: in the live world.
    """
    results = ResultsDirectory(out, experiment, world, seed)
    with Progress() as shown, closing(PublishedProgress(shown, results.path)) as progress:
        progress.note(f"{experiment.title} ({experiment.name}, {world} world, seed {seed})")
        if world == "live" and experiment.cluster.engine == "timed":
            progress.note(_TIMED)
        try:
            ended_by = _execute(experiment, world, seed, results, progress, address, target, like, record_policy)
        except (InfrastructureError, HandleError, CapacityUnknown, HostTooSlow, RecorderError) as error:
            return _complain(str(error), EXIT_INFRASTRUCTURE)
        except InfeasibleRate as error:
            return _complain(str(error), EXIT_USAGE)
        except Exception:
            path = results.write_error(traceback.format_exc())
            return _complain(f"an error of ours, please report it: see {path}", EXIT_INFRASTRUCTURE)
    with _deferred_signals() as asked:
        try:
            verdict = results.judge(_environment(results))
        except (OSError, UnreadableError) as error:
            return _complain(f"{results.path}: the run has no report: {error}", EXIT_INFRASTRUCTURE)
        _print_verdict(verdict, results.path)
    return EXIT_INTERRUPTED if asked or ended_by == INTERRUPTED else EXIT_CODES[verdict.verdict]


def prepare_ray(address: str | None) -> None:
    """Set what Ray reads when it is imported; chaos.worlds.live imports it. address: see LiveWorld."""
    if address is None:
        # Unless it believes that the host is alone, it listens on every interface.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    else:
        prepare_to_join()
    # That a process or a host died is what experiments are about: the report tells it better than Ray.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed|has been marked dead")


def _execute(
    experiment: Experiment,
    kind: str,
    seed: int,
    results: ResultsDirectory,
    progress: PublishedProgress,
    address: str | None,
    target: Target | None = None,
    like: Like | None = None,
    record_policy: bool | None = None,
) -> str:
    """Run in the world and put all tables in place; returns what ended the run."""
    if kind == "simulated":
        return play_simulated(experiment, seed, results, progress, like, bool(record_policy))
    if target is not None:
        staging = StagingWorld(experiment, target, results.run_id, results.raw, results.logs)
        director = Director(staging, experiment, seed, progress, results.write_plan, staging)
        session = Session(
            staging, director, results, progress, lambda: staging.interrupted, world_notes=lambda: staging.notes
        )
        asyncio.run(staging.guarded(session.whole()))
    else:
        prepare_ray(address)
        from chaos.worlds.live import LiveWorld

        recorded = record_policy is not False
        live = LiveWorld(experiment, seed, results.run_id, results.raw, results.logs, address, recorded)
        director = Director(live, experiment, seed, progress, results.write_plan)
        session = Session(live, director, results, progress, lambda: live.interrupted, live.clocks_ahead_s)
        asyncio.run(live.guarded(session.whole()))
    return session.ended_by


@contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """Finish what takes seconds although somebody asks for the end; yields the signals that came meanwhile."""
    asked: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda got, _: asked.append(got)) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_verdict(verdict: Verdict, path: Path) -> None:
    print(f"verdict: {verdict.verdict.upper()}{' (timed engine, no model was computed)' if verdict.is_timed() else ''}")
    for reason in verdict.reasons[:5]:
        print(f"  {reason}")
    print(f"report: {path / 'report.html'}")


def _environment(results: ResultsDirectory) -> dict[str, object]:
    decoded: dict[str, object] = msgspec.json.decode((results.path / "environment.json").read_bytes())
    return decoded


def _complain(text: str, code: int) -> int:
    print(f"chaos.run: {text}", file=sys.stderr)
    return code


def _list_faults() -> int:
    try:
        known = kinds()
    except ValueError as error:
        return _complain(str(error), EXIT_USAGE)
    print(listing(known), end="")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chaos.run",
        description="Run a chaos experiment and write a report with a verdict.",
        epilog="exit codes: 0 pass, 1 fail, 2 usage, 3 inconclusive, 4 invalid, 5 infrastructure, 130 interrupted",
    )
    parser.add_argument("experiment", nargs="?", help="a name of the catalogue, or a .yaml file")
    parser.add_argument("--list", action="store_true", help="list the catalogue")
    parser.add_argument("--faults", action="store_true", help="list the fault kinds and what each does")
    parser.add_argument("--world", choices=WORLDS, default="live")
    parser.add_argument("--address", help="a running Ray cluster to join, instead of starting one here")
    parser.add_argument("--target", metavar="FILE", help="of --world staging: what its owner allows, see chaos.target")
    parser.add_argument("--model", help="tiny, an mlx-lm directory, or a hub id")
    parser.add_argument("--profile", help="one of the experiment's own profiles, such as prd")
    parser.add_argument("--policy", help="a policy profile of the cluster, or a .yaml file")
    parser.add_argument("--seed", type=seed, default=1, help="seed of load and simulation (default 1)")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a field")
    parser.add_argument("--like", type=path, metavar="DIR", help="a recorded run, to play again with --world simulated")
    parser.add_argument("--at-its-speed", action="store_true", help="with --like: compute as fast as its probe found")
    parser.add_argument("--out", type=path, default=Path("results"), help="where results go (default results/)")
    parser.add_argument(
        "--record-policy",
        action=argparse.BooleanOptionalAction,
        help="record what the nodes decide, for chaos.replay (default: in the live world)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would be run and stop")
    return parser


if __name__ == "__main__":
    # Workers of Ray import their code from where we run.
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
