"""What computes the tokens of a live world: MLX, or the timed engine, which only takes the time that its model says."""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from chaos.experiment import ClusterSpec
from chaos.worlds.world import InfrastructureError
from cluster.engine.blas import Blas, find_blas, preload_environment
from cluster.engine.reference import compute, compute_gaps, is_exact
from cluster.engine.timed import StepCosts, completion
from cluster.engine.weights import ModelUnavailable, model_directory
from cluster.protocol import Token
from workloads.vocabulary import ByteVocabulary, PromptVocabulary, TokenizerVocabulary

Prompts = Mapping[str, tuple[tuple[Token, ...], int]]
Cases = Sequence[tuple[Sequence[Token], Sequence[Token]]]


class Computing(Protocol):
    """Its methods may take long, but for `describe`; none of them needs the world to run."""

    costs: StepCosts | None
    """Of a timed engine."""
    exact_tokens: bool
    """Whether greedy tokens equal the reference; known after `prepare`."""

    def prepare(self) -> None:
        """Have the model at hand. Raises InfrastructureError."""

    def preload(self) -> dict[str, str]:
        """Variables that a worker's process needs before it starts."""

    def vocabulary(self) -> PromptVocabulary:
        """How prompts are made. Raises InfrastructureError."""

    def references(self, prompts: Prompts) -> dict[str, list[Token]]:
        """The greedy completion of every prompt."""

    def token_gaps(self, cases: Cases) -> list[list[float]]:
        """How far each delivered token is below the best one, nats."""

    def describe(self) -> dict[str, object]:
        """For `environment.json`."""


def computing(cluster: ClusterSpec) -> Computing:
    """What the experiment's cluster computes with."""
    return MlxComputing(cluster.model) if cluster.engine == "mlx" else TimedComputing(cluster.model, cluster.costs)


class MlxComputing:
    """A real model."""

    costs: StepCosts | None = None

    def __init__(self, model: str) -> None:
        self.exact_tokens = True
        self._model = model
        self._blas: Blas = find_blas()

    def prepare(self) -> None:
        """See Computing."""
        try:
            model_directory(self._model)
            self.exact_tokens = is_exact(self._model)
        except ModelUnavailable as error:
            raise InfrastructureError(str(error)) from error
        except (OSError, ValueError, OverflowError, MemoryError) as error:
            # What a damaged weight file says of its own header can be anything.
            said = " ".join(str(error).split())[:300] or type(error).__name__
            raise InfrastructureError(f"model {self._model} does not load, its files are damaged: {said}") from error

    def preload(self) -> dict[str, str]:
        """See Computing."""
        return preload_environment(self._blas)

    def vocabulary(self) -> TokenizerVocabulary:
        """See Computing."""
        try:
            return TokenizerVocabulary(model_directory(self._model))
        except ValueError as error:
            raise InfrastructureError(str(error)) from error

    def references(self, prompts: Prompts) -> dict[str, list[Token]]:
        """See Computing."""
        return dict(zip(prompts, compute(self._model, list(prompts.values())), strict=True))

    def token_gaps(self, cases: Cases) -> list[list[float]]:
        """See Computing."""
        return compute_gaps(self._model, cases)

    def describe(self) -> dict[str, object]:
        """See Computing."""
        return {
            "engine": "mlx",
            "model": self._model,
            "exact_tokens": self.exact_tokens,
            "blas": {"name": self._blas.name, "note": self._blas.note},
        }


class TimedComputing:
    """No model: the tokens are checksums of what comes before them, and every one of them can be foretold."""

    exact_tokens: bool = True

    def __init__(self, model: str, costs: StepCosts) -> None:
        self.costs: StepCosts | None = costs
        self._model = model
        self._vocabulary = costs.vocabulary

    def prepare(self) -> None:
        """See Computing."""

    def preload(self) -> dict[str, str]:
        """See Computing."""
        return {}

    def vocabulary(self) -> ByteVocabulary:
        """See Computing."""
        return ByteVocabulary()

    def references(self, prompts: Prompts) -> dict[str, list[Token]]:
        """See Computing."""
        return {name: completion(prompt, most, self._vocabulary) for name, (prompt, most) in prompts.items()}

    def token_gaps(self, cases: Cases) -> list[list[float]]:
        """See Computing. There are no probabilities: a token is right or infinitely wrong."""
        return [[math.inf] * len(delivered) for _, delivered in cases]

    def describe(self) -> dict[str, object]:
        """See Computing."""
        costs = self.costs
        assert costs is not None
        return {
            "engine": "timed",
            "engine_costs": {name: getattr(costs, name) for name in costs.__struct_fields__},
            "model": f"none: {self._model} is only a name, no tokens are computed",
            "blas": "none: no tokens are computed",
        }
