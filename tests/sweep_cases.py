"""What tests.verify expects of a live sweep that is stopped in the midst of its second run and started again.

Its workers compute nothing: it is about what is run again, and what is left, and about no figure.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from analysis.history import UnreadableError
from analysis.judge import read_verdict
from chaos.clean_slate import left_behind
from tests.processes import ROOT

WORKERS = (1, 2, 3)
_INTO_RUN_S = 14.0
"""The nodes of the second run have started by then, and it takes half a minute more."""
_LINE_S_MAX = 120.0
_END_S_MAX = 60.0
_WHOLE_S_MAX = 400.0
_GONE_S = 10.0


def stopped_and_started_again(out: Path) -> tuple[list[str], str]:
    """Problems, and what was seen."""
    code = _interrupted(out)
    problems = [] if code == 130 else [f"exit code {code} after Ctrl-C"]
    before = runs(out)
    whole = {run for run, complete in before.items() if complete}
    if len(whole) != 1 or len(before) != 2:
        problems.append(f"{len(whole)} runs were whole and {len(before) - len(whole)} were not, expected one of each")
    for run in before:
        problems += [f"left running: {line}" for line in left_behind(run.name, _GONE_S)]
    with (out / "second.log").open("wb") as log:
        again = subprocess.run(_command(out), cwd=ROOT, stdout=log, stderr=log, check=False, timeout=_WHOLE_S_MAX)
    if again.returncode != 0:
        problems.append(f"exit code {again.returncode} of the second start")
    after = runs(out)
    if not before.items() <= after.items():
        problems.append("a run of the first start is gone, or not what it was")
    if sum(after.values()) != len(WORKERS) or len(after) != len(WORKERS) + 1:
        problems.append(
            f"{sum(after.values())} whole runs of {len(after)}, expected {len(WORKERS)} and the one cut short"
        )
    return problems + _report_problems(out), f"{len(after)} runs, {sum(after.values())} whole, none twice"


def runs(out: Path) -> dict[Path, bool]:
    """Every run that was begun, and whether it came to its end."""
    found = {}
    for folder in out.glob("points/*/run/*"):
        if not folder.is_symlink():
            try:
                found[folder] = read_verdict(folder).complete
            except UnreadableError:
                found[folder] = False
    return found


def _report_problems(out: Path) -> list[str]:
    report = json.loads((out / "sweep.json").read_text())
    problems = []
    if (report["done"], report["missing"]) != (len(WORKERS), []):
        problems.append(f"the report has {report['done']} of {len(WORKERS)} runs")
    if report["engine"] != "timed" or "no model was computed" not in (out / "sweep.md").read_text():
        problems.append("the report does not say that no model was computed")
    if any(series["law"] is not None for series in report["series"]):
        problems.append("a law was fitted to three numbers of workers")
    return problems


def _interrupted(out: Path) -> int:
    """The exit code of a sweep that is told to end when its second run is under way."""
    log = out / "first.log"
    with log.open("wb") as output, subprocess.Popen(_command(out), cwd=ROOT, stdout=output, stderr=output) as process:
        end_s = time.monotonic() + _LINE_S_MAX
        while log.read_text().count(": running") < 2 and time.monotonic() < end_s:
            time.sleep(0.2)
        time.sleep(_INTO_RUN_S)
        process.send_signal(signal.SIGINT)
        return process.wait(_END_S_MAX)


def _command(out: Path) -> list[str]:
    over = f"cluster.workers={','.join(map(str, WORKERS))}"
    return [
        *(sys.executable, "-m", "chaos.sweep", "scalability", "--profile", "timed"),
        *("--over", over, "--out", str(out)),
    ]
