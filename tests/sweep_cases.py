"""What tests.verify expects of a live sweep that is stopped or killed in the midst of its second run and started again.

Its workers compute nothing: it is about what is run again, and what is left, and about no figure.
"""

import json
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from analysis.history import UnreadableError
from analysis.judge import read_verdict
from chaos.clean_slate import left_behind
from tests.processes import ROOT

WORKERS = (1, 2, 3)
KILLED_WORKERS = (1, 2)
KILLED_SHORT = ("phases.weak.duration_s=5", "phases.strong.duration_s=5", "phases.recovery.duration_s=4")
_KILLED_INTO_RUN_S = 8.0
_INTO_RUN_S = 14.0
"""The nodes of the second run have started by then, and it takes half a minute more."""
_LINE_S_MAX = 120.0
_END_S_MAX = 60.0
_WHOLE_S_MAX = 400.0
_GONE_S = 10.0


def stopped_and_started_again(out: Path) -> tuple[list[str], str]:
    """Problems, and what was seen."""
    code = _ended(out, _command(out), signal.SIGINT, _INTO_RUN_S)
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
    return problems + _report_problems(out, len(WORKERS)), f"{len(after)} runs, {sum(after.values())} whole, none twice"


def killed_and_started_again(out: Path) -> tuple[list[str], str]:
    """Problems, and what was seen. The second sweep is started at once, while the run of the first still goes on."""
    command = [*_command(out, KILLED_WORKERS), *(word for each in KILLED_SHORT for word in ("--set", each))]
    code = _ended(out, command, signal.SIGKILL, _KILLED_INTO_RUN_S)
    problems = [] if code == -signal.SIGKILL else [f"exit code {code}: it had ended before the kill"]
    before = runs(out)
    with (out / "second.log").open("wb") as log:
        again = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=False, timeout=_WHOLE_S_MAX)
    if again.returncode != 0:
        problems.append(f"exit code {again.returncode} of the second start")
    after = runs(out)
    for run in after:
        problems += [f"left running: {line}" for line in left_behind(run.name, _GONE_S)]
    if len(before) != len(KILLED_WORKERS):
        problems.append(f"{len(before)} runs had begun before the kill, so it proved nothing")
    whole = [run.parent for run, complete in after.items() if complete]
    if len(whole) != len(KILLED_WORKERS) or len(set(whole)) != len(whole):
        problems.append(f"{len(whole)} whole runs of {len(set(whole))} points, expected one of each")
    # By files that each run writes at its end, and the second at which the next one is named.
    ended_s = max((path.stat().st_mtime for run in before for path in (run / "run.json",) if path.exists()), default=0)
    begun_s = [_begun_s(run) for run in after if run not in before]
    if any(each < int(ended_s) for each in begun_s):
        problems.append("a run began while the one of the killed sweep still went on")
    late = "" if "still ends" in (out / "second.log").read_text() else ", the second start came after its end"
    figures = f"{len(after)} runs, {len(whole)} whole, none twice{late}"
    return problems + _report_problems(out, len(KILLED_WORKERS)), figures


def _begun_s(run: Path) -> float:
    """Unix time at which a run was named, whole seconds."""
    match = re.match(r"\d{8}T\d{6}", run.name)
    assert match is not None
    return datetime.strptime(match[0], "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()


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


def _report_problems(out: Path, points: int) -> list[str]:
    report = json.loads((out / "sweep.json").read_text())
    problems = []
    if (report["done"], report["missing"]) != (points, []):
        problems.append(f"the report has {report['done']} of {points} runs")
    if report["engine"] != "timed" or "no model was computed" not in (out / "sweep.md").read_text():
        problems.append("the report does not say that no model was computed")
    if any(series["law"] is not None for series in report["series"]):
        problems.append("a law was fitted to three numbers of workers")
    return problems


def _ended(out: Path, command: list[str], number: int, into_run_s: float) -> int:
    """The exit code of a sweep that gets a signal when its second run is under way."""
    log = out / "first.log"
    with log.open("wb") as output, subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output) as process:
        end_s = time.monotonic() + _LINE_S_MAX
        while log.read_text().count(": running") < 2 and time.monotonic() < end_s:
            time.sleep(0.2)
        time.sleep(into_run_s)
        process.send_signal(number)
        return process.wait(_END_S_MAX)


def _command(out: Path, workers: tuple[int, ...] = WORKERS) -> list[str]:
    over = f"cluster.workers={','.join(map(str, workers))}"
    return [
        *(sys.executable, "-m", "chaos.sweep", "scalability", "--profile", "timed"),
        *("--over", over, "--out", str(out)),
    ]
