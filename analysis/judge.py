"""From a history to a verdict: were the expectations met, were the invariants kept, and did the run prove it?"""

import json
import math
from pathlib import Path
from typing import Any

import msgspec

from analysis import closed_load, outside
from analysis.checkers import run_checkers
from analysis.criterion import Criterion
from analysis.episodes import episodes
from analysis.facts import CannotJudge, counts, fault_windows, hit_every_worker, offered, worker_count
from analysis.history import History, UnreadableError
from analysis.metrics import METRICS, Measurement, UnknownMetricError, measure
from analysis.recovery import fault_times
from analysis.self_checks import self_checks
from analysis.verdict import CriterionResult, FaultResult, InvariantResult, Outcome, Verdict, merge
from analysis.whole_file import write_whole

SUFFERED_MAX = 50
# Breaches of these corrupt answers; they weigh more than any expectation that was missed.
_SAFETY = (2, 3, 4, 5)


def judge(history: History) -> Verdict:
    """The verdict of a run. Raises UnreadableError when the experiment's criteria are malformed.

    invalid: a fault did not take effect, the baseline was not steady, or our own machine spoilt the measurement. fail:
    an expectation refuted, an invariant broken, or a fault not healed. A run that was cut is never better than
    inconclusive.
    """
    expectations = _expectations(history)
    criteria = [*_steady_state(history), *expectations, *self_checks(history)]
    invariants = run_checkers(history)
    faults = [*_guard_outcomes(history), *_fault_outcomes(history), *_nothing_expected(expectations)]
    outcomes = [each.verdict for each in criteria] + [each.verdict for each in invariants]
    verdict = merge([*outcomes, *(outcome for outcome, _ in faults)])
    if verdict is Outcome.PASS and not history.info.complete:
        verdict = Outcome.INCONCLUSIVE
    lines = offered(history)
    hurt = ["failed", "refused", "in_flight"] if history.info.complete else ["failed", "refused"]
    return Verdict(
        verdict=verdict,
        experiment=history.info.experiment,
        world=history.info.world,
        seed=history.info.seed,
        complete=history.info.complete,
        reasons=_reasons(history, verdict, criteria, invariants, faults),
        counts=counts(history),
        criteria=criteria,
        invariants=invariants,
        faults=_fault_results(history),
        suffered=lines.loc[lines["outcome"].isin(hurt), "request_id"].head(SUFFERED_MAX).tolist(),
        engine=history.info.engine,
        episodes=episodes(history),
    )


def write_verdict(directory: Path, verdict: Verdict) -> None:
    """Write `verdict.json`, whole or not at all. Raises OSError."""
    write_whole(directory / "verdict.json", msgspec.json.format(msgspec.json.encode(verdict)) + b"\n")


def read_verdict(directory: Path) -> Verdict:
    """`verdict.json` of a results directory. Raises UnreadableError."""
    path = directory / "verdict.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Verdict)
    except FileNotFoundError:
        raise UnreadableError(f"{path}: missing") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableError(f"{path}: not a verdict: {error}") from None


def read_criteria(history: History, section: str) -> dict[str, Criterion]:
    """The criteria of `steady_state` or `expectations`, by name. Raises UnreadableError."""
    try:
        return msgspec.convert(history.experiment.get(section) or {}, dict[str, Criterion])
    except msgspec.ValidationError as error:
        raise UnreadableError(f"experiment.yaml: {section}: {error}") from None


def _steady_state(history: History) -> list[CriterionResult]:
    """The hypothesis in the baseline, where missing it makes the run invalid, and again in the recovery."""
    planned = history.experiment.get("phases")
    results = []
    for part in ("baseline", "recovery"):
        phase = str(history.experiment.get(f"{part}_phase", part))
        if not isinstance(planned, dict) or phase not in planned:
            continue
        for name, criterion in read_criteria(history, "steady_state").items():
            result = evaluate(history, f"{name} ({phase})", msgspec.structs.replace(criterion, phase=phase))
            if part == "baseline" and result.verdict is Outcome.FAIL:
                text = f"the cluster was not in its steady state before the fault: {result.explanation}"
                result = msgspec.structs.replace(result, verdict=Outcome.INVALID, explanation=text)
            results.append(result)
    return results


def _expectations(history: History) -> list[CriterionResult]:
    return [evaluate(history, name, criterion) for name, criterion in read_criteria(history, "expectations").items()]


def _nothing_expected(expectations: list[CriterionResult]) -> list[tuple[Outcome, str]]:
    """A run of which nothing was expected shows nothing, however well it went."""
    if any(each.verdict is not Outcome.NOT_APPLICABLE for each in expectations):
        return []
    text = "none of the expectations applies to this run" if expectations else "the experiment has no expectations"
    return [(Outcome.INCONCLUSIVE, f"{text}, so it shows nothing")]


def evaluate(history: History, name: str, criterion: Criterion) -> CriterionResult:
    """Judge one criterion.

    pass: the one-sided bound at the criterion's confidence keeps the limit, and there are `samples_min` samples. fail:
    the estimate itself breaks the limit (of a ratio or a slope its bound, for noise makes some of its own), or what was
    to be seen once never happened. inconclusive: everything else, such as a percentile whose sample is too small for a
    bound, and an estimate over a phase that was cut.
    """
    unit = _unit(criterion)

    def result(verdict: Outcome, text: str, seen: Measurement | None = None) -> CriterionResult:
        return CriterionResult(
            name=name,
            verdict=verdict,
            measured=seen.value if seen else None,
            limit=_limit(criterion),
            unit=unit,
            samples=seen.samples if seen else 0,
            interval=seen.interval if seen else None,
            explanation=text,
        )

    role = _target_role(history)
    if criterion.when_target is not None and criterion.when_target != role:
        return result(Outcome.NOT_APPLICABLE, f"it is about a fault of a {criterion.when_target}")
    if history.info.outside and criterion.metric in METRICS and criterion.metric not in outside.SEEN:
        return result(Outcome.NOT_APPLICABLE, f"{criterion.metric} cannot be seen from outside of the cluster")
    try:
        counted = met_by_a_fault(history) if criterion.while_faulted else history
        seen = measure(
            counted, criterion.metric, criterion.phase, criterion.confidence, arm=criterion.arm, versus=criterion.versus
        )
    except UnknownMetricError as error:
        return result(Outcome.INVALID, str(error))
    except CannotJudge as reason:
        return result(Outcome.INCONCLUSIVE, str(reason))
    return result(*_weigh(history, criterion, seen), seen)


def _unit(criterion: Criterion) -> str:
    """Of the measured value: a ratio has none."""
    metric = METRICS.get(criterion.metric)
    return metric.unit if metric is not None and criterion.versus is None else ""


def met_by_a_fault(history: History) -> History:
    """The history of only those requests whose life overlaps a fault. One without a row lives on from intended_s.

    Raises CannotJudge where no fault was injected.
    """
    windows = fault_windows(history)
    if not windows:
        raise CannotJudge("no fault was injected, so none met a request")
    lines = offered(history)
    ends = lines["ended_s"].fillna(math.inf)
    met = [
        any(window.overlaps(start_s, end_s) for window in windows)
        for start_s, end_s in zip(lines["intended_s"], ends, strict=True)
    ]
    names = lines.loc[met, "request_id"]
    return msgspec.structs.replace(
        history,
        requests=history.requests[history.requests["request_id"].isin(names)],
        schedule=history.schedule[history.schedule["request_id"].isin(names)],
    )


def _weigh(history: History, criterion: Criterion, seen: Measurement) -> tuple[Outcome, str]:
    where = " of requests met by a fault" if criterion.while_faulted else ""
    where += f" in phase {criterion.phase}" if criterion.phase else ""
    kind = closed_load.kind(history, criterion.phase)
    where += f" ({kind})" if kind else ""
    complete = history.info.complete
    unit = _unit(criterion)
    name = criterion.metric.replace("_per_s", "/s").removesuffix("_s").replace("_", " ")
    name += f" of {criterion.arm}" if criterion.arm else ""
    name += f" / that of {criterion.versus}" if criterion.versus else ""
    if seen.value is None:
        if seen.estimator != "observed" or seen.samples == 0:
            return (
                Outcome.INCONCLUSIVE,
                f"{name}{where}: {seen.samples} samples are too few to say anything",
            )
        text = f"{name}: it never happened before the run ended"
        return (Outcome.FAIL if complete else Outcome.INCONCLUSIVE), text
    text = f"{name}{where} is {_shown(seen.value, unit)} (limit {_limit_shown(criterion, unit)}, n = {seen.samples})"
    text += f"; {seen.note}" if seen.note else ""
    least = -math.inf if criterion.at_least is None else criterion.at_least
    most = math.inf if criterion.at_most is None else criterion.at_most
    if not least <= seen.value <= most and not _may_keep(seen, least, most):
        settled = complete or seen.estimator == "observed" or _phase_over(history, criterion.phase)
        return (Outcome.FAIL, text) if settled else (Outcome.INCONCLUSIVE, f"{text}, but the run was cut")
    if seen.samples < criterion.samples_min:
        return Outcome.INCONCLUSIVE, f"{text}: fewer samples than the {criterion.samples_min} asked for"
    lower = -math.inf if seen.lower is None else seen.lower
    upper = math.inf if seen.upper is None else seen.upper
    if least <= lower and upper <= most:
        return Outcome.PASS, text
    if criterion.at_least is None and criterion.at_most is None:
        return Outcome.PASS, f"{text}: no limit was set"
    side, bound = ("at least", lower) if lower < least else ("at most", upper)
    if math.isinf(bound):
        return Outcome.INCONCLUSIVE, f"{text}: too few samples for a bound with {criterion.confidence:.0%} confidence"
    said = f"all that can be said with {criterion.confidence:.0%} confidence is {side} {_shown(bound, unit)}"
    return Outcome.INCONCLUSIVE, f"{text}, yet {said}"


def _may_keep(seen: Measurement, least: float, most: float) -> bool:
    """Whether what breaks a limit by estimate may keep it by its bounds: a ratio or a slope that noise can make."""
    if seen.estimator not in ("ratio", "slope") or seen.lower is None or seen.upper is None:
        return False
    return seen.lower <= most and seen.upper >= least


def _phase_over(history: History, name: str | None) -> bool:
    return any(phase.name == name and math.isfinite(phase.end_s) for phase in history.phases())


def _limit(criterion: Criterion) -> str:
    return _limit_shown(criterion, "")


def _limit_shown(criterion: Criterion, unit: str) -> str:
    sides = []
    if criterion.at_least is not None:
        sides.append(f">= {_shown(criterion.at_least, unit)}")
    if criterion.at_most is not None:
        sides.append(f"<= {_shown(criterion.at_most, unit)}")
    return " and ".join(sides) or "none"


def _shown(value: float, unit: str) -> str:
    """A value for people: shares in per cent, everything else in its unit."""
    if unit == "share":
        return f"{100 * value:.5g} %"
    return f"{value:.5g} {unit}".rstrip()


def _planned_faults(history: History) -> dict[str, dict[str, Any]]:
    planned = history.experiment.get("faults") or {}
    return {str(name): spec for name, spec in planned.items()} if isinstance(planned, dict) else {}


def _targets(history: History) -> set[str]:
    planned = [target for spec in _planned_faults(history).values() for target in spec.get("targets") or ()]
    return {*planned, *(target for targets in history.faults["targets"] for target in targets)}


def _target_role(history: History) -> str | None:
    targets = _targets(history)
    if not targets:
        return None
    if all(name.startswith("client-") for name in targets):
        return "client"
    return "controller" if any(name.split("-")[0] == "controller" for name in targets) else "worker"


def _guard_outcomes(history: History) -> list[tuple[Outcome, str]]:
    """A stop condition says how much harm is allowed: a run that met one has failed. A stop file says nothing.

    A target that was not as it had to be made the run impossible; one whose probes did not hold at the end is sick.
    """
    weights = {"stop_condition": Outcome.FAIL, "target": Outcome.INVALID}
    told = history.events[history.events["kind"] == "guard"]
    stops = zip(told["subject"], told["detail"], strict=True)
    found = [(weights.get(by, Outcome.INCONCLUSIVE), f"the run was stopped: {why}") for by, why in stops]
    refuted = history.events.loc[history.events["kind"] == "probe_refuted", "detail"]
    return found + [(Outcome.FAIL, f"at the end {line}") for line in refuted]


def _fault_outcomes(history: History) -> list[tuple[Outcome, str]]:
    """What the faults themselves say about the run, a sentence each; nothing for a fault that went as planned.

    In a run that was cut a fault may not have come to its proof or its heal: unknown, unless it was tried and failed.
    """
    complete = history.info.complete
    found = []
    for row in history.faults.to_dict("records"):
        label = f"{row['name']} ({row['kind']} of {', '.join(row['targets'])})"
        healed, tried = (not math.isnan(row[time]) for time in ("healed_s", "verified_s"))
        if not row["verified"] and (complete or (healed and tried)):
            found.append((Outcome.INVALID, f"the fault {label} {_unproven(row['evidence'])}"))
        if not row["heal_verified"] and (healed or (complete and not math.isnan(row["injected_s"]))):
            found.append((Outcome.FAIL, f"the heal of the fault {label} is not proven"))
    recorded = set(history.faults["name"])
    missing = [name for name in _planned_faults(history) if name not in recorded]
    if complete:
        found += [(Outcome.INVALID, f"the fault {name} was never injected") for name in missing]
    return found


def _unproven(text: str) -> str:
    """Why a fault is not verified: it did not take effect, or it did and was gone before its end."""
    evidence = _evidence(text)
    bite = evidence.get("bite")
    if isinstance(bite, dict) and "not_injected" in bite:
        return f"was not injected: {bite['not_injected']}"
    end = evidence.get("end")
    if end is None or not _denied(end) or _denied(evidence.get("bite")):
        return "did not prove that it took effect"
    targets = end.items() if isinstance(end, dict) else ()
    why = [f"{name}: {told['because']}" for name, told in targets if _denied({name: told}) and "because" in told]
    return "was not in force until its end" + (f" ({'; '.join(why)})" if why else "")


def _denied(facts: object) -> bool:
    """Whether the evidence says no: of a target, or because it could not be had."""
    if not isinstance(facts, dict):
        return False
    return "error" in facts or any(isinstance(told, dict) and told.get("bites") is False for told in facts.values())


def _fault_results(history: History) -> list[FaultResult]:
    times = {(each.name, each.injected_s): each for each in fault_times(history)}
    found = [(row, times.get((row["name"], row["injected_s"]))) for row in history.faults.to_dict("records")]
    return [
        FaultResult(
            kind=row["kind"],
            target=", ".join(row["targets"]),
            injected_s=None if math.isnan(row["injected_s"]) else row["injected_s"],
            verified=bool(row["verified"]),
            healed_s=None if math.isnan(row["healed_s"]) else row["healed_s"],
            evidence=_evidence(row["evidence"]),
            # Runs of before it was recorded have none.
            states=[] if row["states"] is None else list(row["states"]),
            name=row["name"],
            predicted_s=None if noticed is None else noticed.predicted_s,
            measured_s=None if noticed is None else noticed.detection_s,
            tolerance_s=None if noticed is None or noticed.late is None else noticed.tolerance_s,
            late=None if noticed is None else noticed.late,
        )
        for row, noticed in found
    ]


def _evidence(text: str) -> dict[str, object]:
    try:
        read = json.loads(text)
    except ValueError:
        return {"text": text}
    return read if isinstance(read, dict) else {"value": read}


def _reasons(
    history: History,
    verdict: Outcome,
    criteria: list[CriterionResult],
    invariants: list[InvariantResult],
    faults: list[tuple[Outcome, str]],
) -> list[str]:
    safety = [each for each in invariants if each.number in _SAFETY]
    others = [each for each in invariants if each.number not in _SAFETY]
    judged = [(each.verdict, f"invariant {each.number}, {each.name}: {each.explanation}") for each in safety]
    judged += [(each.verdict, each.explanation) for each in criteria]
    judged += [(each.verdict, f"invariant {each.number}, {each.name}: {each.explanation}") for each in others]
    judged = [*faults, *judged]

    def sentences(outcome: Outcome) -> list[str]:
        return [text for each, text in judged if each is outcome]

    reasons = sentences(Outcome.INVALID)
    if not history.info.complete:
        reasons.append(f"the run did not finish: {history.info.ended_by}")
    failed = sentences(Outcome.FAIL)
    if failed and _everybody_hit(history):
        # A circumstance is no finding: it goes with the first one, so that neither hides the other.
        first = f"{failed[0]}; the faults hit every worker of the cluster, so nobody was left to take over"
        failed = [first, *(text for text in failed if text != failed[0])]
    reasons += failed
    reasons += sentences(Outcome.INCONCLUSIVE)
    if verdict is Outcome.PASS:
        met = sum(each.verdict is Outcome.PASS for each in criteria)
        kept = sum(each.verdict is Outcome.PASS for each in invariants)
        reasons.append(f"all {met} criteria that apply are met and all {kept} invariants that apply are kept")
    # A steady state that is also an expectation says the same thing twice.
    return list(dict.fromkeys(reasons))


def _everybody_hit(history: History) -> bool:
    """Whether there was a time in which faults were on for every worker at once."""
    windows, workers = fault_windows(history), worker_count(history)
    return any(
        hit_every_worker([other for other in windows if other.overlaps(moment, moment)], workers)
        for moment in (window.injected_s for window in windows)
    )
