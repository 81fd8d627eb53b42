"""How the next token is chosen: as mlx-lm's make_sampler does, but without compiling anything."""

import functools
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from cluster.protocol import Sampling

SAMPLERS_MAX = 64
"""How many samplers are remembered."""

_TEMPERATURE_MIN = 1e-5
"""Below this the most likely token is all that is left, and the division would overflow."""


@functools.lru_cache(maxsize=SAMPLERS_MAX)
def sampler(sampling: Sampling) -> Callable[[Any], Any] | None:
    """From log-probabilities (a row for each sequence) to tokens; None: greedy.

    One object for equal samplings, for a batch that has only one is sampled in one go. mlx-lm compiles its samplers
    with temperature and top_p as constants: each new value would stop all streams until its kernels are built, 0.3 to
    3 s on a CPU. Without that a step takes no longer where the vocabulary is large.
    """
    if sampling.temperature < _TEMPERATURE_MIN:
        return None

    def sample(log_probabilities: Any) -> Any:
        if 0 < sampling.top_p < 1:
            log_probabilities = _most_likely(log_probabilities, sampling.top_p)
        return mx.random.categorical(log_probabilities * (1 / sampling.temperature))

    return sample


def _most_likely(log_probabilities: Any, top_p: float) -> Any:
    """The smallest set of tokens that together have the probability `top_p`; all others become impossible."""
    rising = mx.sort(log_probabilities, axis=-1)
    probabilities = mx.exp(rising.astype(mx.float32))
    above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
    total = above[..., :1] + probabilities[..., :1]
    dropped = mx.sum(above >= top_p * total, axis=-1, keepdims=True)
    least = mx.take_along_axis(rising, dropped, axis=-1)
    return mx.where(log_probabilities < least, -mx.inf, log_probabilities)
