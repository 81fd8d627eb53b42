"""Ways of doing the same thing, compared in one run: who gets which of the same seeded requests, and when."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from cluster.protocol import Token
from workloads.lengths import draw_length, length_limits
from workloads.plan import ClosedSegment, LoadPlan
from workloads.schedule import REQUESTS_MAX, ScheduledRequest
from workloads.spec import Positive, WorkloadSpec
from workloads.streams import Stream, stream
from workloads.vocabulary import PromptVocabulary

AWAY = "away"
"""The worker of an arm whose requests go to another worker than the one that holds their session's cache."""

_PROMPTS_MAX = 64
"""A closed block takes so many prompts in turn: every one of them needs a reference completion."""
_PRIMING_TOKENS = 1
"""Of the answer to a priming turn. What the model says cannot be planned, so an answer would not be a shared prefix."""
_PIECE_TOKENS = 256
_TURNOVER = 6.0
"""A closed block is planned for so many times the measured capacity. That is of all workers at once, which may share a
small host: one of them alone, with a larger batch, has made two and a half times as much."""

_Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
_Pause = Annotated[float, msgspec.Meta(ge=0, le=86_400)]


class ArmSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One way of doing the same thing.

    worker: whose requests these are: empty where routing decides, a worker's name, or `away`, for any other worker than
    the one that the session's earlier turn was sent to. controller: the only one that its requests are given to, by
    generators of its own; then every arm has one. prefix: `fresh` puts content never used before in place of the
    session's earlier turn, of the same length. policy: laid over the experiment's, for the arm's own controller and its
    generators, else for its own worker; one of them it must name. before: what becomes of its worker before each block:
    `restart` its process, `evict` its model, `prewarm` it. closed: its blocks keep so many requests in flight.
    """

    worker: str = ""
    controller: str = ""
    prefix: Literal["kept", "fresh"] = "kept"
    policy: dict[str, Any] = {}
    before: tuple[Literal["restart", "evict", "prewarm"], ...] = ()
    closed: Positive | None = None


class ComparisonSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the arms share the phase in which they are compared.

    by: `sessions`: every session belongs to one arm, and all arms run at once, under a load light enough for them not
    to feel each other. A session is primed by a turn whose prompt has a length out of `prefix_tokens`; after `think_s`
    its next turn, which begins with that prompt, is what is measured. `blocks`: one arm at a time for `block_s`, in
    seeded ABBA order, with `pause_s` before each block for the last one to drain and for what its worker does before.
    Of a block the first `settle_s` do not count.
    requests: of one block, evenly spread; None: as many as the workload's rate makes. Closed arms have none.
    """

    phase: str = "measure"
    by: Literal["sessions", "blocks"] = "sessions"
    block_s: _Seconds = 5.0
    pause_s: _Seconds = 1.0
    settle_s: _Pause = 0.0
    think_s: _Seconds = 2.0
    prefix_tokens: tuple[Positive, Positive] = (64, 1_024)
    requests: Positive | None = None


class Block(msgspec.Struct, frozen=True):
    """A stretch that belongs to one arm. Blocks of different arms with one number are a pair.

    Seconds since the load began: from prepare_s on its worker gets ready, at start_s its requests begin, from counts_s
    on they count, at stop_s they end.
    """

    number: int
    arm: str
    prepare_s: float
    start_s: float
    counts_s: float
    stop_s: float


class ArmsPlan(msgspec.Struct, frozen=True):
    """What the phase of a comparison asks, and its blocks in order of time; by sessions there are none."""

    load: LoadPlan
    blocks: tuple[Block, ...] = ()


class Offer(msgspec.Struct, frozen=True):
    """What a comparison is offered to and for how long. Seconds since the load began, requests per second.

    capacity_per_s: what the cluster can do at most, so that no closed block runs dry. generators: how many share the
    load.
    """

    start_s: float
    stop_s: float
    rate_per_s: float
    capacity_per_s: float
    context_max_tokens: int
    workers: Sequence[str]
    generators: int = 1


class ArmsTask(msgspec.Struct, frozen=True):
    """What a comparison is planned from. seed: not negative."""

    arms: Mapping[str, ArmSpec]
    comparison: ComparisonSpec
    spec: WorkloadSpec
    offer: Offer
    seed: int
    vocabulary: PromptVocabulary

    def random(self, *rounds: int) -> np.random.Generator:
        """The random stream of the whole comparison, or of one round of it."""
        return stream(self.seed, Stream.ARMS, *rounds)


def arm_of_generator(arms: Mapping[str, ArmSpec], number: int) -> str:
    """Whose requests a generator asks; empty where the arms have no controllers of their own and share all of them."""
    names = [name for name, arm in arms.items() if arm.controller]
    return names[number % len(names)] if names else ""


def plan_arms(task: ArmsTask) -> ArmsPlan:
    """The requests of all arms. The n-th session or block of every arm asks the same, whatever the order.

    Raises ValueError where the context is too short, or where the phase is too short for one round of all arms.
    """
    spec, comparison, markers = task.spec, task.comparison, task.vocabulary.markers
    fixed = len(markers.before_first) + 2 * len(markers.before_reply) + len(markers.before_next) + _PRIMING_TOKENS
    longest = fixed + length_limits(spec.prompt_tokens)[1] + length_limits(spec.output_tokens)[1]
    if comparison.by == "sessions":
        longest += comparison.prefix_tokens[1]
    if longest > task.offer.context_max_tokens:
        raise ValueError(f"the longest prompt and its answer take {longest} tokens of {task.offer.context_max_tokens}")
    return _by_sessions(task) if comparison.by == "sessions" else _by_blocks(task)


def _by_sessions(task: ArmsTask) -> ArmsPlan:
    """Rounds of one session per arm: same lengths and contents, same home, each arm's place in the round seeded."""
    arms, offer, think_s = task.arms, task.offer, task.comparison.think_s
    spacing_s = 2 / offer.rate_per_s
    room_s = offer.stop_s - offer.start_s - think_s
    rounds = int(room_s / (spacing_s * len(arms)))
    if rounds < 1:
        raise ValueError(f"{room_s:g} s are too short for one session of each of {len(arms)} arms")
    if 2 * rounds * len(arms) > REQUESTS_MAX:
        raise ValueError(f"{offer.rate_per_s:g}/s for {room_s:g} s is more than {REQUESTS_MAX} requests")
    random = task.random()
    lengths = _spread(task.comparison.prefix_tokens, rounds, random)
    requests: list[ScheduledRequest] = []
    for number, order in zip(range(rounds), _orders(list(arms), random), strict=False):
        talk = _Talk(task.spec, lengths[number], task.random(number), task.vocabulary)
        home = int(random.integers(len(offer.workers)))
        other = (home + int(random.integers(1, max(2, len(offer.workers))))) % len(offer.workers)
        for place, arm in enumerate(order):
            slot = number * len(arms) + place + float(random.random())
            at_s = offer.start_s + slot * spacing_s
            worker = arms[arm].worker
            worker = offer.workers[other] if worker == AWAY else worker
            requests += _session(number, arm, arms[arm], talk, offer.workers[home], worker, at_s, think_s)
    requests.sort(key=lambda request: request.intended_s)
    return ArmsPlan(LoadPlan(tuple(requests)))


class _Talk:
    """What is said in the sessions of one round. A prefix is the whole prompt of a priming turn."""

    def __init__(
        self, spec: WorkloadSpec, prefix_tokens: int, random: np.random.Generator, vocabulary: PromptVocabulary
    ) -> None:
        markers = vocabulary.markers
        said = max(1, prefix_tokens - len(markers.before_first) - len(markers.before_reply))
        self.max_tokens = draw_length(spec.output_tokens, random)
        rest = (
            *vocabulary.content(random, _PRIMING_TOKENS),
            *markers.before_next,
            *vocabulary.content(random, draw_length(spec.prompt_tokens, random)),
            *markers.before_reply,
        )
        self.primed, fresh = (
            (*markers.before_first, *_content(vocabulary, random, said), *markers.before_reply) for _ in range(2)
        )
        self.asked: dict[str, tuple[Token, ...]] = {"kept": (*self.primed, *rest), "fresh": (*fresh, *rest)}


def _content(vocabulary: PromptVocabulary, random: np.random.Generator, count: int) -> tuple[Token, ...]:
    """Long texts in pieces: a vocabulary writes a word per token, and a tokenizer complains about what is not used."""
    pieces = [min(_PIECE_TOKENS, count - start) for start in range(0, count, _PIECE_TOKENS)]
    return tuple(token for piece in pieces for token in vocabulary.content(random, piece))


def _session(
    number: int, arm: str, spec: ArmSpec, talk: _Talk, home: str, worker: str, at_s: float, think_s: float
) -> tuple[ScheduledRequest, ScheduledRequest]:
    """The priming turn, which no arm counts, and the turn that is measured."""
    session, prompt = f"{arm}-{number}", f"a{number}"
    primed = ScheduledRequest(
        f"{session}-0", at_s, session, 0, f"{prompt}-primed", talk.primed, _PRIMING_TOKENS, worker=home
    )
    measured = ScheduledRequest(
        f"{session}-1",
        at_s + think_s,
        session,
        1,
        f"{prompt}-{spec.prefix}",
        talk.asked[spec.prefix],
        talk.max_tokens,
        arm,
        worker,
        number,
    )
    return primed, measured


def _by_blocks(task: ArmsTask) -> ArmsPlan:
    """Rounds of one block per arm, in ABBA order."""
    arms, offer, comparison = task.arms, task.offer, task.comparison
    each_s = comparison.pause_s + comparison.block_s
    rounds = int((offer.stop_s - offer.start_s) / (each_s * len(arms)) + 1e-9)
    if rounds < 1:
        raise ValueError(
            f"{offer.stop_s - offer.start_s:g} s are too short for one block of each of {len(arms)} arms, "
            f"which take {each_s * len(arms):g} s"
        )
    opened: list[ScheduledRequest] = []
    closed: list[ClosedSegment] = []
    blocks: list[Block] = []
    prepare_s = offer.start_s
    for number, order in zip(range(rounds), _orders(list(arms), task.random()), strict=False):
        prompts = _prompts(task.spec, task.random(number), task.vocabulary)
        for arm in order:
            start_s = prepare_s + comparison.pause_s
            block = Block(number, arm, prepare_s, start_s, start_s + comparison.settle_s, start_s + comparison.block_s)
            blocks.append(block)
            if (in_flight := arms[arm].closed) is None:
                wanted = comparison.requests or max(1, round(offer.rate_per_s * comparison.block_s))
                gap_s = comparison.block_s / wanted
                times = [start_s + place * gap_s for place in range(wanted)]
                opened += _block_requests(task, block, times, prompts)
            else:
                most = in_flight + int(_TURNOVER * offer.capacity_per_s * comparison.block_s)
                planned = _block_requests(task, block, [start_s] * most, prompts)
                name = f"{arm}-{number}"
                closed.append(ClosedSegment(name, start_s, block.stop_s, in_flight, tuple(planned)))
            prepare_s = block.stop_s
    if len(opened) + sum(len(segment.requests) for segment in closed) > REQUESTS_MAX:
        raise ValueError(f"the blocks of the comparison could take more than {REQUESTS_MAX} requests")
    return ArmsPlan(LoadPlan(tuple(opened), tuple(closed)), tuple(blocks))


def _prompts(
    spec: WorkloadSpec, random: np.random.Generator, vocabulary: PromptVocabulary
) -> list[tuple[tuple[Token, ...], int]]:
    """Single questions with their output caps, the same for all arms of a round."""
    markers, prompts = vocabulary.markers, []
    for _ in range(_PROMPTS_MAX):
        message = vocabulary.content(random, draw_length(spec.prompt_tokens, random))
        prompts.append(
            ((*markers.before_first, *message, *markers.before_reply), draw_length(spec.output_tokens, random))
        )
    return prompts


def _block_requests(
    task: ArmsTask, block: Block, times_s: Sequence[float], prompts: Sequence[tuple[tuple[Token, ...], int]]
) -> list[ScheduledRequest]:
    """In turn over those generators that ask for the arm, where not every one may."""
    worker, generators = task.arms[block.arm].worker, _own_generators(task, block.arm)
    requests = []
    for place, at_s in enumerate(times_s):
        prompt, max_tokens = prompts[place % len(prompts)]
        name = f"{block.arm}-{block.number}-{place}"
        prompt_id = f"b{block.number}-{place % len(prompts)}"
        generator = generators[place % len(generators)] if generators else None
        requests.append(
            ScheduledRequest(
                name, at_s, name, 0, prompt_id, prompt, max_tokens, block.arm, worker, block.number, generator
            )
        )
    return requests


def _own_generators(task: ArmsTask, arm: str) -> list[int]:
    """The generators that ask for this arm alone; empty where all ask for all arms."""
    return [number for number in range(task.offer.generators) if arm_of_generator(task.arms, number) == arm]


def _orders(arms: list[str], random: np.random.Generator) -> Iterator[list[str]]:
    """Without end: a seeded order, then its reverse, so that what drifts steadily meets all arms alike."""
    while True:
        order = [arms[place] for place in random.permutation(len(arms))]
        yield order
        yield order[::-1]


def _spread(inclusive: tuple[int, int], rounds: int, random: np.random.Generator) -> list[int]:
    """One length per round: equal steps of the logarithm over the whole range, in seeded order."""
    least, most = np.log(inclusive[0]), np.log(inclusive[1])
    steps = (np.arange(rounds) + 0.5) / rounds
    lengths = np.clip(np.round(np.exp(least + (most - least) * steps)), *inclusive).astype(int)
    return [int(length) for length in random.permutation(lengths)]
