"""The load as a table: every request with its time and its prompt, made once, before anything runs (open loop)."""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

import msgspec
import pyarrow as pa

from analysis.tables import SCHEDULE_SCHEMA
from cluster.policy import WorkerPolicy
from cluster.protocol import Token
from workloads.arrivals import (
    Profile,
    Units,
    arrival_times,
    constant_units,
    expected_requests,
    gamma_units,
    overlay,
    poisson_units,
    workload_profile,
)
from workloads.spec import WorkloadSpec
from workloads.streams import Stream, stream
from workloads.vocabulary import PromptVocabulary

REQUESTS_MAX = 1_000_000
_BLOCK = 1024


class ScheduledRequest(msgspec.Struct, frozen=True):
    """One request of the plan. `intended_s` counts from the start of the load; `turn` counts from 0 in its chat.

    arm: of a comparison, empty for what no arm counts. worker: the wished one, empty where routing decides. block:
    which block of the comparison it belongs to, counted from 0; requests of different arms with the same number are a
    pair. -1: none.
    """

    request_id: str
    intended_s: float
    session_id: str
    turn: int
    prompt_id: str
    prompt: tuple[Token, ...]
    max_tokens: int
    arm: str = ""
    worker: str = ""
    block: int = -1


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
    (not negative), the spec and the vocabulary alone. Prompt ids name a prompt among schedules that share these three.
    context_max_tokens: bound of prompt plus output cap; a chat that outgrows it forgets its oldest messages.
    profile: stretches of the load, as factors of `rate_per_s`, in place of what the workload itself says of that time
    (see workloads.arrivals); what lies beyond `duration_s` is cut off.

    Raises ValueError when the rate or duration is not positive, when there would be more than REQUESTS_MAX requests,
    or when a single message can exceed the context.
    """
    if not (rate_per_s > 0 and duration_s > 0):
        raise ValueError(f"expected a positive rate and duration, got {rate_per_s:g}/s for {duration_s:g} s")
    shape = [part for part in overlay(workload_profile(spec, duration_s), profile) if part.start_s < duration_s]
    shape = [part if part.end_s <= duration_s else part.between(part.start_s, duration_s) for part in shape]
    if expected_requests(shape, rate_per_s) > REQUESTS_MAX:
        raise ValueError(f"{rate_per_s:g}/s for {duration_s:g} s is more than {REQUESTS_MAX} requests")
    markers = vocabulary.markers
    alone = len(markers.before_first) + spec.prompt_tokens[1] + len(markers.before_reply) + spec.output_tokens[1]
    if alone > context_max_tokens:
        raise ValueError(f"one message and its answer can take {alone} tokens, the context holds {context_max_tokens}")
    turns = _turns(spec, seed, vocabulary, context_max_tokens)
    times = arrival_times(_units(spec, seed), rate_per_s, shape)
    return [
        ScheduledRequest(
            request_id=f"r{number:06d}",
            intended_s=time_s,
            session_id=f"s{turn.chat}",
            turn=turn.turn,
            prompt_id=f"s{turn.chat}t{turn.turn}",
            prompt=turn.prompt,
            max_tokens=turn.max_tokens,
        )
        for number, (time_s, turn) in enumerate(zip(times, turns, strict=False))
    ]


class _Turn(msgspec.Struct, frozen=True):
    chat: int
    turn: int
    prompt: tuple[Token, ...]
    max_tokens: int


class _Chat:
    """One conversation, whose answers are scripted: what the model really says does not change what comes next."""

    def __init__(
        self, chat: int, spec: WorkloadSpec, seed: int, vocabulary: PromptVocabulary, context_max_tokens: int
    ) -> None:
        self._chat = chat
        self._spec = spec
        self._vocabulary = vocabulary
        self._context_max_tokens = context_max_tokens
        self._random = stream(seed, Stream.CONTENT, chat)
        self._past: deque[tuple[Token, ...]] = deque()
        self._past_tokens = 0
        self.turns = 0

    def next_turn(self) -> _Turn:
        """The prompt of the next request. The scripted answer to it is as long as its output cap."""
        markers = self._vocabulary.markers
        message = self._draw(self._spec.prompt_tokens)
        max_tokens = self._uniform(self._spec.output_tokens)
        asked = (*message, *markers.before_reply)
        room = self._context_max_tokens - max_tokens - len(markers.before_first) - len(asked)
        while self._past_tokens > room:
            self._past_tokens -= len(self._past.popleft())
        prompt = (*markers.before_first, *chain.from_iterable(self._past), *asked)
        reply = self._vocabulary.content(self._random, max_tokens)
        exchange = (*asked, *reply, *markers.before_next)
        self._past.append(exchange)
        self._past_tokens += len(exchange)
        turn = _Turn(self._chat, self.turns, prompt, max_tokens)
        self.turns += 1
        return turn

    def _draw(self, length: tuple[int, int]) -> tuple[Token, ...]:
        return self._vocabulary.content(self._random, self._uniform(length))

    def _uniform(self, inclusive: tuple[int, int]) -> int:
        return int(self._random.integers(inclusive[0], inclusive[1], endpoint=True))


def _turns(spec: WorkloadSpec, seed: int, vocabulary: PromptVocabulary, context_max_tokens: int) -> Iterator[_Turn]:
    """Turns without end: each of a running chat chosen at random. A chat that is over makes room for a new one."""
    choices = stream(seed, Stream.SESSIONS)
    chats = [_Chat(number, spec, seed, vocabulary, context_max_tokens) for number in range(spec.sessions)]
    begun = spec.sessions
    while True:
        for place in choices.integers(0, spec.sessions, size=_BLOCK).tolist():
            yield chats[place].next_turn()
            if chats[place].turns == spec.turns_max:
                chats[place] = _Chat(begun, spec, seed, vocabulary, context_max_tokens)
                begun += 1


def _units(spec: WorkloadSpec, seed: int) -> Units:
    random = stream(seed, Stream.ARRIVALS)
    if spec.arrivals == "constant":
        return constant_units()
    if spec.arrivals == "gamma":
        assert spec.burstiness is not None
        return gamma_units(random, spec.burstiness)
    return poisson_units(random)


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
    """One list per generator, each in order of time. A session stays with one generator. Raises ValueError below 1."""
    if generators < 1:
        raise ValueError(f"expected at least one generator, got {generators}")
    parts: list[list[ScheduledRequest]] = [[] for _ in range(generators)]
    owners: dict[str, int] = {}
    for request in schedule:
        owner = owners.setdefault(request.session_id, len(owners) % generators)
        parts[owner].append(request)
    return parts
