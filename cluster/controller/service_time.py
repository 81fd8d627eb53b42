"""ServiceTimes: how long an attempt takes at the moment, so that nobody works for a caller who cannot be helped."""

from cluster.controller.ledger import Attempt, Entry

_MEAN_GAIN = 1 / 8
_DEVIATION_GAIN = 1 / 4
_DEVIATIONS = 4
"""Jacobson, Congestion avoidance and control, SIGCOMM (1988), appendix A: what all but a few will not exceed."""


class _Times:
    __slots__ = ("deviation_s", "mean_s")

    def __init__(self, first_s: float) -> None:
        self.mean_s = first_s
        self.deviation_s = first_s / 2


class ServiceTimes:
    """By model, from an attempt's dispatch to its end. Times in the controller's clock, seconds.

    In a line that is as long as the deadline allows, every request comes to a worker with hardly any time left, all
    work on it is thrown away at its deadline, and nobody is served although everybody works. So the controller asks
    here first.
    """

    def __init__(self) -> None:
        self._models: dict[str, _Times] = {}
        """Of models that have completed something: no more than there are."""

    def completed(self, model: str, attempt: Attempt, now: float) -> None:
        """An attempt has made its completion."""
        self._observe(model, now - attempt.begun_s)

    def expired(self, model: str, attempt: Attempt, now: float) -> None:
        """The deadline came first: it would have taken longer than this."""
        times = self._models.get(model)
        lived_s = now - attempt.begun_s
        if times is not None and lived_s > times.mean_s:
            self._observe(model, lived_s)

    def is_hopeless(self, entry: Entry, now: float) -> bool:
        """Whether a request on which nothing has been spent yet would most likely not be finished in time."""
        times = self._models.get(entry.submit.model)
        if times is None or entry.tokens:
            return False
        return now + times.mean_s + _DEVIATIONS * times.deviation_s > entry.deadline_s

    def _observe(self, model: str, took_s: float) -> None:
        times = self._models.get(model)
        if times is None:
            self._models[model] = _Times(took_s)
            return
        error_s = took_s - times.mean_s
        times.mean_s += _MEAN_GAIN * error_s
        times.deviation_s += _DEVIATION_GAIN * (abs(error_s) - times.deviation_s)
