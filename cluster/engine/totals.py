"""EngineTotals: what an engine has done so far, and in an interval."""

import msgspec
from mlx_lm.generate_utils import BatchStats


class EngineTotals(msgspec.Struct, frozen=True):
    """What the engine has done since it started. None of these ever decreases.

    steps: decode steps. prefill_tokens lacks the last token of each prompt: it is part of the first decode step.
    """

    steps: int = 0
    decode_tokens: int = 0
    decode_s: float = 0.0
    prefill_tokens: int = 0
    prefill_s: float = 0.0

    def plus(self, stats: BatchStats) -> "EngineTotals":
        """These totals and the work of one more interval."""
        return EngineTotals(
            steps=self.steps + stats.generation_steps,
            decode_tokens=self.decode_tokens + stats.generation_tokens,
            decode_s=self.decode_s + stats.decode_time,
            prefill_tokens=self.prefill_tokens + stats.prompt_tokens,
            prefill_s=self.prefill_s + stats.prompt_time,
        )

    def minus(self, earlier: "EngineTotals") -> "EngineTotals":
        """The work since then."""
        return EngineTotals(
            steps=self.steps - earlier.steps,
            decode_tokens=self.decode_tokens - earlier.decode_tokens,
            decode_s=self.decode_s - earlier.decode_s,
            prefill_tokens=self.prefill_tokens - earlier.prefill_tokens,
            prefill_s=self.prefill_s - earlier.prefill_s,
        )
