"""RetryHandler: whether a failed attempt is followed by another, and after what wait."""

from random import Random

from cluster.errors import TRAITS, Code
from cluster.policy import RetryPolicy


class RetryHandler:
    """Full jitter ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015) under a retry budget.

    Without `jitter` a retry waits the whole ceiling. `retries` counts those that were granted.

    The budget is a token bucket: requests pay in, retries take out, so that retries never multiply the load of a
    cluster that fails as a whole ("The SRE Book", chapter 21).
    """

    def __init__(self, policy: RetryPolicy, random: Random) -> None:
        self._policy = policy
        self._random = random
        self._tokens = float(policy.budget_burst)
        self.retries = 0

    def request_arrived(self) -> None:
        """Each new request earns a share of a retry."""
        self._tokens = min(self._policy.budget_burst, self._tokens + self._policy.budget_share)

    def plan(self, code: Code, tries: int, now: float, deadline_s: float) -> float | None:
        """When to try again (seconds, the caller's clock), or None when the request ends with `code`.

        tries: how often the request has failed, from 1. A granted retry is paid for.
        """
        if not TRAITS[code].retryable or tries >= self._policy.max_attempts or self._tokens < 1:
            return None
        ceiling_s = min(self._policy.backoff_max_s, self._policy.backoff_s * 2 ** (tries - 1))
        retry_s = now + (self._random.uniform(0, ceiling_s) if self._policy.jitter else ceiling_s)
        if retry_s >= deadline_s:
            return None
        self._tokens -= 1
        self.retries += 1
        return retry_s
