"""From a file and the command line's settings to a whole experiment, or one line that says what is wrong.

Nothing is started before everything has been checked here.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, TypeVar, cast, get_args

import msgspec
from msgspec.structs import replace

from analysis.criterion import Criterion
from analysis.metrics import METRICS
from chaos import faults
from chaos.experiment import Experiment, ExperimentError, FaultSpec, PhaseSpec, merged, overlaid
from chaos.faults.roles import role_of
from chaos.guard import Guard
from chaos.offered import WorkloadError, check_workload, settle
from chaos.overlays import with_profile
from chaos.robustness import CLASSES
from chaos.timing import check_trigger, latest_end_s, strikes
from cluster.calibration import CalibrationError, load_calibration
from cluster.policy import Policy
from cluster.profiles import ProfileError, load_policy
from cluster.simulation.condition import NetworkCosts
from cluster.yaml_file import YamlError, parse_yaml, read_yaml
from workloads.arms import AWAY, ArmSpec

T = TypeVar("T")
_SHOWN_MAX = 300
_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_OF_A_STRUCT = re.compile(r"[^\W\d]\w*([.\[][\w\]-]+)*")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>[^`]*)`")
_NAMED_SECTIONS: dict[str, type] = {
    "phases": PhaseSpec,
    "faults": FaultSpec,
    "arms": ArmSpec,
    "steady_state": Criterion,
    "expectations": Criterion,
}


def load(path: Path, settings: Sequence[str] = (), policy: str | None = None, profile: str | None = None) -> Experiment:
    """The experiment in `path`, with `settings` (`path.to.field=value`, YAML values) laid over it, fully checked.

    profile: one of the experiment's own `profiles`, laid over it before the settings.
    policy: name of a profile in cluster/policies, or a YAML file; the experiment's own policy is laid over it.
    Raises ExperimentError.
    """
    document = with_profile(_read(path), profile, path.name)
    own = document.get("policy") or {}
    if policy is not None and isinstance(own, dict):
        document["policy"] = merged(_policy(policy), own)
    for setting in settings:
        _set(document, setting)
    _calibrate(document, path.name)
    told = " ".join(f"--set {_shown(setting)}" for setting in settings)
    if profile is not None:
        told = f"--profile {_shown(profile)} {told}".strip()
    source = f"{path.name} with {told}" if told else path.name
    try:
        experiment = _without_disabled(settle(_convert(document), path.parent))
        check(experiment)
    except (_Wrong, WorkloadError) as wrong:
        raise ExperimentError(f"{source}: {_shown(wrong.field)}: {_shown(wrong.what)}") from None
    return experiment


def _without_disabled(experiment: Experiment) -> Experiment:
    return replace(experiment, faults={name: each for name, each in experiment.faults.items() if each.enabled})


def check(experiment: Experiment) -> None:
    """What the fields must be to each other. Raises _Wrong."""
    for field in ("baseline_phase", "recovery_phase"):
        _one_of(field, getattr(experiment, field), experiment.phases, "phase")
    if experiment.cluster.hosts > experiment.cluster.workers:
        what = f"expected at most cluster.workers = {experiment.cluster.workers}, got {experiment.cluster.hosts}"
        raise _Wrong("cluster.hosts", f"{what}: a host would have no node")
    for name, fault in experiment.faults.items():
        _check_fault(f"faults.{name}", fault, experiment)
    for number in experiment.robustness:
        if number not in CLASSES:
            raise _Wrong("robustness", f"no class {number}; there are 1 to {max(CLASSES)}")
    _check_guard(experiment)
    _check_comparison(experiment)
    for section in ("steady_state", "expectations"):
        criteria: Mapping[str, Criterion] = getattr(experiment, section)
        for name, criterion in criteria.items():
            _check_criterion(f"{section}.{name}", criterion, experiment)
    try:
        check_workload(experiment)
    except WorkloadError as error:
        raise _Wrong(error.field, error.what) from None


def refusal(experiment: Experiment) -> str | None:
    """Why an experiment that was made and not read may not be run: the field, then what was expected."""
    try:
        check(experiment)
    except _Wrong as wrong:
        return str(wrong)
    return None


class _Wrong(Exception):
    def __init__(self, field: str, what: str) -> None:
        super().__init__(f"{field}: {what}")
        self.field = field
        self.what = what


def _check_fault(field: str, fault: FaultSpec, experiment: Experiment) -> None:
    _one_of(f"{field}.phase", fault.phase, experiment.phases, "phase")
    if not fault.targets:
        raise _Wrong(f"{field}.targets", "at least one node is needed")
    nodes = experiment.node_names()
    for target in fault.targets:
        if role_of(target) == "host":
            _check_host(f"{field}.targets", target, experiment)
        _one_of(f"{field}.targets", target, experiment.target_names(), "node")
    if len(set(fault.targets)) != len(fault.targets):
        raise _Wrong(f"{field}.targets", "a node is named twice")
    _check_timing(field, replace(fault, targets=experiment.hurt_with(fault.targets)), nodes)
    phase_s, end_s = experiment.phases[fault.phase].duration_s, latest_end_s(fault)
    if end_s > phase_s:
        raise _Wrong(f"{field}.duration_s", f"the fault ends {end_s:g} s into {fault.phase}, which lasts {phase_s:g} s")
    if fault.ttl_s < fault.duration_s:
        what = f"expected at least the fault's duration of {fault.duration_s:g} s, got {fault.ttl_s:g}"
        raise _Wrong(f"{field}.ttl_s", what)
    try:
        faults.make(fault, nodes)
    except ValueError as error:
        name, _, what = str(error).partition(": ")
        raise _Wrong(f"{field}.{name}", what) from None


def _check_host(field: str, target: str, experiment: Experiment) -> None:
    hosts = experiment.host_names()
    if target == hosts[0]:
        raise _Wrong(field, f"{target} is no target: the clients, which judge, and the broker are there")
    if target not in hosts:
        there = ", ".join(hosts[1:]) or "no other than the runner's own, host-0, which is no target"
        raise _Wrong(field, f"no host named {target!r}; cluster.hosts is {len(hosts)}: there is {there}")


def _check_timing(field: str, fault: FaultSpec, nodes: list[str]) -> None:
    repeat = fault.repeat
    if repeat is not None:
        if (repeat.every_s is None) == (repeat.within_s is None):
            raise _Wrong(f"{field}.repeat", "expected one of every_s and within_s")
        if repeat.every_s is not None and repeat.every_s < fault.duration_s:
            raise _Wrong(f"{field}.repeat.every_s", f"expected at least the fault's duration of {fault.duration_s:g} s")
        if repeat.within_s is not None and repeat.within_s < repeat.times * fault.duration_s:
            least_s = repeat.times * fault.duration_s
            raise _Wrong(f"{field}.repeat.within_s", f"{repeat.times} strikes take at least {least_s:g} s")
    if fault.when is not None:
        try:
            check_trigger(fault.when, fault.targets, nodes)
        except ValueError as error:
            name, _, what = str(error).partition(": ")
            raise _Wrong(f"{field}.{name}", what) from None


def _check_guard(experiment: Experiment) -> None:
    """Faults whose times are fixed are refused here; the others when they are about to strike."""
    guard = Guard(experiment.guard, experiment.worker_names())
    fixed = [
        (name, fault.phase, start_s, start_s + fault.duration_s, fault)
        for name, fault in experiment.faults.items()
        if fault.when is None and (fault.repeat is None or fault.repeat.every_s is not None)
        for start_s in strikes(fault, Random(0))
    ]
    for name, phase, start_s, _, fault in fixed:
        hurt = [
            target
            for _, other_phase, other_s, end_s, other in fixed
            if other is not fault and other_phase == phase and other_s <= start_s < end_s
            for target in experiment.hurt_with(other.targets)
        ]
        refused = guard.forbids(experiment.hurt_with(fault.targets), hurt, None)
        if refused is not None:
            raise _Wrong(f"faults.{name}.targets", refused)


def _check_comparison(experiment: Experiment) -> None:
    comparison, arms = experiment.comparison, experiment.arms
    if comparison is None:
        if arms:
            raise _Wrong("comparison", "arms are compared in a phase, and this says in which and how")
        return
    _one_of("comparison.phase", comparison.phase, experiment.phases, "phase")
    if len(arms) < 2:
        raise _Wrong("arms", f"a comparison needs two arms at least, got {len(arms)}")
    if comparison.prefix_tokens[0] > comparison.prefix_tokens[1]:
        raise _Wrong("comparison.prefix_tokens", f"expected [least, most], got {list(comparison.prefix_tokens)}")
    if comparison.settle_s >= comparison.block_s:
        raise _Wrong("comparison.settle_s", f"nothing of a block of {comparison.block_s:g} s would count")
    for name, arm in arms.items():
        if not name.replace("_", "").isalnum():
            raise _Wrong(f"arms.{name}", "expected a name of letters, digits and underscores")
        _check_arm(f"arms.{name}", arm, experiment, comparison.by)


def _check_arm(field: str, arm: ArmSpec, experiment: Experiment, by: str) -> None:
    workers = experiment.worker_names()
    named = arm.worker in workers
    if arm.worker not in ("", AWAY):
        _one_of(f"{field}.worker", arm.worker, [*workers, AWAY], "worker")
    if arm.worker == AWAY and len(workers) < 2:
        raise _Wrong(f"{field}.worker", "there is no other worker to go to; cluster.workers is 1")
    for said, what, needed in (
        (arm.worker == AWAY, "worker: away", "sessions"),
        (arm.prefix == "fresh", "prefix: fresh", "sessions"),
        (bool(arm.before), "before", "blocks"),
        (bool(arm.controller), "controller", "blocks"),
        (arm.closed is not None, "closed", "blocks"),
    ):
        if said and by != needed:
            raise _Wrong(f"{field}.{what.split(':')[0]}", f"{what} has a meaning only with comparison.by: {needed}")
    if arm.before and not named:
        raise _Wrong(f"{field}.before", "expected an arm that names its worker")
    _check_arm_controllers(field, arm, experiment)
    if not arm.policy:
        return
    shared = sum(other.worker == arm.worker for other in experiment.arms.values()) > 1
    if not arm.controller and (shared or not named):
        raise _Wrong(f"{field}.policy", "a policy needs a named worker or controller that no other arm uses")
    try:
        overlaid(experiment.policy, arm.policy)
    except msgspec.ValidationError as error:
        raise _explained(f"{field}.policy", str(error), Policy) from None


def _check_arm_controllers(field: str, arm: ArmSpec, experiment: Experiment) -> None:
    """Arms with controllers share nothing but the workers: each has its own, and generators that speak to it alone."""
    arms, generators = list(experiment.arms.values()), experiment.workload.generators
    if not any(other.controller for other in arms):
        return
    field = f"{field}.controller"
    if not arm.controller:
        raise _Wrong(field, "expected one, for other arms have controllers of their own")
    _one_of(field, arm.controller, experiment.controller_names(), "controller")
    if sum(other.controller == arm.controller for other in arms) > 1:
        raise _Wrong(field, f"expected one that no other arm has, got {arm.controller} twice")
    if arm.closed is not None:
        raise _Wrong(field, "a closed arm has none: its requests in flight are shared by all generators")
    if generators % len(arms):
        what = f"{len(arms)} arms with controllers need equally many generators each"
        raise _Wrong("workload.generators", f"{what}, got {generators}")


def _check_criterion(field: str, criterion: Criterion, experiment: Experiment) -> None:
    _one_of(f"{field}.metric", criterion.metric, METRICS, "metric")
    if criterion.phase is not None:
        _one_of(f"{field}.phase", criterion.phase, experiment.phases, "phase")
    if (criterion.at_least is None) == (criterion.at_most is None):
        raise _Wrong(field, "expected one of at_least and at_most")
    for side, limit in (("at_least", criterion.at_least), ("at_most", criterion.at_most)):
        if limit is not None and not math.isfinite(limit):
            raise _Wrong(f"{field}.{side}", f"expected a finite number, got {limit}")
    _check_arms_of(field, criterion, experiment)
    if criterion.when_target is not None:
        _one_of(f"{field}.when_target", criterion.when_target, ("worker", "controller", "client"), "role")


def _check_arms_of(field: str, criterion: Criterion, experiment: Experiment) -> None:
    metric = METRICS[criterion.metric]
    for name in ("arm", "versus"):
        arm = getattr(criterion, name)
        if arm is not None:
            _one_of(f"{field}.{name}", arm, experiment.arms, "arm")
    if criterion.versus is not None and criterion.arm in (None, criterion.versus):
        raise _Wrong(f"{field}.versus", "expected another arm than `arm`, which must be given too")
    if criterion.arm is not None and not metric.by_arm:
        raise _Wrong(f"{field}.arm", f"{criterion.metric} is not about requests, so no arm has one of its own")
    by = experiment.comparison.by if experiment.comparison is not None else ""
    if criterion.versus is not None and by == "sessions" and metric.values is None:
        raise _Wrong(f"{field}.versus", f"{criterion.metric} of one session is no number; compare by blocks")


def _one_of(field: str, value: str, known: Mapping[str, object] | Sequence[str], noun: str) -> None:
    if value not in known:
        names = list(known)
        listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        raise _Wrong(field, f"no {noun} named {value!r}; there is {listed}")


def _shown(text: str) -> str:
    """Of somebody's text as much as fits into a line, with nothing in it that a terminal would obey."""
    short = text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}..."
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in short)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = read_yaml(path)
    except YamlError as error:
        raise ExperimentError(f"{path}: {_shown(str(error).removeprefix(f'{path}: '))}") from None
    if not isinstance(document, dict):
        raise ExperimentError(f"{path}: expected a mapping of fields, got {type(document).__name__}")
    return cast(dict[str, Any], document)


def _policy(name: str) -> dict[str, Any]:
    try:
        whole: dict[str, Any] = msgspec.to_builtins(load_policy(name))
    except ProfileError as error:
        raise ExperimentError(f"--policy {_shown(str(error))}") from None
    return whole


def _calibrate(document: dict[str, Any], source: str) -> None:
    """Put what a calibration has measured in place of its name."""
    section = document.get("cluster")
    name = section.get("costs") if isinstance(section, dict) else None
    if not isinstance(name, str):
        return
    try:
        found = load_calibration(name)
    except CalibrationError as error:
        raise ExperimentError(f"{source}: cluster.costs: {_shown(str(error))}") from None
    assert isinstance(section, dict)
    # A recorded experiment says every field, also those that nobody has chosen.
    chosen = section.get("bus") not in (None, msgspec.to_builtins(NetworkCosts()))
    bus = section["bus"] if chosen else msgspec.to_builtins(found.bus)
    document["cluster"] = {**section, "costs": msgspec.to_builtins(found.costs), "bus": bus}


def _set(document: dict[str, Any], setting: str) -> None:
    path, equals, text = setting.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ExperimentError(f"--set {_shown(setting)}: expected path.to.field=value")
    try:
        value = parse_yaml(text)
    except YamlError as error:
        why = f": {_shown(str(error))}" if "twice" in str(error) else ""
        raise ExperimentError(f"--set {_shown(setting)}: the value is not YAML{why}") from None
    place = document
    for key in keys[:-1]:
        inner = place.get(key)
        if inner is None:
            inner = place[key] = {}
        if not isinstance(inner, dict):
            raise ExperimentError(f"--set {_shown(setting)}: {_shown(key)} is not a section")
        place = inner
    place[keys[-1]] = value


def _convert(document: dict[str, Any]) -> Experiment:
    """Named sections are converted entry by entry, so that an error can name the entry."""
    whole = dict(document)
    for section, kind in _NAMED_SECTIONS.items():
        entries = whole.get(section)
        if entries is None:
            continue
        if not isinstance(entries, dict):
            raise _Wrong(section, f"expected a mapping from name to {section}, got {type(entries).__name__}")
        whole[section] = {str(name): _typed(f"{section}.{name}", value, kind) for name, value in entries.items()}
    if "policy" in whole:
        whole["policy"] = _typed("policy", whole["policy"] or {}, Policy)
    return _typed("", whole, Experiment)


def _typed(prefix: str, value: object, kind: type[T]) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _explained(prefix, str(error), kind) from None
    except UnicodeEncodeError:
        raise _Wrong(prefix or "the file", "expected Unicode, got half of a surrogate pair") from None


def _explained(prefix: str, text: str, kind: type) -> _Wrong:
    """msgspec's message as field and sentence, with a near miss suggested."""
    match = _AT.match(text)
    assert match is not None
    path = (match["path"] or "$").removeprefix("$").lstrip(".")
    field = ".".join(part for part in (prefix, path) if part)
    unknown = _UNKNOWN.search(match["what"])
    if unknown is None:
        what = match["what"][0].lower() + match["what"][1:]
        part, colon, rest = what.partition(": ")
        if colon and _OF_A_STRUCT.fullmatch(part):
            # A struct's own check names the field that it is about.
            field, what = ".".join(filter(None, (field, part))), rest
        return _Wrong(field or "the file", what.replace("`", ""))
    for part in filter(None, path.split(".")):
        inner = {item.name: item.type for item in msgspec.structs.fields(kind)}.get(part)
        types = [one for one in (inner, *get_args(inner)) if isinstance(one, type)]
        structs = [one for one in types if issubclass(one, msgspec.Struct)]
        if len(structs) != 1:
            return _Wrong(f"{field}.{unknown['field']}", "no such field")
        kind = structs[0]
    known = [item.name for item in msgspec.structs.fields(kind)]
    near = difflib.get_close_matches(unknown["field"], known, 1)
    hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}"
    return _Wrong(".".join(part for part in (field, unknown["field"]) if part), f"no such field; {hint}")
