"""ModelPreWarmer: which models a worker has in memory, and which it loads next."""

from collections.abc import Sequence

import msgspec

from cluster.errors import Code
from cluster.protocol import ModelState


class ModelOffer(msgspec.Struct, frozen=True):
    """A model that a worker may serve. Higher priorities are loaded first, and unloaded last.

    weights_bytes: what its files hold, the estimate until it has been loaded; 0: unknown.
    """

    model: str
    priority: int = 0
    weights_bytes: int = 0


class _Model:
    """wanted: it is to be loaded although nobody waits for it. used_s: when it was last asked for."""

    __slots__ = (
        "code",
        "kv_bytes_per_token",
        "kv_tokens_step",
        "priority",
        "reason",
        "state",
        "used_s",
        "wanted",
        "weights_bytes",
    )

    def __init__(self, offer: ModelOffer, wanted: bool) -> None:
        self.priority = offer.priority
        self.weights_bytes = offer.weights_bytes
        self.wanted = wanted
        self.kv_bytes_per_token = 0
        self.kv_tokens_step = 1
        self.state = "cold"
        self.reason = ""
        self.code = Code.ENGINE_ERROR
        self.used_s = float("-inf")


class ModelPreWarmer:
    """States of the models (cold, loading, warm, failed). At most one of them loads.

    A model that had to make room stays cold until somebody asks for it: loading it again would only turn out another.
    """

    def __init__(self, offers: tuple[ModelOffer, ...], prewarm: bool) -> None:
        """prewarm: load the offers before anybody asks for them."""
        self._models = {offer.model: _Model(offer, prewarm) for offer in offers}
        self._dead = False
        self.loading: str | None = None
        self.leaving: list[str] = []
        """Models that were told to leave, and are busy or loading."""

    def states(self) -> tuple[ModelState, ...]:
        """All models, in the order in which they became known."""
        return tuple(ModelState(name, model.state) for name, model in self._models.items())

    def state(self, model: str) -> str | None:
        """cold, loading, warm or failed; None for a model that is not ours."""
        known = self._models.get(model)
        return None if known is None else known.state

    def is_warm(self, model: str) -> bool:
        """Whether it can start at once."""
        return self.state(model) == "warm"

    def failure(self, model: str) -> tuple[str, Code]:
        """Of a failed model: why, and what its requests are answered."""
        return self._models[model].reason, self._models[model].code

    def weights_bytes(self, model: str) -> int:
        """What the model takes in memory: known, or what its offer said."""
        return self._models[model].weights_bytes

    def kv_bytes(self, model: str, tokens: int) -> int:
        """What a sequence of so many tokens takes in memory; 0 until the model has been loaded once."""
        known = self._models[model]
        steps = -(-tokens // known.kv_tokens_step)
        return steps * known.kv_tokens_step * known.kv_bytes_per_token

    def asked_for(self, model: str, now: float) -> None:
        """A request for the model has come."""
        self._models[model].used_s = now

    def prewarm(self, model: str, priority: int) -> bool:
        """Have the model warm, before those of lower priority. True when it had failed and gets another chance."""
        if self._dead:
            return False
        known = self._models.setdefault(model, _Model(ModelOffer(model, priority), True))
        known.priority = max(known.priority, priority)
        known.wanted = True
        self._left(model)
        if known.state != "failed":
            return False
        known.state = "cold"
        return True

    def evict(self, model: str) -> None:
        """Have the model leave as soon as nobody waits for it. One that is not in memory, or not ours, is ignored."""
        if self.state(model) in ("warm", "loading") and model not in self.leaving:
            self._models[model].wanted = False
            self.leaving.append(model)

    def ready_to_leave(self, busy: Sequence[str]) -> list[str]:
        """Of those that are to leave, whom nobody keeps."""
        return [model for model in self.leaving if self.is_warm(model) and model not in busy]

    @property
    def may_load(self) -> bool:
        """Whether a load could begin now."""
        return self.loading is None and any(model.state == "cold" for model in self._models.values())

    @property
    def computes(self) -> bool:
        """Whether the engine has a model to compute with and does not load another."""
        return self.loading is None and any(model.state == "warm" for model in self._models.values())

    def next(self, demanded: Sequence[str]) -> str | None:
        """What to load now: what somebody waits for, in the order given, else what is wanted, by priority."""
        if not self.may_load:
            return None
        cold = [name for name, model in self._models.items() if model.state == "cold"]
        for name in demanded:
            if name in cold:
                return name
        wanted = [name for name in cold if self._models[name].wanted]
        return max(wanted, key=lambda name: self._models[name].priority, default=None)

    def idle(self, busy: Sequence[str], keep: str, below: int | None = None) -> list[str]:
        """Models that may leave, in the order in which they should: low priority first, then the longest unused.

        busy: those with requests. keep: for whose sake. below: only those of lower priority, None: all.
        """
        names = [
            name
            for name, model in self._models.items()
            if model.state == "warm" and name not in busy and name != keep and (below is None or model.priority < below)
        ]
        return sorted(names, key=lambda name: (self._models[name].priority, self._models[name].used_s))

    def priority(self, model: str) -> int:
        """Of its pre-warming."""
        return self._models[model].priority

    def begin(self, model: str) -> None:
        """Its load begins."""
        assert self.loading is None
        self.loading = model
        self._models[model].state = "loading"

    def loaded(self, model: str, weights_bytes: int, kv_bytes_per_token: int, kv_tokens_step: int = 1) -> None:
        """Its load has ended well. Sizes of 0 are unknown, and leave what is known."""
        known = self._models[model]
        self.loading = None
        known.state = "warm"
        known.weights_bytes = weights_bytes or known.weights_bytes
        known.kv_bytes_per_token = kv_bytes_per_token or known.kv_bytes_per_token
        known.kv_tokens_step = kv_tokens_step

    def failed(self, model: str, reason: str, code: Code) -> None:
        """It cannot be had, until somebody asks to pre-warm it again. Its requests are answered `code`."""
        if self.loading == model:
            self.loading = None
        known = self._models[model]
        known.state, known.reason, known.code, known.wanted = "failed", reason, code, False
        self._left(model)

    def unloaded(self, model: str) -> None:
        """It has left the memory."""
        self._models[model].state = "cold"
        self._models[model].wanted = False
        self._left(model)

    def _left(self, model: str) -> None:
        if model in self.leaving:
            self.leaving.remove(model)

    def postpone(self, model: str) -> None:
        """There is no room for it now: it stays cold until somebody asks for it again."""
        self._models[model].wanted = False

    def engine_died(self, reason: str) -> None:
        """Nothing can be loaded any more."""
        self._dead = True
        for model in self._models:
            self.failed(model, reason, Code.ENGINE_ERROR)
