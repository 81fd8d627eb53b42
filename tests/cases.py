"""The live evidence as a list of cases: each starts a run from outside, maybe disturbs it, and looks at what is left.

tests/verify.py plays them. Everything a case says about a run comes from its exit code, its output, its results
directory and the process table.
"""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import pyarrow.parquet as pq

from analysis.history import UnreadableError
from analysis.verdict import Outcome as VerdictOutcome
from analysis.verdict import Verdict
from chaos.undo import undo_directory
from chaos.worlds.world import Cut
from tests import (
    conformance_cases,
    contract,
    engine_fault_cases,
    host_cases,
    kill_cases,
    schedule_cases,
    serving_cases,
    staging_cases,
    sweep_cases,
)
from tests.processes import LEFT_MAX_S, ROOT, Run
from tests.toxiproxy.real_server import real_server

EXPERIMENT = "network_partition"
RUN_S_MAX = 300.0
LINE_S_MAX = 120.0
END_S_MAX = 60.0
SAMPLES_MIN = 460
SUCCESS_MIN = 0.99
TTL_S = 60.0

# Short phases and a low rate, for cases about how a run ends and not about what it measures. The rate stays a share,
# so that there is a capacity probe to be interrupted.
SHORT = (
    "phases.warm_up.duration_s=3",
    "phases.baseline.duration_s=5",
    "phases.fault.duration_s=8",
    "phases.recovery.duration_s=5",
    "faults.cut.duration_s=6",
    "workload.rate_min=8/s",
    "workload.rate_max=12/s",
)
WEAK = ("policy.retry.max_attempts=1", "policy.breaker.enabled=false", "policy.timeout.first_token_s=30")
CONTROLLER = "faults.cut.targets=[controller]"
# Name: a line of the runner's output, and seconds after it. The first stages of a start print no line of their own.
MOMENTS: dict[str, tuple[str, float]] = {
    "start": (r"^phase start", 0.0),
    "start_of_ray": (r"^phase start", 2.0),
    "start_of_actors": (r"^phase start", 5.0),
    "capacity_probe": (r"^phase capacity probe", 1.0),
    "warm_up": (r"^phase warm_up", 1.0),
    "baseline": (r"^phase baseline", 1.0),
    "injection": (r"^injected", 0.0),
    "fault": (r"^injected", 3.0),
    "recovery": (r"^phase recovery", 2.0),
    "drain": (r"^phase drain", 0.0),
    "stop": (r"^phase stop", 0.1),
    "references": (r"^phase reference completions", 0.0),
}
# By then all has been recorded, and known completions take no time: the signal may find the report being written.
MAY_BE_COMPLETE = ("references",)
STOPPED_AT = ("start", "capacity_probe", "drain")
STOP_S_MAX = 1.0
# Phases of which 12 s are enough when nothing is done in them.
SABOTAGED = {
    serving_cases.PROCESSES: (
        *("worker_kill", "worker_freeze", "worker_stop", "worker_restart"),
        *("controller_kill", "controller_freeze", "controller_restart"),
    ),
    serving_cases.BROKERS: ("broker_kill", "broker_restart", "broker_freeze"),
    serving_cases.LINKS: ("latency", "bandwidth", "slicer"),
    serving_cases.MESSAGES: ("drop", "delay", "duplicate", "reorder", "corrupt"),
}
MEASURED = "measured; misses are named"
PERFORMANCE = ROOT / "tests" / "performance"
KILLED_AT = ("start_of_ray", "start_of_actors", "baseline", "fault")


class Outcome(msgspec.Struct):
    """What a case gave. problems: why that is not what was expected, empty when it is."""

    got: str
    problems: list[str]
    figures: str = ""
    where: str = ""
    seconds: float = 0.0


class Case(msgspec.Struct, frozen=True):
    """A case: `play` gets an empty folder for its results."""

    name: str
    expected: str
    play: Callable[[Path], Outcome]


def cases() -> list[Case]:
    """All of them, in the order in which they are played."""
    found = [
        Case(f"{role}_{cut.value}", "exit 0, pass", partial(_passes, settings=(f"faults.cut.mode={cut.value}", *extra)))
        for role, extra in (("worker", ()), ("controller", (CONTROLLER,)))
        for cut in Cut
    ]
    found += [
        Case("worker_stall_late", "exit 0, pass, late work refused", _delivered_late),
        Case("one_worker", "not pass, one sentence why", _one_worker),
        Case("weak_policy", "exit 1, fail, names who suffered", _weak_policy),
        Case("sabotage", "exit 4, invalid", _sabotage),
    ]
    found += [
        Case(
            f"ctrl_c_{name}",
            f"exit 130, {'' if name in MAY_BE_COMPLETE else 'incomplete, '}nothing left",
            partial(_interrupted, moment=name),
        )
        for name in MOMENTS
    ]
    found += [
        Case(f"stop_file_{name}", "exit 3, incomplete, heeded within 1 s, nothing left", partial(_stopped, moment=name))
        for name in STOPPED_AT
    ]
    found += [Case(f"kill_9_{name}", "nothing left", partial(_killed, moment=name)) for name in KILLED_AT]
    found.append(Case("kill_9_toxiproxy_stays", f"proxies gone within {TTL_S:g} s", _killed_beside_a_toxiproxy))
    found.append(Case("kill_9_fifty", kill_cases.EXPECTED, _killed_fifty))
    found.append(Case("serving_processes", "exit 0, pass, whole after each of seven", _serving_processes))
    found.append(Case("broker_faults", "exit 0, pass, whole after each of four", _broker_faults))
    found.append(Case("link_faults", "exit 0, pass, whole after each of five", _link_faults))
    found.append(Case("message_faults", "exit 0, pass, whole after each of five", _message_faults))
    found += [
        Case(f"sabotage_{path.stem}", "exit 4, invalid", partial(_sabotage_each, experiment=path)) for path in SABOTAGED
    ]
    found += [
        Case(f"hurt_{way}", engine_fault_cases.expected(way), partial(_engine_fault, way=way))
        for way in engine_fault_cases.WAYS
    ]
    found.append(Case("sabotage_engine_faults", "exit 4, invalid", _sabotage_engine_faults))
    found.append(Case("sweep_resumed", "exit 130, then 0, no run twice, nothing left", _sweep_resumed))
    found.append(Case("sweep_killed", "exit 0 of the second start, no run twice, nothing left", _sweep_killed))
    found.append(Case("host_failure", "exit 0, pass, a host with two workers gone and back", _host_failure))
    found += [
        Case(f"sabotage_{way}", "exit 4, invalid", partial(_sabotage_host, settings=settings))
        for way, settings in host_cases.SABOTAGED.items()
    ]
    found += [
        Case(f"kill_9_host_{name}", "nothing left, no Ray node either", partial(_killed_with_hosts, moment=name))
        for name in host_cases.KILLED_AT
    ]
    found += [
        Case(f"three_hosts_{name}", "exit 0, or skipped without root", partial(_on_three_hosts, test=test))
        for name, test in host_cases.THREE_HOSTS.items()
    ]
    found.append(Case("schedule_killed", "every slot accounted for, no slot twice, changes told", _schedule_killed))
    found += [
        Case(f"staging_{play.__name__}", expected, partial(_staging, play=play))
        for play, expected in staging_cases.PLAYS.items()
    ]
    found.append(Case("serving_soak", "exit 0, pass, nothing left of 2,000 requests", _serving_soak))
    found.append(Case("bad_days", "all tests pass", _bad_days))
    found.append(Case("mutants", "every planted bug is caught, and nothing else", _mutants))
    found.append(Case("policy_conformance", "live nodes, played again, decide the same", _policy_conformance))
    found.append(Case("determinism", "100 seeds, identical rows in three processes each", _determinism))
    found += [
        Case(f"performance_{path.stem.removeprefix('test_')}", MEASURED, partial(_performance, suite=path))
        for path in sorted(PERFORMANCE.glob("test_*.py"))
        if path.stem != "test_headlines"
    ]
    return found


def _settings(settings: Sequence[str], experiment: str = EXPERIMENT) -> list[str]:
    return [experiment, *(word for setting in settings for word in ("--set", setting))]


def _to_its_end(
    out: Path,
    settings: Sequence[str],
    module: str = "chaos.run",
    experiment: str = EXPERIMENT,
    limit_s: float = RUN_S_MAX,
) -> tuple[int | None, Run, list[str]]:
    """Run undisturbed; its exit code, the run, and what is wrong with any complete run."""
    problems = []
    with Run(_settings(settings, experiment), out, module) as run:
        code = run.wait(limit_s)
        if code is None:
            problems.append(f"still running after {limit_s:g} s")
        alive, _ = run.left()
    problems += [f"left running: {line}" for line in alive]
    if any("Traceback" in line for line in run.errors):
        problems.append("a traceback on standard error")
    if run.results is None:
        problems.append("no results")
    else:
        problems += [f"no {name}" for name in contract.missing(run.results)]
    return code, run, problems


def _verdict(run: Run, problems: list[str]) -> Verdict | None:
    if run.results is None:
        return None
    try:
        return contract.verdict_of(run.results)
    except UnreadableError as error:
        problems.append(str(error))
        return None


def _outcome(code: int | None, run: Run, verdict: Verdict | None, problems: list[str], figures: str = "") -> Outcome:
    said = f"exit {code}" + (f", {verdict.verdict}" if verdict is not None else "")
    if problems:
        problems.append(f"the run said: {run.tail()}")
    results = run.results
    where = "" if results is None else str(results.relative_to(ROOT) if results.is_relative_to(ROOT) else results)
    return Outcome(got=said, problems=problems, figures=figures, where=where)


def _figures(verdict: Verdict) -> str:
    """What the issue asks about, from the criteria of the verdict."""
    parts = []
    for criterion in verdict.criteria:
        value = criterion.measured
        if value is None or criterion.verdict is VerdictOutcome.NOT_APPLICABLE:
            continue
        if criterion.name in ("success_during_fault", "told_in_time"):
            parts.append(f"{criterion.samples} in fault, {criterion.name.split('_')[0]} {value:.2%}")
        elif criterion.name in ("detection", "mitigation", "return_to_steady"):
            parts.append(f"{criterion.name} {value:.2f} s")
    verified = sum(fault.verified for fault in verdict.faults)
    parts.append(f"{verified} of {len(verdict.faults)} faults verified, {contract.violations(verdict)} violations")
    return ", ".join(parts)


def _passes(out: Path, settings: Sequence[str]) -> Outcome:
    code, run, problems = _to_its_end(out, settings)
    verdict = _verdict(run, problems)
    if code != 0:
        problems.append(f"exit code {code}")
    if verdict is not None:
        problems += _why_not_pass(verdict, by_success=CONTROLLER not in settings)
    return _outcome(code, run, verdict, problems, "" if verdict is None else _figures(verdict))


def _delivered_late(out: Path) -> Outcome:
    """With patient links a stall's bytes arrive after the heal, long past the deadline of what they ask for."""
    outcome = _passes(out, settings=("faults.cut.mode=stall", "policy.link.ping_s=30", "policy.link.broker_ping_s=30"))
    for events in out.rglob("events.parquet"):
        details = pq.read_table(events, filters=[("kind", "=", "attempt_discarded")])["detail"].to_pylist()
        late = sum("past its deadline" in detail for detail in details)
        outcome.figures += f", {late} late attempts refused"
        if not late:
            outcome.problems.append("no attempt arrived late, so none was refused")
        break
    else:
        outcome.problems.append("no events")
    return outcome


def _why_not_pass(verdict: Verdict, *, by_success: bool) -> list[str]:
    """Checked here too, and not only believed: the issue's own words about a run that passes."""
    problems = [] if verdict.verdict is VerdictOutcome.PASS else list(verdict.reasons[:3])
    if not verdict.faults or not all(fault.verified and fault.healed_s is not None for fault in verdict.faults):
        problems.append("a fault is not verified, or not healed")
    if violations := contract.violations(verdict):
        problems.append(f"{violations} violations")
    unsure = [each.name for each in verdict.criteria if each.verdict is VerdictOutcome.INCONCLUSIVE]
    problems += [f"{name} is inconclusive" for name in unsure]
    name = "success_during_fault" if by_success else "told_in_time"
    judged = next((each for each in verdict.criteria if each.name == name), None)
    if judged is None or judged.samples < SAMPLES_MIN:
        problems.append(f"{0 if judged is None else judged.samples} requests in the fault, {SAMPLES_MIN} are needed")
    elif judged.measured is None or judged.measured < SUCCESS_MIN:
        problems.append(f"{name} is {judged.measured}")
    return problems


def _one_worker(out: Path) -> Outcome:
    code, run, problems = _to_its_end(out, ("cluster.workers=1", "guard.last_worker=true"))
    verdict = _verdict(run, problems)
    if code not in (1, 3, 4):
        problems.append(f"exit code {code}")
    if verdict is None or verdict.verdict is VerdictOutcome.PASS:
        problems.append("no verdict that says no")
    elif not verdict.reasons or not verdict.reasons[0]:
        problems.append("no sentence says why")
    why = "" if verdict is None or not verdict.reasons else verdict.reasons[0]
    return _outcome(code, run, verdict, problems, why)


def _weak_policy(out: Path) -> Outcome:
    code, run, problems = _to_its_end(out, WEAK)
    verdict = _verdict(run, problems)
    if code != 1:
        problems.append(f"exit code {code}")
    suffered = [] if verdict is None else verdict.suffered
    report = "" if run.results is None else (run.results / "report.md").read_text()
    named = sum(request_id in report for request_id in suffered)
    if not named:
        problems.append("the report names nobody who suffered")
    figures = "" if verdict is None else f"{named} of {len(suffered)} named in report.md, {_figures(verdict)}"
    return _outcome(code, run, verdict, problems, figures)


def _sabotage(out: Path) -> Outcome:
    code, run, problems = _to_its_end(out, SHORT, "tests.sabotage")
    verdict = _verdict(run, problems)
    if code != 4:
        problems.append(f"exit code {code}")
    if verdict is not None and any(fault.verified for fault in verdict.faults):
        problems.append("a fault that was never injected is called verified")
    why = "" if verdict is None or not verdict.reasons else verdict.reasons[0]
    return _outcome(code, run, verdict, problems, why)


def _reach(run: Run, moment: str, problems: list[str]) -> None:
    line, delay_s = MOMENTS[moment]
    if not run.await_line(line, LINE_S_MAX):
        problems.append(f"it never said {line!r}")
    time.sleep(delay_s)


def _interrupted(out: Path, moment: str) -> Outcome:
    problems: list[str] = []
    with Run(_settings(SHORT), out) as run:
        _reach(run, moment, problems)
        run.interrupt()
        sent_s = time.monotonic()
        code = run.wait(END_S_MAX)
        ended_s = time.monotonic() - sent_s
        alive, gone_s = run.left()
    problems += [f"left running: {line}" for line in alive]
    verdict = _cut_short(run, code, 130, problems, may_be_complete=moment in MAY_BE_COMPLETE)
    if verdict is not None and any(fault.healed_s is None for fault in verdict.faults):
        problems.append("a fault is not healed")
    figures = f"ended {ended_s:.1f} s after the signal, last process gone {gone_s:.1f} s later"
    return _outcome(code, run, verdict, problems, figures)


def _cut_short(
    run: Run, code: int | None, expected: int, problems: list[str], *, may_be_complete: bool
) -> Verdict | None:
    """What a run that was ended before its time leaves: its exit code, nothing to undo, and results that say so."""
    if code != expected:
        problems.append(f"exit code {code}")
    if any("Traceback" in line for line in run.errors):
        problems.append("a traceback on standard error")
    problems += _undo_left(run)
    verdict = _verdict(run, problems)
    if run.results is not None:
        problems += [f"no {name}" for name in contract.missing(run.results)]
    if verdict is None or (verdict.complete and not may_be_complete):
        problems.append("the results are not marked incomplete")
    return verdict


def _stopped(out: Path, moment: str) -> Outcome:
    """Somebody makes the stop file while the run waits for something that takes long."""
    problems: list[str] = []
    file = out.resolve() / "stop"
    with Run(_settings((*SHORT, f"guard.stop_file={file}")), out) as run:
        _reach(run, moment, problems)
        file.touch()
        asked_s = time.monotonic()
        if not run.await_line(r"^STOPPED: .* exists$", END_S_MAX):
            problems.append("it never said that it was stopped")
        heeded_s = time.monotonic() - asked_s
        code = run.wait(END_S_MAX)
        ended_s = time.monotonic() - asked_s
        alive, gone_s = run.left()
    problems += [f"left running: {line}" for line in alive]
    if heeded_s > STOP_S_MAX:
        problems.append(f"heeded only after {heeded_s:.2f} s")
    verdict = _cut_short(run, code, 3, problems, may_be_complete=False)
    figures = f"heeded after {heeded_s:.2f} s, ended after {ended_s:.1f} s, last process gone {gone_s:.1f} s later"
    return _outcome(code, run, verdict, problems, figures)


def _undo_left(run: Run) -> list[str]:
    """The undo log goes when everything in it is undone."""
    if run.results is None:
        return []
    path = undo_directory() / f"{run.results.name}.jsonl"
    return ["its undo log still holds something"] if path.exists() else []


def _killed(out: Path, moment: str, settings: Sequence[str] = SHORT) -> Outcome:
    problems: list[str] = []
    with Run(_settings(settings), out) as run:
        _reach(run, moment, problems)
        run.kill()
        code = run.wait(END_S_MAX)
        alive, gone_s = run.left(LEFT_MAX_S)
    problems += [f"left running: {line}" for line in alive]
    problems += _undo_left(run) + _unreadable(run, expect_rows=not moment.startswith("start"))
    return _outcome(code, run, None, problems, f"last process gone after {gone_s:.1f} s")


def _unreadable(run: Run, *, expect_rows: bool) -> list[str]:
    """A killed run is marked incomplete, and its rows can be read up to the kill."""
    if run.results is None:
        return ["no results"]
    try:
        if contract.info_of(run.results).complete:
            return ["a killed run is called complete"]
        with tempfile.TemporaryDirectory() as scratch:
            rows = contract.readable_rows(run.results, Path(scratch))
    except UnreadableError as error:
        return [str(error)]
    if rows.foreign:
        return [f"unreadable: {', '.join(rows.foreign)}"]
    if expect_rows and not (rows.rows["events"] and rows.rows["nodes"]):
        return ["no rows of before the kill"]
    return []


def _killed_beside_a_toxiproxy(out: Path) -> Outcome:
    """Only the runner dies; a Toxiproxy that is not the run's keeps no fault of it, and everybody else's proxies."""
    with real_server() as api:
        api.create_proxy("somebody-elses", "127.0.0.1:0", "127.0.0.1:9")
        problems: list[str] = []
        with Run(_settings((*SHORT, f"cluster.toxiproxy_url={api.url}")), out) as run:
            _reach(run, "fault", problems)
            toxics = sum(len(proxy.toxics) for proxy in api.proxies().values())
            if not toxics:
                problems.append("no toxic was in force at the kill")
            run.kill()
            killed_s = time.monotonic()
            while set(api.proxies()) != {"somebody-elses"} and time.monotonic() - killed_s < TTL_S:
                time.sleep(0.05)
            healed_s = time.monotonic() - killed_s
            left = set(api.proxies())
            code = run.wait(END_S_MAX)
            alive, gone_s = run.left(LEFT_MAX_S)
    if left != {"somebody-elses"}:
        problems.append(f"proxies at the end: {', '.join(sorted(left)) or 'none'}")
    problems += [f"left running: {line}" for line in alive]
    problems += _undo_left(run) + _unreadable(run, expect_rows=True)
    figures = f"{toxics} toxics, and the run's proxies, gone {healed_s:.2f} s after the kill, processes {gone_s:.1f} s"
    return _outcome(code, run, None, problems, figures)


def _killed_fifty(out: Path) -> Outcome:
    kills = kill_cases.kill_fifty(out)
    in_time = sum(kill.gone_s is not None for kill in kills)
    got = f"{in_time} of {len(kills)}"
    return Outcome(got=got, problems=kill_cases.problems(kills), figures=kill_cases.told(kills))


def _serving(out: Path, experiment: Path) -> tuple[int | None, Run, Verdict | None, list[str]]:
    module, limit_s = serving_cases.MODULE, serving_cases.RUN_S_MAX
    code, run, problems = _to_its_end(out, (), module, str(experiment), limit_s)
    if code != 0:
        problems.append(f"exit code {code}")
    return code, run, _verdict(run, problems), problems


def _serving_processes(out: Path) -> Outcome:
    code, run, verdict, problems = _serving(out, serving_cases.PROCESSES)
    if verdict is not None:
        problems += serving_cases.hurt_processes(verdict)
    return _outcome(code, run, verdict, problems, "" if verdict is None else _figures(verdict))


def _broker_faults(out: Path) -> Outcome:
    code, run, problems = _to_its_end(out, (), experiment=str(serving_cases.BROKERS))
    verdict = _verdict(run, problems)
    if code != 0:
        problems.append(f"exit code {code}")
    if verdict is not None:
        problems += serving_cases.hurt_processes(verdict, serving_cases.BROKERS)
    return _outcome(code, run, verdict, problems, "" if verdict is None else _figures(verdict))


def _link_faults(out: Path) -> Outcome:
    code, run, verdict, problems = _serving(out, serving_cases.LINKS)
    if verdict is not None:
        problems += serving_cases.hurt_processes(verdict, serving_cases.LINKS)
    return _outcome(code, run, verdict, problems, "" if verdict is None else _figures(verdict))


def _message_faults(out: Path) -> Outcome:
    code, run, verdict, problems = _serving(out, serving_cases.MESSAGES)
    if verdict is not None:
        problems += serving_cases.hurt_processes(verdict, serving_cases.MESSAGES)
    return _outcome(code, run, verdict, problems, "" if verdict is None else _figures(verdict))


def _engine_fault(out: Path, way: str) -> Outcome:
    settings, experiment = engine_fault_cases.WAYS[way], str(engine_fault_cases.EXPERIMENT)
    code, run, problems = _to_its_end(out, settings, experiment=experiment)
    verdict = _verdict(run, problems)
    if verdict is not None:
        problems += engine_fault_cases.problems(way, code, verdict)
    return _outcome(code, run, verdict, problems, "" if verdict is None else _figures(verdict))


def _sabotage_engine_faults(out: Path) -> Outcome:
    """All ways at once, because nothing is done to anybody: no fault may be called verified."""
    settings = engine_fault_cases.all_at_once()
    code, run, problems = _to_its_end(out, settings, "tests.sabotage", str(engine_fault_cases.EXPERIMENT))
    verdict = _verdict(run, problems)
    faults = [] if verdict is None else verdict.faults
    if code != 4:
        problems.append(f"exit code {code}")
    if len(faults) <= len(engine_fault_cases.WAYS) or any(fault.verified for fault in faults):
        problems.append(f"of {len(faults)} shams {sum(fault.verified for fault in faults)} are called verified")
    return _outcome(code, run, verdict, problems)


def _staging(out: Path, play: staging_cases.Play) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        return Outcome(*play(Path(folder), out))


def _sweep_resumed(out: Path) -> Outcome:
    problems, figures = sweep_cases.stopped_and_started_again(out)
    return Outcome(got="done" if not problems else "problems", problems=problems, figures=figures, where=str(out))


def _sweep_killed(out: Path) -> Outcome:
    """A sweep killed -9 in the midst of a run, and started again while that run still heals."""
    problems, figures = sweep_cases.killed_and_started_again(out)
    return Outcome(got="done" if not problems else "problems", problems=problems, figures=figures, where=str(out))


def _host_failure(out: Path) -> Outcome:
    code, run, problems = _to_its_end(out, (), experiment=host_cases.EXPERIMENT)
    verdict = _verdict(run, problems)
    if verdict is not None:
        problems += host_cases.problems(code, verdict)
    return _outcome(code, run, verdict, problems, "" if verdict is None else _figures(verdict))


def _sabotage_host(out: Path, settings: Sequence[str]) -> Outcome:
    code, run, problems = _to_its_end(out, (*host_cases.SHORT, *settings), "tests.sabotage", host_cases.EXPERIMENT)
    verdict = _verdict(run, problems)
    if code != 4:
        problems.append(f"exit code {code}")
    if verdict is None or [fault.verified for fault in verdict.faults] != [False]:
        problems.append("a host that nobody has touched is called hurt")
    why = "" if verdict is None or not verdict.reasons else verdict.reasons[0]
    return _outcome(code, run, verdict, problems, why)


def _killed_with_hosts(out: Path, moment: str) -> Outcome:
    """The runner dies, and with it every Ray node that it has started and whatever runs there."""
    problems: list[str] = []
    line, delay_s = host_cases.KILLED_AT[moment]
    with Run(_settings(host_cases.SHORT, host_cases.EXPERIMENT), out) as run:
        if not run.await_line(line, LINE_S_MAX):
            problems.append(f"it never said {line!r}")
        time.sleep(delay_s)
        before = run.left(0.0)[0]
        ray_nodes = host_cases.ray_nodes(before)
        run.kill()
        code = run.wait(END_S_MAX)
        alive, gone_s = run.left(LEFT_MAX_S)
    if moment == host_cases.WHOLE_AT and ray_nodes != 2:
        problems.append(f"{ray_nodes} Ray nodes ran before the kill, expected the head's and the host's")
    problems += [f"left running: {process}" for process in alive]
    problems += _undo_left(run) + _unreadable(run, expect_rows=moment != "start")
    figures = f"{len(before)} processes before, {ray_nodes} of them Ray nodes, last one gone after {gone_s:.1f} s"
    return _outcome(code, run, None, problems, figures)


def _on_three_hosts(out: Path, test: str) -> Outcome:
    file, _, name = test.partition("::")
    outcome = _tests(out, str(ROOT / "tests" / "hosts" / file), "-k", name)
    return msgspec.structs.replace(outcome, got="skipped") if "skipped" in outcome.figures else outcome


def _sabotage_each(out: Path, experiment: Path) -> Outcome:
    """Whatever a fault is aimed at, nothing is done to it: no fault may be called verified."""
    settings = [f"phases.{phase}.duration_s=12" for phase in SABOTAGED[experiment]]
    code, run, problems = _to_its_end(out, settings, "tests.sabotage", str(experiment))
    verdict = _verdict(run, problems)
    if code != 4:
        problems.append(f"exit code {code}")
    faults = [] if verdict is None else verdict.faults
    if len(faults) != serving_cases.FAULTS[experiment] or any(fault.verified for fault in faults):
        problems.append(f"{sum(fault.verified for fault in faults)} of {len(faults)} faults are called verified")
    return _outcome(code, run, verdict, problems, f"0 of {len(faults)} faults verified" if not problems else "")


def _schedule_killed(out: Path) -> Outcome:
    """A scheduler of real runs, killed -9 half-way and started again."""
    problems, figures = schedule_cases.play(out)
    return Outcome(got="no account that is right" if problems else "all of it", problems=problems, figures=figures)


def _serving_soak(out: Path) -> Outcome:
    code, run, verdict, problems = _serving(out, serving_cases.SOAK)
    figures = ""
    if run.results is not None and (run.results / serving_cases.CENSUS).exists():
        left, figures = serving_cases.left_behind(run.results)
        problems += left
    else:
        problems.append("nobody counted what is left")
    return _outcome(code, run, verdict, problems, figures)


def _bad_days(out: Path) -> Outcome:
    """The tests that are too long for `make test`. Some ask a real model, which is fetched if it is not there."""
    pull = [sys.executable, "-m", "cluster.models", "pull", "smollm2-135m"]
    pulled = subprocess.run(pull, cwd=ROOT, capture_output=True, text=True, check=False)
    problems = []
    if pulled.returncode != 0:
        said = pulled.stderr.strip().splitlines()[-1:] or [f"exit {pulled.returncode}"]
        problems.append(f"smollm2-135m cannot be pulled, and the tests that ask it fail: {said[0]}")
    outcome = _tests(out, "tests", f"--ignore={PERFORMANCE}")
    outcome.problems[:0] = problems
    return outcome


def _mutants(out: Path) -> Outcome:
    """Every planted bug is caught by a checker or a criterion, in simulated runs that the unmutated code passes."""
    command = [sys.executable, "-m", "tests.mutants"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    (out / "mutants.txt").write_text(done.stdout + done.stderr)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    problems = [] if done.returncode == 0 else [f"exit code {done.returncode}: {(done.stdout + done.stderr)[-2_000:]}"]
    return Outcome(got=f"exit {done.returncode}", problems=problems, figures=last, where=str(out / "mutants.txt"))


def _policy_conformance(out: Path) -> Outcome:
    """Whatever the short run's verdict is: what is asked here is whether its nodes decided by their events alone."""
    code, run, problems = _to_its_end(out, SHORT)
    verdict, figures = _verdict(run, problems), ""
    if run.results is not None:
        different, figures = conformance_cases.replayed(run.results)
        problems += different
    return _outcome(code, run, verdict, problems, figures)


def _determinism(out: Path) -> Outcome:
    command = [sys.executable, "-m", "tests.determinism", "--jobs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    (out / "determinism.txt").write_text(done.stdout + done.stderr)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    problems = [] if done.returncode == 0 else [f"exit code {done.returncode}: {(done.stdout + done.stderr)[-2_000:]}"]
    return Outcome(got=f"exit {done.returncode}", problems=problems, figures=last, where=str(out / "determinism.txt"))


def _performance(out: Path, suite: Path) -> Outcome:
    """One of the PRD's suites; its runs are in results/performance. What it missed on this machine is no problem of it:
    see tests.performance.suite."""
    outcome = _tests(out, str(suite))
    said = (out / "pytest.txt").read_text() if (out / "pytest.txt").exists() else ""
    promises = [line.removeprefix("promise ") for line in said.splitlines() if line.startswith("promise ")]
    missed = sum("MISSED" in line or "NOT SHOWN" in line for line in promises)
    outcome.got += f", {len(promises)} figures, {missed} measured misses"
    outcome.figures = "; ".join([outcome.figures, *promises])
    if not promises and not outcome.problems:
        outcome.problems.append("it measured nothing")
    return outcome


def _tests(out: Path, *arguments: str) -> Outcome:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "verify", f"--basetemp={out / 'pytest'}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    last = done.stdout.strip().splitlines()[-1:] or [""]
    with contextlib.suppress(OSError):
        (out / "pytest.txt").write_text(done.stdout + done.stderr)
    problems = [] if done.returncode == 0 else [done.stdout[-2_000:]]
    return Outcome(got=f"exit {done.returncode}", problems=problems, figures=last[0].strip("= "))
