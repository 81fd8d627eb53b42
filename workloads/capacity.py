"""From a short closed-loop probe to the rate of the run: how much the cluster can do, and how much to offer it."""

from collections.abc import Iterable

import msgspec

from workloads.spec import Rate, WorkloadSpec

COMPLETIONS_MIN = 8
SHARE_BUSY = 0.9
LONGER = 4
MEASURE_S_MAX = 60.0


class CapacityUnknown(Exception):
    """The probe saw too little to tell the capacity. The message is one line."""


class InfeasibleRate(Exception):
    """The experiment asks for more than the cluster can do. The message is one line."""


class HostTooSlow(Exception):
    """The cluster cannot carry the least rate with which the experiment makes sense. The message is one line."""


class ProbePlan(msgspec.Struct, frozen=True):
    """A closed loop: `in_flight` requests are kept open for `warm_up_s`, then for `measure_s` that count. Seconds."""

    in_flight: int
    warm_up_s: float
    measure_s: float

    @property
    def duration_s(self) -> float:
        """How long new requests are sent, in seconds."""
        return self.warm_up_s + self.measure_s

    def longer(self) -> "ProbePlan | None":
        """For a cluster that completed too little in this one: four times as long, None when that is too long."""
        if LONGER * self.measure_s > MEASURE_S_MAX:
            return None
        return ProbePlan(self.in_flight, LONGER * self.warm_up_s, LONGER * self.measure_s)

    def shares(self, clients: int) -> list[int]:
        """How many of the requests in flight each of so many clients keeps open, as evenly as it goes."""
        each, over = divmod(self.in_flight, clients)
        return [each + (number < over) for number in range(clients)]


class Completion(msgspec.Struct, frozen=True):
    """A request of the probe that completed: when, in seconds since the probe began, and with how many new tokens."""

    ended_s: float
    tokens: int


class Capacity(msgspec.Struct, frozen=True):
    """What the cluster can do, and from how many completions in how many seconds that is known."""

    requests_per_s: float
    tokens_per_s: float
    completions: int
    window_s: float


class ResolvedRate(msgspec.Struct, frozen=True):
    """The rate of a run in requests per second, and one line that says where it comes from."""

    per_s: float
    statement: str


def plan_probe(workers: int, batch_max: int, *, warm_up_s: float = 1.0, measure_s: float = 3.0) -> ProbePlan:
    """Twice as many requests in flight as the workers' batches hold: every batch is full whenever a slot frees up."""
    return ProbePlan(in_flight=2 * batch_max * workers, warm_up_s=warm_up_s, measure_s=measure_s)


def estimate_capacity(completions: Iterable[Completion], plan: ProbePlan) -> Capacity:
    """The rate of completions after the warm-up and before the probe's end.

    The tail, in which nothing new is sent and batches run empty, does not count. Raises CapacityUnknown when fewer
    than COMPLETIONS_MIN requests completed in the window.
    """
    counted = [done for done in completions if plan.warm_up_s < done.ended_s <= plan.duration_s]
    if len(counted) < COMPLETIONS_MIN:
        raise CapacityUnknown(
            f"capacity probe: {len(counted)} requests completed in {plan.measure_s:g} s, "
            f"at least {COMPLETIONS_MIN} are needed to tell a rate; ask for fewer tokens, or take a smaller model"
        )
    return Capacity(
        requests_per_s=len(counted) / plan.measure_s,
        tokens_per_s=sum(done.tokens for done in counted) / plan.measure_s,
        completions=len(counted),
        window_s=plan.measure_s,
    )


def resolve_rate(
    spec: WorkloadSpec, capacity_requests_per_s: float, capacity_tokens_per_s: float | None = None
) -> ResolvedRate:
    """The spec's rate, within its bounds, in requests per second. capacity_tokens_per_s: for the statement only.

    Raises InfeasibleRate when an absolute rate is above the capacity (a share above 100 % asks for overload and gets
    it), HostTooSlow when rate_min is, ValueError when the capacity is not positive.
    """
    if not capacity_requests_per_s > 0:
        raise ValueError(f"expected a positive capacity, got {capacity_requests_per_s:g} requests/s")
    absolute = Rate.parse(spec.rate).per_s
    if absolute is not None and absolute > capacity_requests_per_s:
        measured = share_of_capacity(absolute, capacity_requests_per_s, capacity_tokens_per_s)
        raise InfeasibleRate(f"rate {spec.rate} is {measured}: lower it, add workers, or give a share such as 60%")
    asked = {field: _per_s(text, capacity_requests_per_s) for field, text in _texts(spec).items() if text is not None}
    field, per_s = "rate", asked["rate"]
    if "rate_min" in asked and asked["rate_min"] > per_s:
        field, per_s = "rate_min", asked["rate_min"]
    # A ceiling is a safety limit, so it has the last word.
    if "rate_max" in asked and asked["rate_max"] < per_s:
        field, per_s = "rate_max", asked["rate_max"]
    text = _texts(spec)[field] or ""
    origin = text if field == "rate" else f"{field} {text} instead of {spec.rate}"
    share = per_s / capacity_requests_per_s
    measured = share_of_capacity(per_s, capacity_requests_per_s, capacity_tokens_per_s)
    if share > 1 and field == "rate_min":
        raise HostTooSlow(f"rate_min {text} is {measured}: free this machine, add workers, or lower workload.rate_min")
    statement = f"{per_s:.1f} requests/s ({origin}), {measured}"
    if share > 1:
        statement += "; this is overload: the queue grows for as long as it lasts"
    elif share > SHARE_BUSY:
        statement += f"; above {SHARE_BUSY:.0%} queues grow long and latency says little about the fault"
    return ResolvedRate(per_s, statement + _shape(spec, share))


def _shape(spec: WorkloadSpec, share: float) -> str:
    """How the rate changes over the load, and what of the capacity its highest is."""
    if spec.ramp is not None:
        highest, said = max(spec.ramp), f"from {spec.ramp[0]:g} to {spec.ramp[1]:g} times that"
    elif spec.steps:
        highest = max(factor for _, factor in spec.steps)
        said = f"in {len(spec.steps)} steps of up to {highest:g} times that"
    else:
        return ""
    overload = ", which is overload" if highest * share > 1 else ""
    return f"; {said}, at most {highest * share:.0%} of the capacity{overload}"


def _texts(spec: WorkloadSpec) -> dict[str, str | None]:
    return {"rate": spec.rate, "rate_min": spec.rate_min, "rate_max": spec.rate_max}


def share_of_capacity(per_s: float, requests_per_s: float, tokens_per_s: float | None = None) -> str:
    """What share of the measured capacity an offer of `per_s` requests per second is, as a phrase.

    tokens_per_s: which the probe's requests, alike in length, made at `requests_per_s`.
    """
    said = f"{per_s / requests_per_s:.0%} of the measured capacity of {requests_per_s:.1f} requests/s"
    if tokens_per_s:
        said += f" ({tokens_per_s * per_s / requests_per_s:.0f} of {tokens_per_s:.0f} tokens/s)"
    return said


def _per_s(text: str, capacity_requests_per_s: float) -> float:
    rate = Rate.parse(text)
    if rate.per_s is not None:
        return rate.per_s
    assert rate.share is not None
    return rate.share * capacity_requests_per_s
