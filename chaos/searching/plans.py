"""Random plans: which faults strike whom, when and for how long, under which load, in a cluster of which size.

Hypothesis draws them and makes a plan that breaks something as small as it can: fewer faults, fewer nodes, shorter and
earlier strikes, less load.
"""

from typing import Any

import msgspec
from hypothesis import reject
from hypothesis import strategies as st
from msgspec.structs import replace

from chaos import faults
from chaos.experiment import BROKER, ClusterSpec, Experiment, FaultSpec, GuardSpec, PhaseSpec, Trigger
from chaos.faults.terms import Terms
from chaos.resolve import refusal
from cluster.engine.timed import StepCosts
from workloads.spec import WorkloadSpec

FAULTS_MAX = 3
_START_S_MAX = 10
_SAFETY_S = 40.0
"""How long faults may strike at most; a plan takes no longer than its own need."""
_CALM_S = 8.0
"""Of the liveness phase, beyond the recovery limit."""
_BASELINE, _SAFETY, _LIVENESS = "baseline", "fault", "recovery"
_STRUCK_BY_DESIGN = ("wrong_token",)
"""Kinds that break an invariant on purpose."""
_DURATION_MAX_S = 28
"""Longer than a client that counts its attempts to reconnect may last."""
_WITHIN_S = 4.0
_BASELINE_S = 6.0
_LOAD_SHARE_MAX = 0.4
"""Of what the workers can do: more would be refused without any fault."""
_LONG_PROMPT = 512
_STEP_S = (0.01, 0.02)
"""Of engines as slow as real ones: faster ones only offer more of the same in each second of a run."""
_TTL_S = 120.0

Options = dict[str, float | int | str | bool]
_Spike = tuple[int, int, int]
"""Seconds into the phase in which faults strike, seconds that it lasts, and how many times the rate it is."""


class Plan(msgspec.Struct, frozen=True):
    """One thing to try. seed: of load and simulation."""

    experiment: Experiment
    seed: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of its faults, sorted, each once."""
        return tuple(sorted({fault.kind for fault in self.experiment.faults.values()}))


@st.composite
def plans(draw: st.DrawFn, base: Experiment) -> Plan:
    """Plans for the cluster and the policy of an experiment; its own faults and load are not used."""
    cluster = replace(
        base.cluster,
        workers=draw(st.integers(1, 4)),
        controllers=draw(st.sampled_from([1, 1, 2])),
        hosts=1,
        costs=replace(StepCosts(), step_s=draw(st.sampled_from(_STEP_S))),
    )
    bare = replace(
        base,
        cluster=cluster,
        workload=draw(_workloads(cluster, base.policy.worker.batch_max)),
        phases=_phases(_SAFETY_S, base),
        baseline_phase=_BASELINE,
        recovery_phase=_LIVENESS,
        steady_state={name: each for name, each in base.steady_state.items() if each.phase is None},
        expectations={},
        faults={},
        guard=GuardSpec(last_worker=True),
        arms={},
        comparison=None,
    )
    several = draw(st.lists(_fault(bare), min_size=1, max_size=FAULTS_MAX))
    safety_s = max(fault.start_s + fault.duration_s for fault in several) + _WITHIN_S
    healed_s = _BASELINE_S + safety_s - _WITHIN_S
    if any(at_s > healed_s for at_s, _ in bare.workload.steps):
        # What comes of a spike after the heal is not what was left by the faults.
        bare = replace(bare, workload=replace(bare.workload, steps=()))
    whole = replace(
        bare,
        phases=_phases(safety_s, base),
        faults={f"{fault.kind}_{number}": fault for number, fault in enumerate(several, start=1)},
    )
    if refusal(whole) is not None:
        reject()
    return Plan(whole, draw(st.integers(1, 1_000_000)))


def _phases(safety_s: float, base: Experiment) -> dict[str, PhaseSpec]:
    return {
        _BASELINE: PhaseSpec(duration_s=_BASELINE_S),
        _SAFETY: PhaseSpec(duration_s=safety_s),
        _LIVENESS: PhaseSpec(duration_s=base.recovery_limit_s + _CALM_S),
    }


def _workloads(cluster: ClusterSpec, batch_max: int) -> st.SearchStrategy[WorkloadSpec]:
    """Chats, long ones and short ones, at a steady rate or with a spike while faults strike."""

    def made(
        rate: int,
        arrivals: Any,
        sessions: int,
        turns: int,
        prompt: int,
        output: int,
        spike: tuple[int, int, int] | None,
    ) -> WorkloadSpec:
        per_s = max(1.0, min(rate, _LOAD_SHARE_MAX * _capacity_per_s(cluster, batch_max, output)))
        begins_s, lasts_s, factor = spike or (0, 0, 1)
        at_s = _BASELINE_S + begins_s
        return WorkloadSpec(
            arrivals=arrivals,
            rate=f"{per_s:.3g}/s",
            steps=((at_s, float(factor)), (at_s + lasts_s, 1.0)) if spike else (),
            sessions=sessions,
            turns_max=turns,
            prompt_tokens=(4, prompt),
            output_tokens=(4, output),
        )

    return st.builds(
        made,
        st.integers(4, 24),
        st.sampled_from(["constant", "poisson"]),
        st.integers(1, 24),
        st.integers(1, 6),
        st.one_of(st.integers(8, 96), st.just(_LONG_PROMPT)),
        st.integers(8, 48),
        st.one_of(st.none(), st.tuples(st.integers(0, 10), st.integers(1, 4), st.integers(2, 4))),
    )


def _capacity_per_s(cluster: ClusterSpec, batch_max: int, output: int) -> float:
    """Requests per second with full batches, prompts left out."""
    costs = cluster.costs
    step_s = costs.step_s + batch_max * costs.decode_each_s
    return cluster.workers * batch_max / (step_s * (4 + output) / 2)


@st.composite
def _fault(draw: st.DrawFn, bare: Experiment) -> FaultSpec:
    kind = draw(st.sampled_from(_kinds()))
    terms = _terms(kind)
    targets = draw(_targets(terms.roles, bare))
    duration_s = draw(st.integers(max(3, round(terms.duration_s_min + 0.5)), _DURATION_MAX_S))
    spec = FaultSpec(
        kind=kind,
        phase=_SAFETY,
        targets=targets,
        duration_s=float(duration_s),
        ttl_s=_TTL_S,
        start_s=draw(st.integers(0, 2 * _START_S_MAX)) / 2,
        when=draw(_triggers(targets)),
        mode=draw(st.sampled_from(terms.modes)) if terms.modes else None,
        options=draw(_OPTIONS.get(kind, st.just({}))),
    )
    try:
        faults.make(spec, bare.node_names())
    except ValueError:
        reject()
    return spec


def _kinds() -> list[str]:
    """What may strike on one host."""
    return [kind for kind in faults.KINDS if kind not in _STRUCK_BY_DESIGN and "host" not in _terms(kind).roles]


def _terms(kind: str) -> Terms[Any]:
    terms: Terms[Any] = getattr(faults.KINDS[kind], "TERMS")  # noqa: B009 - a kind may have none, ours all have
    return terms


def _targets(roles: tuple[str, ...], bare: Experiment) -> st.SearchStrategy[tuple[str, ...]]:
    by_role: dict[str, list[str]] = {
        "worker": bare.worker_names(),
        "controller": bare.controller_names(),
        "client": [f"client-{number}" for number in range(bare.workload.generators)],
        "broker": [BROKER],
    }
    return st.sampled_from([role for role in roles if role in by_role]).flatmap(
        lambda role: st.lists(st.sampled_from(by_role[role]), min_size=1, unique=True).map(tuple)
    )


def _triggers(targets: tuple[str, ...]) -> st.SearchStrategy[Trigger | None]:
    role = targets[0].partition("-")[0]
    states = {"worker": ["stream_token", "prefill", "queue"], "controller": ["queue", "half_open"]}.get(role, [])
    if not states:
        return st.none()
    return st.one_of(
        st.none(),
        st.builds(
            lambda state, least: Trigger(state=state, within_s=_WITHIN_S, at_least=float(least)),
            st.sampled_from(states),
            st.integers(1, 6),
        ),
    )


def _some(**options: st.SearchStrategy[float | int | str | bool]) -> st.SearchStrategy[Options]:
    return st.fixed_dictionaries(options)


_DIRECTION = st.sampled_from(["both", "upstream", "downstream"])
_SHARE = st.sampled_from([1.0, 0.5, 0.2, 0.05])
_SEED = st.integers(0, 1_000)
_MESSAGE = st.sampled_from(
    ["heartbeat", "report", "dispatch", "submit", "accepted", "delivery", "ping", "pong", "cancel", "withdraw"]
)


def _messages(**options: st.SearchStrategy[float | int | str | bool]) -> st.SearchStrategy[Options]:
    return _some(message=_MESSAGE, share=_SHARE, **options)


def _tens(least: int, most: int) -> st.SearchStrategy[int]:
    return st.integers(least, most).map(lambda value: 10 * value)


_OPTIONS: dict[str, st.SearchStrategy[Options]] = {
    "latency": _some(direction=_DIRECTION, latency_ms=_tens(2, 80)),
    "bandwidth": _some(direction=_DIRECTION, kb_per_s=st.integers(1, 200)),
    "slicer": _some(average_bytes=st.integers(16, 1_024), delay_us=st.integers(1, 50).map(lambda ms: 1_000 * ms)),
    "flap": _some(up_s=st.integers(1, 5), down_s=st.integers(3, 6)),
    "stop": st.one_of(st.just(dict[str, Any]()), _some(drain_limit_s=st.integers(1, 10))),
    "restart": _some(between_s=st.integers(0, 3)),
    "slow_down": _some(factor=st.integers(2, 50)),
    "memory_pressure": _some(share=st.sampled_from([0.9, 0.5, 0.2, 0.05])),
    "fail_attempts": _some(share=_SHARE, seed=_SEED),
    "clock_skew": _some(ahead_s=st.sampled_from([1, 5, 60, 3_600, -1, -5, -60, -3_600])),
    "drop_messages": _messages(),
    "delay_messages": _messages(delay_ms=_tens(1, 500)),
    "duplicate_messages": _messages(copies=st.integers(1, 5)),
    "reorder_messages": _messages(window=st.integers(2, 32), hold_ms=_tens(1, 100)),
    "corrupt_messages": _messages(bytes=st.integers(1, 16)),
}
