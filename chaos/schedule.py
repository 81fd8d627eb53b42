"""`python -m chaos.schedule FILE.yaml`: run experiments on a schedule, with nobody watching, until it is stopped.

One run at a time. A slot whose time comes while another run goes on waits its turn, up to its `start_within_s` and
never past the next slot of its entry; then it is missed. Every slot ends as ran, interrupted or missed, none is started
twice, and both hold when the scheduler is killed and started again: what it has decided is on disk before it is done.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import msgspec

from analysis.arguments import NotWritable, check_writable, parent_of, path, port, whole_number
from analysis.whole_file import write_whole
from chaos.notify import Webhook
from chaos.scheduling import metrics
from chaos.scheduling.display import coming, status, table
from chaos.scheduling.journal import FOLDER, Journal, JournalBusy, JournalError, read
from chaos.scheduling.machine import Machine
from chaos.scheduling.plan import Plan, ScheduleError, load
from chaos.scheduling.records import Acknowledged, JournalDamaged
from chaos.scheduling.runner import RUN, Runner
from chaos.scheduling.shell import Clock, Scheduler, SystemClock, acknowledge

EXIT_USAGE = 2
EXIT_STATE = 5
EXIT_INTERRUPTED = 130
SHOWN = 5
COUNT_MAX = 10_000
"""Slots that are listed; some are years away."""


def main(arguments: Sequence[str] | None = None, clock: Clock | None = None, command: Sequence[str] = RUN) -> int:
    """Run the command line; returns the exit code. clock: the time it goes by. command: what it runs for each slot."""
    options = _parser().parse_args(arguments)
    time_of = clock or SystemClock()
    try:
        plan = load(options.file)
        folder = plan.folder / FOLDER
        if options.status:
            return _status(plan, folder, options.json, time_of.unix_s())
        if options.dry_run:
            return _dry_run(plan, folder, options.count, time_of.unix_s())
        if options.ack:
            return _acknowledge(plan, folder, options.ack, time_of.unix_s())
        url = plan.webhook()
        _check_writable(plan, options.metrics_file)
        journal = Journal(folder)
    except (ScheduleError, NotWritable) as error:
        return _complain(str(error), EXIT_USAGE)
    except JournalBusy as error:
        return _complain(str(error), EXIT_USAGE)
    except (JournalError, JournalDamaged) as error:
        return _complain(str(error), EXIT_STATE)
    webhook = Webhook(url, plan.name) if url else None
    code = EXIT_STATE
    try:
        code = asyncio.run(_run(plan, journal, Runner(plan, command), webhook, time_of, options))
    except* (JournalError, JournalDamaged, OSError) as errors:
        _complain("; ".join(str(error) for error in errors.exceptions), EXIT_STATE)
    finally:
        journal.close()
    return code


async def _run(
    plan: Plan, journal: Journal, runner: Runner, webhook: Webhook | None, clock: Clock, options: argparse.Namespace
) -> int:
    scheduler: Scheduler | None = None

    def coming_s(name: str) -> float | None:
        assert scheduler is not None
        return next((due.due_s for due in scheduler.machine.slots(name, clock.unix_s())), None)

    told = metrics.ScheduleMetrics(plan, journal.state, coming_s)
    published: list[bytes] = []

    def publish() -> None:
        if options.metrics_file is not None and (text := told.text()) != (published or [b""])[-1]:
            published[:] = [text]
            write_whole(options.metrics_file, text)

    scheduler = Scheduler(plan, journal, runner, webhook, clock, _say, publish)
    asked: list[int] = []

    def stop(number: int) -> None:
        if not asked:
            asked.append(number)
            _say("stopping: the run that goes on is ended, please wait" if journal.state.running else "stopping")
            scheduler.stop("the scheduler was stopped")

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    server = None
    if options.metrics_port is not None:
        server = await metrics.serve(told, options.metrics_port)
        _say(f"metrics: http://127.0.0.1:{server.addresses[0][1]}/metrics")
    try:
        _say(f"{plan.name}: {len(plan.entries)} entries, results in {plan.folder}")
        await scheduler.run()
    finally:
        if server is not None:
            await server.cleanup()
    return EXIT_INTERRUPTED if asked == [signal.SIGINT] else 0


def _check_writable(plan: Plan, metrics_file: Path | None) -> None:
    """Raises NotWritable for a place where nothing could be written later, when nobody looks."""
    try:
        check_writable(plan.folder)
    except NotWritable as error:
        raise NotWritable(f"results: {error}") from None
    if metrics_file is None:
        return
    folder = parent_of(metrics_file)
    if not folder.is_dir():
        raise NotWritable(f"--metrics-file {metrics_file}: there is no folder {folder}")
    if metrics_file.is_dir():
        raise NotWritable(f"--metrics-file {metrics_file}: expected a file, this is a folder")
    check_writable(folder)


def _status(plan: Plan, folder: Path, as_json: bool, now_s: float) -> int:
    told = status(plan, read(folder), now_s)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(told), indent=1).decode())
    else:
        print(table(told), end="")
    return 0


def _dry_run(plan: Plan, folder: Path, count: int, now_s: float) -> int:
    machine = Machine(plan, read(folder))
    for name, entry in plan.entries.items():
        print(f"{name}: chaos.run {' '.join(entry.arguments(0))}" if entry.enabled else f"{name}: disabled")
        if entry.enabled:
            for line in islice(coming(plan, machine, name, now_s), count):
                print(f"  {line}")
    return 0


def _acknowledge(plan: Plan, folder: Path, name: str, now_s: float) -> int:
    if name not in plan.entries:
        return _complain(f"--ack {name}: no such entry; there are {', '.join(plan.entries)}", EXIT_USAGE)
    known = read(folder).entries.get(name)
    if known is None or known.quarantined_s is None:
        print(f"{name}: is not quarantined")
        return 0
    try:
        journal = Journal(folder)
    except JournalBusy:
        acknowledge(folder, name, known.quarantined_s)
        print(f"{name}: the scheduler is told, and lets it run from its next slot on")
        return 0
    try:
        journal.write(Acknowledged(entry=name, slot_s=known.quarantined_s, at_s=now_s))
    finally:
        journal.close()
    print(f"{name}: acknowledged; it runs from its next slot on")
    return 0


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _complain(text: str, code: int) -> int:
    print(f"chaos.schedule: {text}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chaos.schedule",
        description="Run experiments on a schedule, one at a time, until stopped.",
        epilog="exit codes: 0 stopped, 2 usage or another scheduler runs, 5 the state cannot be kept, 130 Ctrl-C",
    )
    parser.add_argument("file", type=path, metavar="FILE.yaml")
    parser.add_argument("--status", action="store_true", help="say how every entry stands, and stop")
    parser.add_argument("--json", action="store_true", help="with --status: all of it, as JSON")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run when, and stop")
    parser.add_argument(
        "--count", type=whole_number(0, COUNT_MAX), default=SHOWN, metavar="N",
        help="with --dry-run: slots of each entry, default %(default)s",
    )  # fmt: skip
    parser.add_argument("--ack", metavar="NAME", help="acknowledge a failure, so that the entry runs again")
    parser.add_argument(
        "--metrics-port", type=port, metavar="PORT", help="Prometheus metrics on loopback; 0: a free port"
    )
    parser.add_argument("--metrics-file", type=path, metavar="FILE", help="Prometheus metrics as a file")
    return parser


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
