"""What a phase's load was, where it was not an open loop, and whether a closed one lasted."""

from collections.abc import Mapping

from analysis.facts import asked, closed_lines
from analysis.history import History
from analysis.verdict import CriterionResult, Outcome

NAME = "closed load (self-check)"


def kind(history: History, phase: str | None) -> str:
    """How the load of a phase is to be named beside its numbers; empty for an open loop."""
    load = _loads(history).get(phase or "")
    if load is None:
        return ""
    if load.get("burst"):
        return f"{load['burst']} at once"
    return f"closed loop, {load['closed']} in flight" if load.get("closed") else ""


def check(history: History) -> CriterionResult:
    """A closed load that had nothing left to ask kept fewer in flight than it says: invalid, with how many it needs."""
    closed = {name: load for name, load in _loads(history).items() if load.get("closed")}
    if not closed:
        return CriterionResult(NAME, Outcome.NOT_APPLICABLE, None, "", "", 0, None, "the load is an open loop")
    dry = history.events[(history.events["kind"] == "load_ran_dry") & history.events["subject"].isin(closed)]
    told = asked(history)
    plan = history.schedule[closed_lines(history.schedule)]
    planned = plan[plan["segment"].isin(closed)]
    spans = {phase.name: phase for phase in history.phases()}
    texts = []
    for row in dry.drop_duplicates("subject").to_dict("records"):
        name = str(row["subject"])
        phase = spans[name]
        count = int((planned["segment"] == name).sum())
        lasted_s = max(row["time_s"] - phase.start_s, 1e-3)
        needed = count * (phase.end_s - phase.start_s) / lasted_s
        texts.append(
            f"the {count} requests planned for phase {name} lasted {lasted_s:.1f} s, "
            f"about {needed:.0f} would be needed: the cluster is far faster than its capacity probe, or refused at once"
        )
    if texts:
        return CriterionResult(NAME, Outcome.INVALID, float(len(texts)), "<= 0", "loads", len(closed), None, texts[0])
    count = int(planned["request_id"].isin(told.index).sum())
    text = f"{count} of {len(planned)} requests planned for closed loads were asked, and none ran dry"
    return CriterionResult(NAME, Outcome.PASS, 0.0, "<= 0", "loads", len(closed), None, text)


def _loads(history: History) -> dict[str, Mapping[str, object]]:
    """Of the phases with a load of their own that is more than a word."""
    phases = history.experiment.get("phases")
    loads = {
        str(name): spec.get("load")
        for name, spec in (phases.items() if isinstance(phases, Mapping) else ())
        if isinstance(spec, Mapping)
    }
    return {name: load for name, load in loads.items() if isinstance(load, Mapping)}
