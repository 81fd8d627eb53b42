"""The load as a table: every request with its time and its prompt, made once, before anything runs (open loop)."""

from collections.abc import Iterable, Iterator
from itertools import cycle, islice

import pyarrow as pa
from msgspec.structs import replace

from analysis.tables import SCHEDULE_SCHEMA
from cluster.policy import WorkerPolicy
from cluster.protocol import Token
from workloads.arrivals import (
    Profile,
    Stretch,
    Units,
    arrival_times,
    constant_units,
    expected_requests,
    gamma_units,
    overlay,
    poisson_units,
    workload_profile,
)
from workloads.chats import Chats, Turn
from workloads.lengths import time_limits
from workloads.plugins import plugin_schedule
from workloads.replay import Replay
from workloads.request import PROMPT_TOKENS_MAX, REQUESTS_MAX, ScheduledRequest
from workloads.spec import WorkloadSpec
from workloads.streams import Stream, stream
from workloads.traces import check_length, read_trace, trace_units
from workloads.vocabulary import PromptVocabulary


def build_schedule(
    spec: WorkloadSpec,
    rate_per_s: float,
    duration_s: float,
    seed: int,
    vocabulary: PromptVocabulary,
    *,
    context_max_tokens: int = WorkerPolicy().context_max_tokens,
    profile: Profile = (),
) -> list[ScheduledRequest]:
    """All requests of a load, in order of their time.

    The n-th request has the same chat, turn, prompt and output cap at any rate and duration: they depend on the seed
    (not negative), the spec and the vocabulary alone. (With think times that holds of the n-th chat's turns.) Prompt
    ids name a prompt among schedules that share these three.
    context_max_tokens: bound of prompt plus output cap; a chat that outgrows it forgets its oldest messages.
    profile: stretches of the load, as factors of `rate_per_s`, in place of what the workload itself says of that time
    (see workloads.arrivals); what lies beyond `duration_s` is cut off. A plugin's load takes none.

    Raises ValueError (TraceError, PluginError) when the rate or duration is not positive, when there would be more than
    REQUESTS_MAX requests or PROMPT_TOKENS_MAX tokens, when a single message can exceed the context, or when trace or
    plugin are not what they should be.
    """
    if not (rate_per_s > 0 and duration_s > 0):
        raise ValueError(f"expected a positive rate and duration, got {rate_per_s:g}/s for {duration_s:g} s")
    shape = [part for part in overlay(workload_profile(spec, duration_s), profile) if part.start_s < duration_s]
    shape = [part if part.end_s <= duration_s else part.between(part.start_s, duration_s) for part in shape]
    expected = expected_requests(shape, rate_per_s)
    if expected > REQUESTS_MAX:
        raise ValueError(f"{rate_per_s:g}/s for {duration_s:g} s is more than {REQUESTS_MAX} requests")
    if spec.plugin is not None:
        if profile:
            raise ValueError(f"the plugin {spec.plugin} knows nothing of phases with rates of their own")
        return plugin_schedule(spec.plugin, spec.options, rate_per_s, duration_s, seed, vocabulary, context_max_tokens)
    if spec.think_s is not None:
        timed = _thinking(Chats(spec, seed, vocabulary, context_max_tokens), rate_per_s, duration_s, shape, seed)
    else:
        times = arrival_times(_units(spec, seed, expected), rate_per_s, shape)
        timed = zip(times, _turns(spec, seed, vocabulary, context_max_tokens), strict=False)
    return list(_numbered(timed))


def first_requests(
    spec: WorkloadSpec,
    count: int,
    seed: int,
    vocabulary: PromptVocabulary,
    *,
    context_max_tokens: int = WorkerPolicy().context_max_tokens,
) -> list[ScheduledRequest]:
    """Exactly so many requests of the load, for closed loops and probes: what is asked, whenever it would be.

    All are intended at 0. A trace begins again when it is over, and so does what a plugin makes of as many requests in
    a second, with the same prompts. Raises ValueError as build_schedule does.
    """
    if spec.plugin is None:
        turns = islice(_turns(spec, seed, vocabulary, context_max_tokens), count)
        return list(_numbered((0.0, turn) for turn in turns))
    made = plugin_schedule(spec.plugin, spec.options, float(count), 1.0, seed, vocabulary, context_max_tokens)
    return [
        replace(request, request_id=f"r{number:06d}", intended_s=0.0)
        for number, request in enumerate(islice(cycle(made), count))
    ]


def _numbered(timed: Iterable[tuple[float, Turn]]) -> Iterator[ScheduledRequest]:
    tokens = 0
    for number, (time_s, turn) in enumerate(timed):
        tokens += len(turn.prompt)
        if tokens > PROMPT_TOKENS_MAX:
            raise ValueError(f"the prompts of the load have more than {PROMPT_TOKENS_MAX} tokens together")
        yield ScheduledRequest(
            request_id=f"r{number:06d}",
            intended_s=time_s,
            session_id=turn.session_id,
            turn=turn.turn,
            prompt_id=turn.prompt_id,
            prompt=turn.prompt,
            max_tokens=turn.max_tokens,
        )


def _turns(spec: WorkloadSpec, seed: int, vocabulary: PromptVocabulary, context_max_tokens: int) -> Iterator[Turn]:
    if spec.trace is not None and not spec.trace.times_only:
        return Replay(read_trace(spec.trace), spec.trace, seed, vocabulary, context_max_tokens).turns()
    return Chats(spec, seed, vocabulary, context_max_tokens).side_by_side()


def _units(spec: WorkloadSpec, seed: int, expected: float) -> Units:
    if spec.trace is not None:
        trace = read_trace(spec.trace)
        if not spec.trace.repeat:
            check_length(trace, expected)
        return trace_units(trace, repeat=spec.trace.repeat)
    random = stream(seed, Stream.ARRIVALS)
    if spec.arrivals == "constant":
        return constant_units()
    if spec.burstiness is not None:
        return gamma_units(random, spec.burstiness)
    return poisson_units(random)


def _thinking(
    chats: Chats, rate_per_s: float, duration_s: float, shape: Profile, seed: int
) -> Iterator[tuple[float, Turn]]:
    """The turns of chats that begin at the rate over their number of turns.

    Chats also begin before the load does, at its first rate, as long before as a chat can last; of these only the turns
    within the load are asked, the first as turn 0. Without them the load would grow for as long as chats last.
    """
    spec = chats.spec
    assert spec.think_s is not None
    before_s = (spec.turns_max - 1) * time_limits(spec.think_s)[1]
    begun_per_s = rate_per_s / spec.turns_max
    whole = [Stretch(part.start_s + before_s, part.end_s + before_s, part.factor, part.end) for part in shape]
    if before_s and whole and whole[0].start_s == before_s and whole[0].factor:
        whole.insert(0, Stretch(0.0, before_s, whole[0].factor))
    expected = expected_requests(whole, rate_per_s)
    if expected > REQUESTS_MAX:
        raise ValueError(f"{rate_per_s:g}/s for {duration_s:g} s and {before_s:g} s before are too many requests")
    asked: list[tuple[float, int]] = []
    begins = arrival_times(_units(spec, seed, expected / spec.turns_max), begun_per_s, whole)
    for number, begin_s in enumerate(begins):
        times = (begin_s - before_s + offset_s for offset_s in chats.turn_offsets(number))
        asked += ((time_s, number) for time_s in times if 0 <= time_s < duration_s)
    running = {number: chats.chat(number) for _, number in asked}
    for time_s, number in sorted(asked):
        yield time_s, running[number].next_turn()


def schedule_rows(schedule: Iterable[ScheduledRequest], segment: str = "") -> pa.Table:
    """The schedule as the Arrow table of `schedule.parquet`; `prompt_tokens` is the length of the prompt.

    segment: the closed segment that these requests belong to, empty for an open loop.
    """
    rows = [
        {
            "request_id": request.request_id,
            "intended_s": request.intended_s,
            "session_id": request.session_id,
            "turn": request.turn,
            "prompt_id": request.prompt_id,
            "prompt_tokens": len(request.prompt),
            "max_tokens": request.max_tokens,
            "arm": request.arm,
            "worker": request.worker,
            "block": request.block,
            "segment": segment,
        }
        for request in schedule
    ]
    return pa.Table.from_pylist(rows, schema=SCHEDULE_SCHEMA)


def unique_prompts(schedule: Iterable[ScheduledRequest]) -> dict[str, tuple[tuple[Token, ...], int]]:
    """Prompt id to the prompt and the largest output cap asked of it: what reference completions are needed for."""
    prompts: dict[str, tuple[tuple[Token, ...], int]] = {}
    for request in schedule:
        _, most = prompts.get(request.prompt_id, ((), 0))
        prompts[request.prompt_id] = (request.prompt, max(most, request.max_tokens))
    return prompts


def split(schedule: Iterable[ScheduledRequest], generators: int) -> list[list[ScheduledRequest]]:
    """One list per generator, each in order of time. A session stays with one generator, and what names its
    generator goes there. Raises ValueError below 1.
    """
    if generators < 1:
        raise ValueError(f"expected at least one generator, got {generators}")
    parts: list[list[ScheduledRequest]] = [[] for _ in range(generators)]
    owners: dict[str, int] = {}
    for request in schedule:
        owner = request.generator
        if owner is None:
            owner = owners.setdefault(request.session_id, len(owners) % generators)
        parts[owner].append(request)
    return parts


__all__ = [
    "REQUESTS_MAX",
    "ScheduledRequest",
    "build_schedule",
    "first_requests",
    "schedule_rows",
    "split",
    "unique_prompts",
]
