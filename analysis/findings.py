"""`python -m analysis.findings [DIR]`: what fails, over all runs in a folder: since when, how often, what first.

A finding is an invariant, a criterion or a self-check of one experiment in one world on one model (of one entry, where
a schedule has started the runs). It is the same finding in every run, whatever its numbers.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

import msgspec

from analysis.history import UnreadableError, read_experiment
from analysis.judge import read_verdict
from analysis.rendering import markdown_template
from analysis.runs import Listed, Shelf
from analysis.text import clean
from analysis.verdict import Outcome, Verdict

EXIT_OPEN = 1
EXIT_USAGE = 2
CHANCE_MAX = 0.05
"""A finding is resolved when so many passes in a row would have been less likely than this, had nothing changed."""
WINDOW = 20
"""Runs that count for what is recent."""
FLIPS_MIN = 3
"""Changes between pass and fail within the window, at one version, that make a finding flaky."""
VALID_RUN = "the run proves something"
_TEXT_MAX = 300
_SELF_CHECK = "(self-check)"
_LEFT_BROKEN = "clean slate (self-check)"


class State(StrEnum):
    """How a finding stands.

    new: it failed for the first time. ongoing: it goes on. regressed: it had been resolved. flaky: it comes and goes
    although nothing changed. resolved: it failed once, and has passed often enough since.
    """

    REGRESSED = "regressed"
    NEW = "new"
    ONGOING = "ongoing"
    FLAKY = "flaky"
    RESOLVED = "resolved"


class Severity(msgspec.Struct, frozen=True):
    """How bad, 0 is worst. meaning: in words, for a sentence."""

    rank: int
    meaning: str


LEFT_BROKEN = Severity(0, "a fault outlived its run")
WRONG = Severity(1, "answers were wrong")
LOST = Severity(2, "requests were lost, late or done twice")
NOT_WHOLE = Severity(3, "the cluster did not become whole again, or blamed who was well")
UNBOUNDED = Severity(4, "a bound was broken, or an error nobody can explain")
PROMISE = Severity(5, "what the experiment expects was not kept")
MEASUREMENT = Severity(6, "runs do not prove what they claim")
_OF_INVARIANT = {
    **dict.fromkeys((2, 3), WRONG),
    **dict.fromkeys((1, 4, 5), LOST),
    **dict.fromkeys((6, 7), NOT_WHOLE),
    **dict.fromkeys((8, 9), UNBOUNDED),
}


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What one run says about one thing. version: the same when nothing differs that could have changed the outcome."""

    run: str
    path: str
    began: datetime | None
    version: str
    failed: bool
    text: str


class Story(msgspec.Struct, frozen=True):
    """What the observations of one thing amount to. resolved: index of the one that resolved it last, None: none."""

    state: State
    first: int
    last: int
    resolved: int | None
    passes: int
    passes_needed: int


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that has failed. subject: the entry, or the experiment with its world and model. id: never changes.

    failed, judged: runs in all. recent: share of the last WINDOW that failed. first, last, resolved: run ids; path: of
    the last run that failed, below the folder. text: what that run said. why: why it stands where it stands.
    """

    id: str
    subject: str
    name: str
    severity: Severity
    state: State
    failed: int
    judged: int
    recent: float
    first: str
    last: str
    resolved: str
    since: datetime | None
    path: str
    text: str
    why: str

    @property
    def open(self) -> bool:
        """Whether there is something to fix."""
        return self.state is not State.RESOLVED


def tell(outcomes: Sequence[bool], versions: Sequence[str]) -> Story | None:
    """From what each run gave (True: failed), oldest first, with its version; None when none failed.

    After an episode in which f of n runs failed, k passes in a row have the chance (1 - p)^k had nothing changed, with
    p = (f + 1) / (n + 2), Laplace's rule of succession. At CHANCE_MAX or below the finding counts as resolved.
    """
    first: int | None = None
    last = resolved = None
    began = 0
    fails = passes = 0
    is_open = False
    for place, failed in enumerate(outcomes):
        if failed:
            if not is_open:
                is_open, began, fails = True, place, 0
            first = place if first is None else first
            last, fails, passes = place, fails + 1, 0
        elif is_open:
            assert last is not None
            passes += 1
            if passes >= _passes_needed(fails, last - began + 1):
                is_open, resolved = False, place
    if first is None or last is None:
        return None
    if _flips(outcomes, versions) >= FLIPS_MIN:
        state = State.FLAKY
    elif not is_open:
        state = State.RESOLVED
    elif resolved is not None:
        state = State.REGRESSED
    else:
        state = State.NEW if fails == 1 and passes == 0 else State.ONGOING
    return Story(state, first, last, resolved, passes if is_open else 0, _passes_needed(fails, last - began + 1))


def findings(root: Path, strict: bool = False) -> list[Finding]:
    """Of all runs below a folder, what to fix first on top. strict: raises UnreadableError for a damaged verdict."""
    seen: dict[tuple[str, str], tuple[Severity, list[Observation]]] = {}
    shelf = Shelf(root.resolve())
    for run in reversed(shelf.runs()):
        if not run.verdict and not (strict and (shelf.folder(run) / "verdict.json").exists()):
            continue
        for subject, name, severity, observation in _observed(shelf.folder(run), run):
            seen.setdefault((subject, name), (severity, []))[1].append(observation)
    found = [
        finding
        for (subject, name), (severity, observations) in seen.items()
        if (finding := _finding(subject, name, severity, observations, seen[subject, VALID_RUN][1])) is not None
    ]
    return sorted(found, key=_urgency)


def referred(root: Path) -> set[str]:
    """Ids of the runs that findings refer to: they are the evidence. Raises UnreadableError."""
    return {run for each in findings(root, strict=True) for run in (each.first, each.last, each.resolved) if run}


def _observed(folder: Path, run: Listed) -> Iterator[tuple[str, str, Severity, Observation]]:
    verdict = read_verdict(folder)
    subject = run.entry or f"{run.info.experiment} ({run.info.world}, {run.model or 'no model'})"
    version = _version(folder)

    def said(failed: bool, text: str) -> Observation:
        return Observation(
            run=run.info.run_id, path=run.path, began=run.began, version=version, failed=failed, text=text[:_TEXT_MAX]
        )

    invalid = verdict.verdict is Outcome.INVALID
    yield subject, VALID_RUN, MEASUREMENT, said(invalid, run.reason if invalid else "")
    for name, severity, outcome, text in _parts(verdict):
        if outcome is Outcome.INVALID or (outcome is Outcome.FAIL and not (invalid and severity is PROMISE)):
            yield subject, name, severity, said(True, text)
        elif outcome is Outcome.PASS and not invalid:
            yield subject, name, severity, said(False, text)


def _parts(verdict: Verdict) -> Iterator[tuple[str, Severity, Outcome, str]]:
    for invariant in verdict.invariants:
        severity = _OF_INVARIANT.get(invariant.number, MEASUREMENT)
        name = f"invariant {invariant.number}: {invariant.name}"
        yield name, severity, invariant.verdict, invariant.explanation
    for criterion in verdict.criteria:
        if criterion.name == _LEFT_BROKEN:
            severity = LEFT_BROKEN
        else:
            severity = MEASUREMENT if _SELF_CHECK in criterion.name else PROMISE
        yield criterion.name, severity, criterion.verdict, criterion.explanation


def _finding(
    subject: str, name: str, severity: Severity, seen: Sequence[Observation], runs: Sequence[Observation]
) -> Finding | None:
    """runs: one observation of every run of the subject."""
    story = tell([each.failed for each in seen], [each.version for each in seen])
    if story is None:
        return None
    failed, recent = sum(each.failed for each in seen), [each.failed for each in seen[-WINDOW:]]
    first, last = seen[story.first], seen[story.last]
    silent = len(runs) - 1 - max(place for place, each in enumerate(runs) if each.run == seen[-1].run)
    return Finding(
        id=hashlib.sha256(f"{subject}\n{name}".encode()).hexdigest()[:12],
        subject=clean(subject),
        name=clean(name),
        severity=severity,
        state=story.state,
        failed=failed,
        judged=len(seen),
        recent=sum(recent) / len(recent),
        first=first.run,
        last=last.run,
        resolved=seen[story.resolved].run if story.resolved is not None else "",
        since=first.began,
        path=last.path,
        text=clean(last.text),
        why=_why(severity, story, failed, silent, seen),
    )


def _why(severity: Severity, story: Story, failed: int, silent: int, seen: Sequence[Observation]) -> str:
    often = f"failed in {failed} of {len(seen)} runs"
    unjudged = f"; the last {silent} runs could not judge it" if silent else ""
    began, newest = seen[story.first].began, seen[-1].began
    days = (newest - began).days if began is not None and newest is not None else 0
    long = f", over {days} days" if days else ""
    match story.state:
        case State.REGRESSED:
            state = "it had been resolved and is back"
        case State.NEW:
            state = "the last run is the first in which it failed"
        case State.FLAKY:
            state = "it comes and goes while nothing of the version changes: look for a race, or for too tight a limit"
        case State.RESOLVED:
            state = "it has passed often enough since"
        case State.ONGOING if story.passes:
            more = story.passes_needed - story.passes
            state = f"it has passed the last {story.passes}, and {more} more would show that this is no luck"
        case _:
            state = "it still fails"
    return f"{severity.meaning}; {often}{long}; {state}{unjudged}"


def _urgency(finding: Finding) -> tuple[object, ...]:
    """What is resolved comes last; else by what it means, then what is new or back, how often, and how long."""
    place = (State.REGRESSED, State.NEW, State.ONGOING, State.FLAKY, State.RESOLVED).index(finding.state)
    urgency = (not finding.open, finding.severity.rank, place, -finding.recent)
    return (*urgency, finding.first, finding.subject, finding.name)


def _passes_needed(fails: int, of: int) -> int:
    share, count, chance = (fails + 1) / (of + 2), 0, 1.0
    while chance > CHANCE_MAX:
        chance *= 1 - share
        count += 1
    return count


def _flips(outcomes: Sequence[bool], versions: Sequence[str]) -> int:
    """Changes of the outcome among the last runs, as far back as the version is the last one's."""
    same = 0
    while same < min(WINDOW, len(versions)) and versions[-1 - same] == versions[-1]:
        same += 1
    return sum(before != after for before, after in pairwise(outcomes[-same:]))


def _version(folder: Path) -> str:
    """Of code, packages and settings; two runs whose seeds alone differ are of one version."""
    try:
        environment = msgspec.json.decode((folder / "environment.json").read_bytes(), type=dict[str, object])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        environment = {}
    facts = [environment.get(name) for name in ("code", "versions", "model", "engine", "python", "machine")]
    try:
        facts.append(read_experiment(folder))
    except UnreadableError:
        facts.append(None)
    told = msgspec.json.encode(facts, enc_hook=str, order="deterministic")
    return hashlib.sha256(told).hexdigest()[:16]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit code 0 when nothing is open, 1 when something is, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m analysis.findings", description="What fails over many runs.")
    parser.add_argument("results", nargs="?", type=Path, default=Path("results"), help="default %(default)s")
    parser.add_argument("--json", action="store_true", help="all of it as JSON")
    parser.add_argument("--open", action="store_true", help="leave out what is resolved")
    options = parser.parse_args(arguments)
    if not options.results.is_dir():
        return _complain(f"{options.results}: no such folder; name the one that holds your runs")
    found = findings(options.results)
    shown = [each for each in found if each.open or not options.open]
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(shown), indent=1).decode())
    else:
        print(markdown_template("findings.md.j2").render(findings=shown), end="")
    return EXIT_OPEN if any(each.open for each in found) else 0


def _complain(text: str) -> int:
    print(f"analysis.findings: {text}", file=sys.stderr)
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
