"""EngineWatch: for how long a worker's engine has owed an answer, whether it has work or not."""

from cluster.node import Command


class EngineWatch:
    """An engine owes news while it has sequences, and an answer to each probe.

    A probe stays open until it is answered: an engine that is stuck owes it also when all its sequences have been taken
    back. Only one is open at a time. Nothing is owed during a load, nor by an engine that has said that it died.
    """

    def __init__(self) -> None:
        self._news_s = 0.0
        self._probing = False
        self._dead = False

    def news(self, now: float) -> None:
        """The engine has told something."""
        self._news_s = now

    def answered(self, now: float) -> list[Command]:
        """The engine has answered the probe. Nothing follows from that."""
        self._probing = False
        self._news_s = now
        return []

    def died(self) -> None:
        """Nothing more is expected of it."""
        self._dead = True

    def given(self, now: float, *, busy: bool) -> None:
        """It gets a sequence. busy: it has some already."""
        if not busy and not self._probing:
            self._news_s = now

    def probe(self, now: float, *, busy: bool) -> bool:
        """Whether it is to be probed now."""
        if self._probing or self._dead:
            return False
        self.given(now, busy=busy)
        self._probing = True
        return True

    def silent_s(self, now: float, *, busy: bool, loading: bool) -> float:
        """Seconds since it last told something, 0 when it owes nothing."""
        owes = (busy or self._probing) and not loading and not self._dead
        return now - self._news_s if owes else 0.0
