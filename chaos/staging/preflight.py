"""What a run would do to a target, checked against what its owner allows, and told before anything is done."""

import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from random import Random

import msgspec

from analysis.checkers import CHECKERS
from analysis.outside import SEEN
from chaos import faults, timing
from chaos.director import of_the_owner
from chaos.experiment import Experiment, FaultSpec
from chaos.staging.addresses import demand_private
from chaos.staging.ask import AskError
from chaos.staging.budget import DayBudget, Spent
from chaos.staging.evidence import PATIENCE_S
from chaos.staging.faults import StagedFault, stage
from chaos.staging.greet import GREETINGS
from chaos.staging.identity import cluster_key, demand_fingerprint, identify
from chaos.staging.link import StagingLink, embedded, refusal
from chaos.staging.nats import NatsMonitor
from chaos.staging.probes import ask_probes
from chaos.staging.warden import may_go_on
from chaos.staging.witness import look
from chaos.target import KINDS, MODAL, Target, TargetError
from chaos.toxiproxy.adapter import Toxiproxy, ToxiproxyError
from chaos.worlds.staging import CHECKS_S, INVARIANTS
from chaos.worlds.world import Cut, HandleError
from workloads.capacity import Capacity, HostTooSlow, InfeasibleRate, resolve_rate
from workloads.http import BadTarget
from workloads.plan import LoadPlan, PhaseLoad, rate_per_s
from workloads.planner import PlannedPhase, build_plan
from workloads.words import WordVocabulary

_WHY_NOT = {
    3: "an endpoint tells text and no token ids, and nobody here has its model",
    5: "what workers execute is in no row that we get",
    6: "what a controller sends to whom is in no row that we get",
    8: "queues, batches and memory are in no row that we get",
}
_IN_PART = {
    2: "only that nothing comes after a stream's end",
    4: "without the workers' own counts of tokens",
    7: "by what callers feel",
    9: "errors of other people's servers count as explained while a fault is on",
}


_CROWD_S = 10.0


class Preflight(msgspec.Struct, frozen=True):
    """lines: what would be done, for people. refusals: why it must not be, a line each; empty when it may."""

    lines: tuple[str, ...]
    refusals: tuple[str, ...]


def preflight(experiment: Experiment, target: Target, seed: int) -> Preflight:
    """Look at the target and change nothing there. Raises AskError when a part of it does not answer."""
    lines: list[str] = [f"target {target.name} of {target.owner}"]
    refusals = against_the_file(experiment, target)
    if not refusals:
        try:
            plan, said = planned_load(experiment, target, seed)
        except (InfeasibleRate, HostTooSlow) as error:
            refusals.append(of_the_owner(str(error)))
        else:
            lines += _load_lines(experiment, target, plan, said)
    strikes = _strikes(experiment, seed)
    refusals += _against_the_clock(experiment, target, strikes)
    if refusals:
        return Preflight(tuple(lines), tuple(refusals))
    links, wrong = _links(experiment, target)
    refusals += wrong
    staged: dict[str, StagedFault] = {}
    spent: Spent | None = None
    if not wrong:
        spent, spent_up = _against_the_budget(target, strikes)
        staged, wrong = _staged(experiment, links)
        refusals += [*spent_up, *wrong]
    for name, spec, start_s in strikes if staged else ():
        lines += _fault_lines(name, spec, start_s, staged[name], links)
    lines += [*_judged_lines(experiment), *_standing_lines(target, spent), *_healing_lines(links)]
    return Preflight(tuple(lines), tuple(refusals))


def against_the_file(experiment: Experiment, target: Target) -> list[str]:
    """Why an experiment must not be run at a target, as far as the two files tell."""
    found: list[str] = []
    if experiment.comparison is not None:
        found.append("comparison: arms need the cluster's own clients, a staging target has none")
    found += [
        f"phases.{name}.load: a target is offered an open load only, expected a rate or none"
        for name, phase in experiment.phases.items()
        if phase.load not in (None, "none") and getattr(phase.load, "rate", None) is None
    ]
    if not experiment.faults:
        found.append("faults: there are none; python -m workloads.drive puts a load on an endpoint without any")
    for name, spec in experiment.faults.items():
        found += _against_fault(f"faults.{name}", spec, target)
    baseline_s = experiment.phases[experiment.baseline_phase].duration_s
    if baseline_s < target.steady.window_s:
        what = f"expected at least steady.window_s = {target.steady.window_s:g} s, got {baseline_s:g}"
        found.append(f"phases.{experiment.baseline_phase}.duration_s: {what}: a sick cluster must be seen to be")
    return found


def _against_fault(field: str, spec: FaultSpec, target: Target) -> list[str]:
    if spec.kind not in KINDS:
        return [f"{field}.kind: a staging target gives no handle for {spec.kind}; there is {', '.join(KINDS)}"]
    found = []
    if not target.allows(spec.kind, spec.mode):
        asked = f"{spec.kind}.{spec.mode}" if spec.kind in MODAL else spec.kind
        found.append(f"{field}.kind: {asked} is not allowed there, only {', '.join(target.faults) or 'nothing'}")
    found += [
        f"{field}.targets: the link of {name} is not opted in, only {', '.join(target.links)}"
        for name in spec.targets
        if name not in target.links
    ]
    if len(spec.targets) > target.links_max:
        found.append(f"{field}.targets: {len(spec.targets)} links at once, links_max is {target.links_max}")
    if spec.when is not None:
        found.append(f"{field}.when: what a target's nodes are in the midst of cannot be seen from outside")
    if spec.ttl_s > target.ttl_s_max:
        found.append(f"{field}.ttl_s: expected at most ttl_s_max = {target.ttl_s_max:g} s, got {spec.ttl_s:g}")
    return found


def planned_load(experiment: Experiment, target: Target, seed: int) -> tuple[LoadPlan, list[str]]:
    """The load of a run, as the director plans it, and how it is told. Raises InfeasibleRate, HostTooSlow."""
    capacity = Capacity(target.rate_per_s(), 0.0, 0, 0.0)
    spec, context = experiment.workload, experiment.policy.worker.context_max_tokens
    rate = resolve_rate(spec, capacity.requests_per_s)
    phases = [PlannedPhase(name, phase.duration_s, phase.load) for name, phase in experiment.phases.items()]
    try:
        plan = build_plan(spec, phases, rate.per_s, capacity, seed, WordVocabulary(), context_max_tokens=context)
    except ValueError as error:
        raise InfeasibleRate(f"workload: {error}") from error
    _demand_rate(experiment, target, rate.per_s, plan)
    return plan, [of_the_owner(rate.statement)]


def _demand_rate(experiment: Experiment, target: Target, base_per_s: float, plan: LoadPlan) -> None:
    """Raises InfeasibleRate where more is planned at any time than the owner allows, beyond what chance brings."""
    most_per_s, limit = target.rate_per_s(), f"load.rate_max is {target.load.rate_max}"
    spec = experiment.workload
    factor = max(spec.ramp) if spec.ramp is not None else max((each for _, each in spec.steps), default=1.0)
    if base_per_s * factor > most_per_s:
        raise InfeasibleRate(f"workload: it rises to {base_per_s * factor:g}/s, {limit}")
    for name, phase in experiment.phases.items():
        if isinstance(phase.load, PhaseLoad) and phase.load.rate is not None:
            asked_per_s = rate_per_s(phase.load.rate, base_per_s, most_per_s)
            if asked_per_s > most_per_s:
                raise InfeasibleRate(f"phases.{name}.load: {phase.load.rate} is {asked_per_s:g}/s, {limit}")
    counts = Counter(int(request.intended_s / _CROWD_S) for request in plan.requests)
    usual = most_per_s * _CROWD_S
    busiest = max(counts.values(), default=0)
    # By chance so many come once in tens of thousands of such stretches.
    if busiest > usual + 4 * math.sqrt(usual) + 4:
        raise InfeasibleRate(f"workload: {busiest} requests within {_CROWD_S:g} s, {limit}")


def _strikes(experiment: Experiment, seed: int) -> list[tuple[str, FaultSpec, float]]:
    """Every strike with its time since the load began, in order."""
    starts: dict[str, float] = {}
    start_s = 0.0
    for name, phase in experiment.phases.items():
        starts[name] = start_s
        start_s += phase.duration_s
    found = [
        (name, spec, starts[spec.phase] + offset_s)
        for name, spec in experiment.faults.items()
        for offset_s in timing.strikes(spec, Random(f"{seed}/faults/{name}"))
    ]
    return sorted(found, key=lambda strike: strike[2])


def _against_the_clock(
    experiment: Experiment, target: Target, strikes: Sequence[tuple[str, FaultSpec, float]]
) -> list[str]:
    """Hours, and faults that come too soon after each other or too early for a permission."""
    found: list[str] = []
    left_s = target.hours.left_s(time.time())
    whole_s = sum(phase.duration_s for phase in experiment.phases.values())
    if left_s <= 0:
        found.append(f"hours: it is not allowed now, only {target.hours.told()}")
    elif left_s < whole_s:
        found.append(f"hours: {left_s:.0f} s are left of {target.hours.told()}, the run takes {whole_s:g} s")
    lead_s = CHECKS_S + max(link.speaks_every_s for link in target.links.values())
    over_s = 0.0
    for name, spec, start_s in strikes:
        if start_s - over_s < lead_s:
            what = f"expected {lead_s:g} s at least between {'the last fault' if over_s else 'the begin'} and this one"
            found.append(f"faults.{name}.start_s: {what}, for the questions before it, got {start_s - over_s:g}")
        over_s = max(over_s, start_s + spec.duration_s)
    return found


def _against_the_budget(
    target: Target, strikes: Sequence[tuple[str, FaultSpec, float]]
) -> tuple[Spent | None, list[str]]:
    """What the cluster has had today, None when nobody knows, and why it may not have as much as is wanted."""
    found: list[str] = []
    try:
        budget = DayBudget(cluster_key(identify(target)), target.budget, target.hours.day(time.time()))
        spent = budget.spent()
    except TargetError as error:
        return None, [str(error)]
    wanted_s = sum(spec.duration_s * len(spec.targets) for _, spec, _ in strikes)
    longest_s = max((spec.ttl_s * len(spec.targets) for _, spec, _ in strikes), default=0.0)
    if budget.fault_left_s < max(wanted_s, longest_s):
        what = f"{max(0.0, budget.fault_left_s):.1f} s of {target.budget.fault_s:g} s are left today"
        found.append(
            f"budget.fault_s: {what}, the run needs {max(wanted_s, longest_s):g} s (time limits counted until the heal)"
        )
    if budget.failed_left < 0 or (target.budget.failed_requests > 0 and budget.failed_left == 0):
        found.append(f"budget.failed_requests: all {target.budget.failed_requests} of today are used up")
    return spent, found


def _links(experiment: Experiment, target: Target) -> tuple[dict[str, StagingLink], list[str]]:
    """The links that faults are for, looked at, and what is wrong with them or with who the target is."""
    monitor = NatsMonitor(target.nats_monitoring) if target.nats_monitoring is not None else None
    links: dict[str, StagingLink] = {}
    try:
        demand_private(target)
        brokers = demand_fingerprint(target)
        if target.stop.file is not None and os.path.lexists(target.stop.file):
            raise TargetError(f"stop.file: {target.stop.file} exists, so nothing may begin")
        if target.stop.url is not None and (said := may_go_on(target.stop.url)):
            raise TargetError(f"stop.url: {said}")
        for name in sorted({name for spec in experiment.faults.values() for name in spec.targets}):
            spec = target.links[name]
            link = StagingLink(
                name,
                spec,
                Toxiproxy(target.toxiproxies[spec.toxiproxy]),
                monitor=monitor,
                demand=lambda: brokers,
                allow_public=target.allow_public,
            )
            link.examine()
            links[name] = link
            if monitor is not None and link.monitored and not monitor.heard(spec.client_name):
                there = ", ".join(monitor.names()[:12]) or "nobody"
                raise TargetError(
                    f"links.{name}.client_name: the broker lists no {spec.client_name!r}; there is {there}"
                )
        wrong = ask_probes(target)
    except (TargetError, BadTarget) as error:
        return links, [str(error)]
    except ToxiproxyError as error:
        raise AskError(str(error)) from None
    return links, [f"the cluster is sick already: {line}" for line in wrong]


def _staged(experiment: Experiment, links: dict[str, StagingLink]) -> tuple[dict[str, StagedFault], list[str]]:
    found: dict[str, StagedFault] = {}
    wrong: list[str] = []
    for name, spec in experiment.faults.items():
        mine = {target: links[target] for target in spec.targets}
        if spec.mode is not None:
            bad = {why for link in mine.values() if (why := refusal(Cut(spec.mode), link.version))}
            wrong += [f"faults.{name}.mode: {why}" for why in bad]
        ordinary = faults.make(spec, experiment.node_names())
        try:
            staged = stage(spec, ordinary, mine)
        except HandleError as error:
            wrong.append(f"faults.{name}.kind: {error}")
            continue
        if why := staged.unprovable():
            wrong.append(f"faults.{name}.{why}")
        elif why := staged.blind({node: look(link.address, PATIENCE_S) for node, link in mine.items()}):
            wrong.append(f"faults.{name}.kind: {why}")
        found[name] = staged
    return found, wrong


def _load_lines(experiment: Experiment, target: Target, plan: LoadPlan, said: Sequence[str]) -> list[str]:
    whole_s = sum(phase.duration_s for phase in experiment.phases.values())
    key = f"key from {target.api.key_env}" if target.api.key_env else "no key"
    sessions = f"sessions in the field {target.api.session_field}" if target.api.session_field else "sessions not told"
    lines = [
        f"load: {len(plan.requests)} requests in {whole_s:g} s, {said[0]}; {GREETINGS} small ones before",
        f"  at most {target.load.in_flight_max} in flight, {key}, {sessions}, model {target.api.model}",
        f"  each is given up {experiment.policy.client.deadline_s:g} s after it was to be sent",
    ]
    return [*lines, *(f"  POST {one.path}" for one in target.api.targets())]


def _fault_lines(
    name: str, spec: FaultSpec, start_s: float, staged: StagedFault, links: dict[str, StagingLink]
) -> list[str]:
    aim = " ".join(filter(None, (spec.kind, spec.mode, ", ".join(spec.targets))))
    lines = [f"fault {name}: {aim}, from {start_s:g} s of the load for {spec.duration_s:g} s, TTL {spec.ttl_s:g} s"]
    for target in spec.targets:
        link = links[target]
        lines.append(f"  proxy {link.spec.proxy} at {link.url} (listens on {':'.join(map(str, link.address))}):")
        if spec.mode in (Cut.REFUSE, Cut.RESET):
            lines.append("    disabled, and enabled again")
        for toxic in staged.toxics:
            said = ", ".join(f"{key} {value}" for key, value in toxic.attributes.items())
            lines.append(f"    toxic {link.toxic_name(toxic)}: {toxic.type} {toxic.stream}, {said}")
        if link.foreign:
            lines.append(f"    {', '.join(link.foreign)} of somebody else stay as they are")
    lines.append(f"  proof: {staged.told()}")
    lines.append("  ours: a few connections through the proxy, without a login, which NATS may put into its log")
    seen = (
        "what callers feel, the broker's list of connections" if any(links[t].monitored for t in spec.targets) else ""
    )
    lines.append(f"  seen of it: {seen or 'what callers feel'}; which node notices, and when, cannot be seen")
    return lines


def _judged_lines(experiment: Experiment) -> list[str]:
    blind = {
        name: criterion.metric
        for section in (experiment.steady_state, experiment.expectations)
        for name, criterion in section.items()
        if criterion.metric not in SEEN
    }
    lines = ["cannot be judged from outside, so not applicable:"]
    lines += [f"  invariant {number}: {why}" for number, why in _WHY_NOT.items() if number in CHECKERS]
    lines += [f"  {name} ({metric})" for name, metric in blind.items()]
    judged = [f"{number}{f' ({_IN_PART[number]})' if number in _IN_PART else ''}" for number in INVARIANTS]
    return [*lines, f"judged: invariants {', '.join(judged)}"]


def _standing_lines(target: Target, spent: Spent | None) -> list[str]:
    now = time.time()
    limits = target.budget
    ways = [f"the file {target.stop.file}" if target.stop.file else "", f"{target.stop.url}" if target.stop.url else ""]
    return [
        "before each injection: fingerprint, addresses, the broker behind the proxy, hours, budget, the proxy as it "
        "was, probes, steady state of "
        f"the last {target.steady.window_s:g} s; if one does not hold, nothing is injected and the run ends",
        f"hours: {target.hours.told()}, {target.hours.left_s(now) / 3_600:.1f} hours left",
        f"budget of today: {spent.failed} of {limits.failed_requests} failed requests, "
        f"{spent.reserved_s:.0f} of {limits.fault_s:g} s of fault used"
        if spent is not None
        else "budget of today: not known, for the cluster or what is kept of it is not as it must be",
        f"stop: {' or '.join(filter(None, ways))}, looked at each second; or Ctrl-C",
    ]


def _healing_lines(links: dict[str, StagingLink]) -> list[str]:
    """Who heals when the runner dies, and when its host does."""
    lines = [
        "healing: at the end, by us; if we die, by the keeper on this host within a second, at the TTL at the latest"
    ]
    bare = sorted({link.url for link in links.values() if not embedded(link.version)})
    own = sorted({link.url for link in links.values() if embedded(link.version)})
    if own:
        lines.append(
            f"  if this host dies too: {', '.join(own)} ends toxics at their TTL by itself; not a disabled proxy"
        )
    if bare:
        lines.append(
            f"  if this host dies too: NOTHING heals {', '.join(bare)}, which knows no TTL; then by hand, or "
            "python -m chaos.heal when the host is back"
        )
    return lines
