"""`python -m chaos.sweep EXPERIMENT --over cluster.workers=1,2,4`: an experiment at every point of a grid, one report.

It can be stopped and started again: what has its verdict in the folder is not run again, what was interrupted is. A run
is known by all that was to be run, so after a change of the experiment or of the grid only what is missing is run.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import msgspec
import pyarrow.parquet as pq

from analysis import sweep_view
from analysis.arguments import NotWritable, check_writable, path, positive_int, real_number, seed, whole_number
from analysis.sweep_page import html, markdown, text
from analysis.sweep_table import SweepRow, to_table
from analysis.sweep_view import Missing, SweepReport
from analysis.whole_file import replacing, write_whole
from chaos.children import Children
from chaos.experiment import ExperimentError, find
from chaos.folder_lock import FolderBusy, alone_in
from chaos.grid import Axis, Base, GridError, Trial, parse_axis, points, trials
from chaos.run import EXIT_INFRASTRUCTURE, EXIT_INTERRUPTED, EXIT_USAGE
from chaos.sweeping import FORM, Clock, Measuring, NoVerdict, check_phases, kept, play

EXIT_MORE = 3
"""Points are left to be run, because --limit said so."""
REPEATS_MAX = 100
SETTLE_S_MAX = 86_400.0
WORLDS = ("live", "simulated")
_WRITE_EVERY_S = 20.0


class Sweep:
    """The runs of one sweep and what is known of them. In the end it writes what there is, whatever ended it."""

    def __init__(
        self, planned: Sequence[Trial], left_out: Sequence[str], options: argparse.Namespace, out: Path
    ) -> None:
        self.planned = planned
        self.out = out
        self.measuring = Measuring(tuple(options.phase), options.settle, FORM)
        self.rows: dict[str, list[SweepRow]] = {}
        self.why: dict[str, str] = {}
        self._left_out = left_out
        self._options = options
        self._written_s = -_WRITE_EVERY_S

    def find_kept(self) -> None:
        """Read the rows of what has its verdict."""
        for trial in self.planned:
            rows = kept(trial, self.measuring, self.out)
            if rows is not None:
                self.rows[trial.key] = rows

    def missing(self) -> list[Trial]:
        """What has no verdict, in the order in which it is to be run."""
        return [trial for trial in self.planned if trial.key not in self.rows]

    def ended(self, trial: Trial, rows: list[SweepRow] | None, why: str) -> None:
        """A run has ended, with rows or with a reason why there are none; tell, and write now and then."""
        if rows is not None:
            self.rows[trial.key] = rows
            figures = ", ".join(f"{row.figures.requests_per_s or 0:.4g}/s in {row.figures.phase}" for row in rows)
            told = f"{rows[0].verdict}: {figures} ({rows[0].took_s:.0f} s)"
        else:
            self.why[trial.key] = why
            told = f"no verdict: {why}"
        print(f"{len(self.rows)} of {len(self.planned)} done: {trial.name}: {told}", flush=True)
        if time.monotonic() - self._written_s > _WRITE_EVERY_S:
            self.write()

    def write(self) -> SweepReport:
        """Write `points.parquet` and the report in its three forms."""
        report = self._report()
        with replacing(self.out / "points.parquet") as part:
            pq.write_table(to_table(report.rows), part, compression="zstd")
        write_whole(self.out / "sweep.json", msgspec.json.format(msgspec.json.encode(report), indent=1))
        write_whole(self.out / "sweep.md", markdown(report))
        write_whole(self.out / "sweep.html", html(report))
        self._written_s = time.monotonic()
        return report

    def _report(self) -> SweepReport:
        options, first = self._options, self.planned[0].point.experiment
        rows = [row for trial in self.planned for row in self.rows.get(trial.key, ())]
        rows.sort(key=lambda row: (row.workers, row.point, row.figures.phase, row.repeat))
        series = sweep_view.series_of(rows)
        engines = sorted({row.engine for row in rows}) or [
            "timed" if options.world == "simulated" else first.cluster.engine
        ]
        asked = [axis for axis in options.over if isinstance(axis, Axis)]
        return SweepReport(
            experiment=first.name,
            title=first.title,
            question=first.question.strip(),
            world=options.world,
            engine=" and ".join(engines),
            command=options.command,
            axes={axis.path: list(axis.values) for axis in asked},
            repeats=options.repeats,
            planned=len(self.planned),
            done=len(self.rows),
            settle_s=options.settle,
            statements=sweep_view.statements_of(series),
            limits=sweep_view.limits_of(rows),
            notes=[*sweep_view.notes_of(rows), *(f"left out: {line}" for line in self._left_out)],
            missing=[Missing(trial.name, self.why.get(trial.key, "not run yet")) for trial in self.missing()],
            series=series,
            curves=sweep_view.curves_of(rows),
            points=sweep_view.point_rows(rows),
            rows=rows,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, write the report and say what it says. For exit codes see the parser's epilogue."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    options.command = shlex.join(["python", "-m", "chaos.sweep", *given])
    try:
        planned, left_out = _plan(options)
    except (GridError, ExperimentError) as error:
        return _complain(str(error))
    out: Path = options.out if options.out is not None else Path("results/sweep") / planned[0].point.experiment.name
    sweep = Sweep(planned, left_out, options, out)
    wrong = _wrong_options(options) or check_phases(planned, sweep.measuring)
    if wrong:
        return _complain(wrong)
    if options.dry_run:
        for trial in planned:
            print(trial.name)
        return 0
    try:
        check_writable(out)
        out.mkdir(parents=True, exist_ok=True)
        with alone_in(out, "sweep", lambda line: print(line, flush=True)) as held:
            return _run(sweep, options, left_out, Children(held))
    except FolderBusy as error:
        return _complain(str(error))
    except NotWritable as error:
        return _complain(f"--out {error}")
    except KeyboardInterrupt:
        # While nothing ran.
        print("chaos.sweep: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(sweep: Sweep, options: argparse.Namespace, left_out: Sequence[str], children: Children) -> int:
    for line in left_out:
        print(f"left out: {line}")
    sweep.find_kept()
    missing = sweep.missing()
    print(f"{len(sweep.planned)} runs, {len(sweep.rows)} of them have their verdict", flush=True)
    interrupted = False
    try:
        _play_all(sweep, missing[: options.limit], options, children)
    except KeyboardInterrupt:
        interrupted = True
    report = sweep.write()
    print(f"\n{text(report)}report: {sweep.out / 'sweep.html'}")
    if interrupted:
        return EXIT_INTERRUPTED
    if sweep.why:
        return EXIT_INFRASTRUCTURE
    return EXIT_MORE if report.missing else 0


def _play_all(sweep: Sweep, chosen: Sequence[Trial], options: argparse.Namespace, children: Children) -> None:
    """Raises KeyboardInterrupt when somebody asks for the end, after all that ran has ended."""
    if not chosen:
        return
    if options.world == "simulated" and options.address is not None:
        from chaos.sweep_on_ray import play_on_ray

        play_on_ray(options.address, chosen, sweep.measuring, sweep.out, sweep.ended)
        return
    known_s = [rows[0].took_s for rows in sweep.rows.values() if rows]
    clock = Clock(len(chosen), options.parallel, known_s)

    def one(trial: Trial) -> tuple[list[SweepRow] | None, str]:
        left_s = clock.left_s()
        told = "" if left_s is None else f" (about {_duration(left_s)} left)"
        print(f"{trial.name}: running{told}", flush=True)
        began_s = time.monotonic()
        try:
            return play(trial, sweep.measuring, sweep.out, children, options.address), ""
        except NoVerdict as error:
            return None, str(error)
        finally:
            clock.done(time.monotonic() - began_s)

    with ThreadPoolExecutor(options.parallel) as pool:
        running: dict[Future[tuple[list[SweepRow] | None, str]], Trial] = {}
        waiting = list(chosen)
        try:
            while waiting or running:
                while waiting and len(running) < options.parallel:
                    trial = waiting.pop(0)
                    running[pool.submit(one, trial)] = trial
                for future in wait(running, timeout=0.5, return_when="FIRST_COMPLETED").done:
                    sweep.ended(running.pop(future), *future.result())
        except KeyboardInterrupt:
            print("\ninterrupted: ending what runs, please wait", file=sys.stderr, flush=True)
            children.interrupt()
            for future, trial in running.items():
                sweep.ended(trial, *future.result())
            raise


def _plan(options: argparse.Namespace) -> tuple[list[Trial], list[str]]:
    axes = options.over = [parse_axis(text) for text in options.over]
    settings = list(options.set)
    if options.model is not None:
        settings.append(f"cluster.model={options.model}")
    base = Base(find(options.experiment), options.world, options.seed, tuple(settings), options.policy, options.profile)
    found, left_out = points(axes, base, skip_invalid=options.skip_invalid)
    return trials(found, base, options.repeats), left_out


def _wrong_options(options: argparse.Namespace) -> str:
    if options.parallel is None:
        options.parallel = (os.cpu_count() or 1) if options.world == "simulated" else 1
    if options.world != "simulated" and options.parallel > 1:
        return f"--parallel {options.parallel}: expected 1, for live runs beside each other would measure each other"
    return ""


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _complain(text: str) -> int:
    print(f"chaos.sweep: {text}", file=sys.stderr)
    return EXIT_USAGE


_repeats = whole_number(1, REPEATS_MAX)
_settle_s = real_number(0, SETTLE_S_MAX)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chaos.sweep",
        description=__doc__,
        epilog="exit codes: 0 every run has a verdict, 2 usage, 3 --limit has left runs, 5 a run came to no verdict, "
        "130 interrupted",
    )
    parser.add_argument("experiment", help="a name of the catalogue, or a .yaml file")
    parser.add_argument(
        "--over", action="append", default=[], required=True, metavar="PATH=V1,V2,...",
        help="values of a setting, as YAML; 1..10 is a range; several give every combination",
    )  # fmt: skip
    parser.add_argument("--repeats", type=_repeats, default=1, help="runs of each point, each with the next seed")
    parser.add_argument("--phase", action="append", default=[], help="what to measure (default: phases with a load)")
    parser.add_argument("--settle", type=_settle_s, default=2.0, help="seconds of each phase that do not count")
    parser.add_argument("--skip-invalid", action="store_true", help="leave out combinations that cannot be run")
    parser.add_argument("--limit", type=whole_number(0), help="run so many at most, and the others another time")
    parser.add_argument("--parallel", type=positive_int, help="simulated runs at once (default: as many as cores)")
    parser.add_argument("--world", choices=WORLDS, default="live")
    parser.add_argument("--address", help="a Ray cluster: live runs join it, simulated runs are spread over it")
    parser.add_argument("--model", help="tiny, an mlx-lm directory, or a hub id")
    parser.add_argument("--profile", help="one of the experiment's own profiles")
    parser.add_argument("--policy", help="a policy profile of the cluster, or a .yaml file")
    parser.add_argument("--seed", type=seed, default=1, help="of the order and of the first repeat (default 1)")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a field in all")
    parser.add_argument("--out", type=path, help="default results/sweep/EXPERIMENT")
    parser.add_argument("--dry-run", action="store_true", help="check every point, list the runs in order, and stop")
    return parser


if __name__ == "__main__":
    sys.exit(main())
