"""A choice from the standings is the choice that looking at every worker would have made."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.controller.breaker import BreakerState
from cluster.controller.ledger import Attempt, Entry
from cluster.controller.membership import Liveness, Warmth
from cluster.controller.routing import HARD, Candidate, choose
from cluster.controller.workforce import Workforce
from cluster.errors import Code
from cluster.policy import BreakerPolicy, MembershipPolicy, Policy, RoutingPolicy
from cluster.protocol import Heartbeat, ModelState, Submit

POLICY = Policy(
    routing=RoutingPolicy(outstanding_max=2, affinity_slack=1),
    breaker=BreakerPolicy(failures_to_open=1, open_s=1.0),
    membership=MembershipPolicy(workers_max=4),
)
MODELS = ("small", "large")
NAMES = [f"worker-{number}" for number in range(5)]
STEP_S = 0.4

heartbeats = st.builds(
    lambda worker, incarnation, states, draining, pressure, share, silent: Heartbeat(
        worker,
        incarnation,
        0.0,
        tuple(ModelState(model, state) for model, state in zip(MODELS, states, strict=True)),
        0,
        0,
        8,
        draining,
        engine_silent_s=silent,
        pressure=pressure,
        shares=(("other", share), ("me", 1)),
    ),
    st.sampled_from(NAMES),
    st.integers(1, 2),
    st.tuples(*[st.sampled_from(["warm", "warm", "cold", "loading", "failed"])] * 2),
    st.sampled_from([False, False, False, True]),
    st.sampled_from([0, 0, 0, 1, 2]),
    st.sampled_from([0, 0, 1, 2]),
    st.sampled_from([0.0, 0.0, 9.0]),
)
asks = st.builds(
    lambda model, priority, wish, excluded, preferred: (model, priority, wish, tuple(excluded), preferred),
    st.sampled_from(MODELS),
    st.sampled_from([-1, 0, 0, 1]),
    st.sampled_from(["", "", *NAMES]),
    st.one_of(st.just(set[str]()), st.sets(st.sampled_from(NAMES), max_size=3)),
    st.sampled_from([None, *NAMES]),
)
steps = st.one_of(
    st.tuples(st.just("heard"), heartbeats),
    st.tuples(st.just("ask"), asks),
    st.tuples(st.just("ask"), asks),
    st.tuples(st.just("ask"), asks),
    st.tuples(st.just("end"), st.tuples(st.integers(0, 9), st.sampled_from(["completed", "failed", "withdrawn"]))),
    st.tuples(st.just("unreachable"), st.sampled_from(NAMES)),
    st.tuples(st.just("pass"), st.sampled_from([STEP_S, 6.0])),
    st.tuples(st.just("pardon"), st.none()),
)


def _able(force: Workforce, entry: Entry) -> list[str]:
    members, model = force.membership.members, entry.submit.model
    wished = members.get(entry.wish)
    if wished is not None and wished.serves(model) and force.breakers[entry.wish].allows():
        pressure = wished.heartbeat.pressure
        if pressure < HARD and (pressure == 0 or entry.submit.priority >= 0):
            return [entry.wish]
    serving = [worker for worker in force.serving(model) if worker not in entry.excluded]
    return [worker for worker in serving if members[worker].warmth[model] is Warmth.WARM] or serving


def _pick(force: Workforce, entry: Entry, preferred: str | None) -> str | None:
    """By looking at every worker, breakers being up to date."""
    members, model = force.membership.members, entry.submit.model
    candidates = [
        Candidate(worker, force.load(worker), members[worker].warmth[model], members[worker].heartbeat.pressure)
        for worker in _able(force, entry)
        if force.breakers[worker].allows() and force.has_room(worker)
    ]
    for candidate in candidates:
        if force.breakers[candidate.worker].state is BreakerState.HALF_OPEN and not candidate.pressure:
            return candidate.worker
    return choose(POLICY.routing, candidates, preferred, entry.submit.priority)


def _is_only_full(force: Workforce, entry: Entry) -> bool:
    able = _able(force, entry)
    trusted = [worker for worker in able if force.breakers[worker].allows()] or able
    return bool(able) and not any(force.has_room(worker) for worker in trusted)


def _entry(number: int, ask: tuple[str, int, str, tuple[str, ...], str | None]) -> Entry:
    model, priority, wish, excluded, _ = ask
    submit = Submit("c", 1, f"r{number}", 1, model, (1,), (), 4, 100.0, None, priority, worker=wish)
    entry = Entry(submit, 0.0)
    entry.excluded = excluded
    return entry


@settings(max_examples=300)
@given(st.lists(steps, min_size=10, max_size=80))
def test_it_chooses_as_if_it_looked_at_every_worker(history: list[tuple[str, object]]) -> None:
    force, now = Workforce("me", POLICY), 0.0
    running: list[Attempt] = []
    for worker in reversed(NAMES[:3]):
        force.membership.heard(
            Heartbeat(worker, 1, 0.0, tuple(ModelState(m, "warm") for m in MODELS), 0, 0, 8, False), 0.0
        )
        force.changed(worker)
    for number, (kind, what) in enumerate(history):
        match kind, what:
            case "heard", Heartbeat() as heartbeat:
                changes = force.membership.heard(heartbeat, now)
                force.changed(heartbeat.worker)
            case "unreachable", str(worker):
                changes = force.membership.unreachable(worker, now)
            case "pass", float(seconds):
                now += seconds
                changes = force.membership.sweep(now)
            case "pardon", None:
                force.pardon(now)
                continue
            case "end", (int(index), str(outcome)) if running:
                attempt = running.pop(index % len(running))
                if outcome == "completed":
                    force.succeeded(attempt, now)
                elif outcome == "failed":
                    force.failed(attempt, Code.STREAM_STALLED, now)
                force.ended(attempt, outcome, Code.STREAM_STALLED if outcome == "failed" else "")
                continue
            case "ask", tuple() as ask:
                entry = _entry(number, ask)
                chosen, _ = force.pick(entry, ask[4], now)
                assert chosen == _pick(force, entry, ask[4])
                assert force.is_only_full(entry) == _is_only_full(force, entry)
                if chosen is not None:
                    running.append(entry.begin_attempt(chosen, 1, now))
                    force.began(running[-1], now)
                continue
            case _:
                continue
        for change in changes:
            if change.forgotten or change.liveness is Liveness.DEAD:
                for attempt in [one for one in running if one.worker == change.worker]:
                    running.remove(attempt)
                    force.ended(attempt, "failed", Code.WORKER_LOST)
            if change.forgotten:
                force.forget(change.worker)
            else:
                force.changed(change.worker)


def test_what_a_breaker_holds_back_is_asked_first_once_it_is_ripe() -> None:
    force = Workforce("me", POLICY)
    for name in NAMES[:2]:
        force.membership.heard(Heartbeat(name, 1, 0.0, (ModelState("small", "warm"),), 0, 0, 8, False), 0.0)
        force.changed(name)
    ask = ("small", 0, "", (), None)
    first, _ = force.pick(_entry(1, ask), None, 0.0)
    assert first == NAMES[0]
    attempt = _entry(1, ask).begin_attempt(first, 1, 0.0)
    force.began(attempt, 0.0)
    force.failed(attempt, Code.STREAM_STALLED, 0.0)
    force.ended(attempt, "failed", Code.STREAM_STALLED)
    assert force.pick(_entry(2, ask), NAMES[0], 0.5)[0] == NAMES[1]
    probe, commands = force.pick(_entry(3, ask), None, 1.0)
    assert probe == NAMES[0]
    assert len(commands) == 1
