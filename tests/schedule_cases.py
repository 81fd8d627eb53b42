"""A schedule of two experiments every minute, real runs in the simulated world, the scheduler killed -9 half-way."""

from pathlib import Path

from chaos.experiment import catalogue
from chaos.scheduling.records import Ended, Started
from tests.chaos.scheduling.killed import MINUTES, Ten, webhook
from tests.chaos.scheduling.plans import changes

FACTOR = 3.0
"""A run takes some seconds, and two of them have to fit into a minute."""
END_S_MAX = 600.0
_SCHEDULE = """
name: ten
results: {results}
notify: {{webhook_env: TEST_WEBHOOK}}
entries:
  partition: {{experiment: {one}, cron: "* * * * *", world: simulated, quarantine: false, set: {short}}}
  slow: {{experiment: {two}, cron: "* * * * *", world: simulated, quarantine: false, set: {short}}}
"""
_SHORT = (
    '{"phases.warm_up.duration_s": 3, "phases.baseline.duration_s": 10, "phases.fault.duration_s": 12,'
    ' "phases.recovery.duration_s": 11, "faults.cut.duration_s": 10, "workload.rate": 20/s,'
    ' "expectations.success_during_fault.samples_min": 60, "expectations.success_during_fault.at_least": 0.9}'
)
_STRICT = "\n  never_so_fast: {metric: latency_p50_s, phase: baseline, at_most: 0.0001}\n"


def play(out: Path) -> tuple[list[str], str]:
    """What is wrong, and figures. Half-way one experiment is given a limit that it cannot keep: a change to be told."""
    text = catalogue()["network_partition"].read_text()
    one, two = out / "partition.yaml", out / "partition_strict.yaml"
    one.write_text(text)
    two.write_text(text.replace("name: network_partition", "name: partition_strict"))
    results = out / "results"
    (out / "schedule.yaml").write_text(_SCHEDULE.format(results=results, one=one, two=two, short=_SHORT))
    problems: list[str] = []
    with webhook() as hook:
        ten = Ten(out, FACTOR, "chaos.run", hook.url)
        try:
            ten.start()
            ten.until(lambda: ten.minute() > MINUTES / 2, END_S_MAX)
            begun = starts(ten)
            # One that has just begun: at its end a run writes its report before it heeds a signal, and then it has run.
            if not ten.until(lambda: starts(ten) > begun, END_S_MAX):
                problems.append("no run half-way")
            two.write_text(two.read_text().replace("\nexpectations:", f"\nexpectations:{_STRICT.rstrip()}"))
            ten.kill()
            if not running(ten):
                problems.append("the kill hit no run, so it proved nothing")
            ten.start()
            if not ten.until(lambda: ten.minute() > MINUTES + 1 and not running(ten), END_S_MAX):
                problems.append("it never came to its end")
            ten.until(lambda: len(hook.posted) >= len(changes(ten.records())), 30)
            code = ten.stop()
            if code != 0:
                problems.append(f"exit code {code}")
            problems += ten.problems(hook.posted)
            ends = [each for each in ten.records() if isinstance(each, Ended)]
            if not any(each.outcome == "interrupted" for each in ends):
                problems.append("the run that was killed is not called interrupted")
            if not any(each.verdict == "fail" for each in ends):
                problems.append("no verdict changed")
            told = [f"{body['entry']} {body['before'] or 'none'} to {body['verdict']}" for body in hook.posted]
            figures = f"{ten.figures()}; told: {', '.join(told) or 'nothing'}"
        finally:
            left = ten.family.alive()
            ten.family.end()
    problems += [f"left running: {line}" for line in left]
    return problems + ([f"it said: {''.join(ten.lines)[-2_000:]}"] if problems else []), figures


def starts(ten: Ten) -> int:
    """How many slots were started, by the journal."""
    return sum(isinstance(each, Started) for each in ten.records())


def running(ten: Ten) -> bool:
    """Whether a run that was started has not ended, by the journal."""
    records = ten.records()
    begun = {(each.entry, each.slot_s) for each in records if isinstance(each, Started)}
    return bool(begun - {(each.entry, each.slot_s) for each in records if isinstance(each, Ended)})
