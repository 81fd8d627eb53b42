"""SessionCache: which caches of finished requests the engine keeps, and which of them a new request goes on from.

The arrays stay in the engine; here are their numbers, the tokens that they stand for, and their sizes.
"""

from collections import OrderedDict

import msgspec

from cluster.policy import MemoryPolicy
from cluster.protocol import Token
from cluster.worker.prefix_tree import PrefixTree

ENTRIES_MAX = 1_024
"""How many caches are kept at most, however small they are."""


class _Entry(msgspec.Struct, frozen=True):
    model: str
    session: str
    tokens: tuple[Token, ...]
    size_bytes: int


class SessionCache:
    """Kept caches within a limit, and within a smaller one for each session, so that no session evicts all others.

    Requests without a session share one whose name is empty. The least recently used are evicted first.
    """

    def __init__(self, policy: MemoryPolicy) -> None:
        self._policy = policy
        self._session_bytes_max = int(policy.session_share_max * policy.cache_bytes_max)
        # All in order of use, the entries of each session too, and the sessions in order of their last request.
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._sessions: OrderedDict[str, OrderedDict[int, None]] = OrderedDict()
        self._session_bytes: dict[str, int] = {}
        self._trees: dict[str, PrefixTree] = {}
        self._turn = 0
        self._told: dict[str, int] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def enabled(self) -> bool:
        """Whether caches are kept at all."""
        return self._policy.cache_bytes_max > 0

    def find(self, model: str, session: str, tokens: tuple[Token, ...]) -> tuple[int, int] | None:
        """The cache that shares the longest beginning with `tokens`, and how many tokens of it can be used.

        Always fewer than all: the engine needs one to compute the next from. A cache that is found counts as used.
        """
        if session in self._sessions:
            self._sessions.move_to_end(session)
        tree = self._trees.get(model)
        shared, numbers = tree.longest(tokens[:-1]) if tree is not None else (0, [])
        if not shared:
            return None
        own = self._sessions.get(session, OrderedDict[int, None]())
        # Both dicts are in order of use, so the last one that matches is the one used last.
        matching = dict.fromkeys(numbers)
        number = next((number for number in reversed(own) if number in matching), None)
        if number is None:
            number = next(number for number in reversed(self._entries) if number in matching)
        self._use(number)
        return number, shared

    def keep(self, number: int, model: str, session: str, tokens: tuple[Token, ...], size_bytes: int) -> list[int]:
        """Take in the cache of a finished request; the numbers of those to be dropped, perhaps its own."""
        if not self.enabled or not tokens or size_bytes > self._session_bytes_max:
            return [number]
        self._entries[number] = _Entry(model, session, tokens, size_bytes)
        self._sessions.setdefault(session, OrderedDict())[number] = None
        self._session_bytes[session] = self._session_bytes.get(session, 0) + size_bytes
        self.size_bytes += size_bytes
        self._trees.setdefault(model, PrefixTree()).add(number, tokens)
        self._use(number)
        dropped = [other for other in self._trees[model].prefixes(tokens) if self._replaces(number, other)]
        for other in dropped:
            self._forget(other)
        while self._session_bytes[session] > self._session_bytes_max:
            dropped.append(self._forget(next(iter(self._sessions[session]))))
        while self.size_bytes > self._policy.cache_bytes_max or len(self._entries) > ENTRIES_MAX:
            dropped.append(self._forget(next(iter(self._entries))))
        return dropped

    def evict(self) -> int | None:
        """Forget the least recently used cache; its number, None when there is none."""
        return self._forget(next(iter(self._entries))) if self._entries else None

    def forget_model(self, model: str) -> None:
        """A model leaves the engine, and its caches with it."""
        for number in [number for number, entry in self._entries.items() if entry.model == model]:
            self._forget(number)

    def tell(self) -> tuple[str, ...]:
        """Names of some sessions with a cache here: half of them those of the last requests, the others in turn."""
        names = [session for session in reversed(self._sessions) if session]
        told_max = self._policy.sessions_told_max
        if len(names) <= told_max:
            return tuple(names)
        recent, others = names[: told_max // 2], names[told_max // 2 :]
        others.sort(key=lambda session: self._told.get(session, 0))
        self._turn += 1
        told = recent + others[: told_max - len(recent)]
        for session in told:
            self._told[session] = self._turn
        return tuple(told)

    def _replaces(self, number: int, other: int) -> bool:
        return other != number and self._entries[other].session == self._entries[number].session

    def _use(self, number: int) -> None:
        session = self._entries[number].session
        self._entries.move_to_end(number)
        self._sessions[session].move_to_end(number)

    def _forget(self, number: int) -> int:
        entry = self._entries.pop(number)
        self.size_bytes -= entry.size_bytes
        self._session_bytes[entry.session] -= entry.size_bytes
        self._trees[entry.model].remove(number, entry.tokens)
        del self._sessions[entry.session][number]
        if not self._sessions[entry.session]:
            del self._sessions[entry.session], self._session_bytes[entry.session]
            self._told.pop(entry.session, None)
        return number
