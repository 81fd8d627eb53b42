"""What the requests of a trace ask: prompts as long as recorded, with the recorded beginnings in common."""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain, count

from cluster.protocol import Token
from workloads.chats import Turn
from workloads.spec import TraceSpec
from workloads.streams import Stream, stream
from workloads.traces import Trace, TracedRequest, TraceError
from workloads.vocabulary import PromptVocabulary

_KEPT_BLOCKS_MAX = 4_096
_BY_ID, _BY_SESSION, _BY_REQUEST = 0, 1, 2


class Replay:
    """The turns of a trace. A prompt is one user message: its recorded length, and the chat's markers around it."""

    def __init__(
        self, trace: Trace, spec: TraceSpec, seed: int, vocabulary: PromptVocabulary, context_max_tokens: int
    ) -> None:
        self._trace = trace
        self._spec = spec
        self._seed = seed
        self._vocabulary = vocabulary
        self._context_max_tokens = context_max_tokens
        self._markers = len(vocabulary.markers.before_first) + len(vocabulary.markers.before_reply)
        self._kept: OrderedDict[tuple[int, ...], tuple[Token, ...]] = OrderedDict()

    def turns(self) -> Iterator[Turn]:
        """Every request in order of time, again and again; each time round with other words.

        Raises TraceError for a request that does not fit the context, unless such are cut.
        """
        for passed in count():
            sessions: dict[str | int, int] = {}
            turns: dict[str | int, int] = {}
            for index, request in enumerate(self._trace.requests):
                number = passed * len(self._trace.requests) + index
                input_tokens, max_tokens = self._lengths(request)
                own = request.session or index
                session = sessions.setdefault(own, len(sessions))
                turn = turns[own] = turns.get(own, -1) + 1
                yield Turn(
                    f"p{passed}s{session}",
                    turn,
                    f"t{number}",
                    self._prompt(request, passed, index, session, input_tokens),
                    max_tokens,
                )

    def _lengths(self, request: TracedRequest) -> tuple[int, int]:
        """Tokens of content and of output."""
        room = self._context_max_tokens - self._markers
        content, output = replayed_tokens(request, self._spec)
        if content + output <= room:
            return content, output
        if self._spec.over_context == "refuse" or room < 2:
            what = f"line {request.line}: prompt and output take {content + output + self._markers} tokens"
            advice = "set trace.scale_tokens or trace.over_context"
            raise TraceError(f"{self._trace.name}: {what}, the context holds {self._context_max_tokens}; {advice}")
        output = min(output, max(1, room // 2))
        return min(content, room - output), output

    def _prompt(self, request: TracedRequest, passed: int, index: int, session: int, tokens: int) -> tuple[Token, ...]:
        markers = self._vocabulary.markers
        size = scaled(self._spec.block_tokens, self._spec.scale_tokens)
        needed = -(-tokens // size)
        if request.hash_ids is not None:
            keys = [(_BY_ID, passed, *_words(number)) for number in request.hash_ids[:needed]]
        elif request.session:
            keys = [(_BY_SESSION, passed, session, block) for block in range(needed)]
        else:
            keys = [(_BY_REQUEST, passed, index, block) for block in range(needed)]
        content = tuple(chain.from_iterable(self._block(key, size) for key in keys))[:tokens]
        return (*markers.before_first, *content, *markers.before_reply)

    def _block(self, key: tuple[int, ...], size: int) -> tuple[Token, ...]:
        block = self._kept.get(key)
        if block is None:
            block = self._kept[key] = self._vocabulary.content(stream(self._seed, Stream.BLOCKS, *key), size)
            if len(self._kept) > _KEPT_BLOCKS_MAX:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        return block


def scaled(tokens: int, scale: float) -> int:
    """A recorded number of tokens at a scale; at least 1."""
    return max(1, round(tokens * scale))


def replayed_tokens(request: TracedRequest, spec: TraceSpec) -> tuple[int, int]:
    """How long prompt and output become. Blocks are scaled one by one, so that what is in common remains so."""
    output = scaled(request.output_tokens, spec.scale_tokens)
    if request.hash_ids is None:
        return scaled(request.input_tokens, spec.scale_tokens), output
    whole, rest = divmod(max(1, request.input_tokens) - 1, spec.block_tokens)
    return whole * scaled(spec.block_tokens, spec.scale_tokens) + scaled(rest + 1, spec.scale_tokens), output


def longest_request(trace: Trace, spec: TraceSpec) -> tuple[int, int]:
    """The line of the request that takes most tokens, prompt and output together, and how many."""
    longest = max(trace.requests, key=lambda request: sum(replayed_tokens(request, spec)))
    return longest.line, sum(replayed_tokens(longest, spec))


def _words(number: int) -> tuple[int, int]:
    return number & 0xFFFF_FFFF, number >> 32
