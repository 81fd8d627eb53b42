"""ModelPreWarmer: what is loaded next, what may leave, and that nothing is loaded twice or in vain."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.errors import Code
from cluster.worker.prewarm import ModelOffer, ModelPreWarmer
from tests.cluster import WALK

OFFERS = (ModelOffer("low", -1, 10), ModelOffer("a", 0, 20), ModelOffer("high", 1, 30), ModelOffer("b", 0, 40))
NAMES = st.sampled_from(["low", "a", "high", "b"])


def load(models: ModelPreWarmer, model: str) -> None:
    models.begin(model)
    models.loaded(model, 0, 0)


def states(models: ModelPreWarmer) -> dict[str, str]:
    return {state.model: state.state for state in models.states()}


def test_offers_are_loaded_by_priority_one_at_a_time() -> None:
    models, order = ModelPreWarmer(OFFERS, True), list[str]()
    while (model := models.next([])) is not None:
        order.append(model)
        models.begin(model)
        assert models.next(["low"]) is None, "one at a time"
        models.loaded(model, 0, 0)
    assert order == ["high", "a", "b", "low"]
    assert set(states(models).values()) == {"warm"}


def test_without_prewarming_they_stay_cold_until_somebody_asks() -> None:
    models = ModelPreWarmer(OFFERS, False)
    assert models.next([]) is None
    assert models.next(["low", "high"]) == "low"
    models.prewarm("b", 0)
    assert models.next([]) == "b"


def test_what_somebody_waits_for_comes_before_what_is_only_wanted() -> None:
    models = ModelPreWarmer(OFFERS, True)
    assert models.next(["low"]) == "low"


def test_a_request_to_prewarm_adds_or_raises_a_model_and_never_lowers_it() -> None:
    models = ModelPreWarmer(OFFERS, True)
    models.prewarm("new", 5)
    assert models.next([]) == "new"
    load(models, "new")
    models.prewarm("b", 4)
    models.prewarm("high", -1)
    assert models.next([]) == "b"
    load(models, "b")
    assert models.next([]) == "high"


def test_a_failed_model_stays_so_until_it_is_asked_for_again() -> None:
    models = ModelPreWarmer(OFFERS, True)
    models.begin("high")
    models.failed("high", "no such file", Code.ENGINE_ERROR)
    assert models.failure("high") == ("no such file", Code.ENGINE_ERROR)
    assert models.next(["high"]) == "a", "requests alone do not revive it"
    assert models.prewarm("high", 1)
    assert not models.prewarm("a", 0)
    assert models.next([]) == "high"


def test_one_that_made_room_or_found_none_waits_until_it_is_wanted_again() -> None:
    models = ModelPreWarmer(OFFERS, True)
    load(models, "high")
    models.unloaded("high")
    models.postpone("a")
    assert models.next([]) == "b"
    assert models.next(["high"]) == "high"


def test_low_priority_leaves_first_then_the_longest_unused_and_never_a_busy_one() -> None:
    models = ModelPreWarmer(OFFERS, True)
    for name in ("high", "a", "b", "low"):
        load(models, name)
    models.asked_for("b", 3.0)
    models.asked_for("a", 5.0)
    models.asked_for("low", 9.0)
    assert models.idle([], "") == ["low", "b", "a", "high"]
    assert models.idle(["b"], "a") == ["low", "high"]
    assert models.idle([], "high", below=0) == ["low"], "nobody is turned out for one that is no more important"


def test_sizes_are_those_of_the_offer_until_a_load_has_told_them() -> None:
    models = ModelPreWarmer(OFFERS, True)
    assert (models.weights_bytes("a"), models.kv_bytes("a", 1)) == (20, 0)
    models.begin("a")
    models.loaded("a", 25, 7)
    models.unloaded("a")
    assert (models.weights_bytes("a"), models.kv_bytes("a", 1)) == (25, 7)


def test_after_the_death_of_the_engine_nothing_is_loaded() -> None:
    models = ModelPreWarmer(OFFERS, True)
    models.begin("high")
    models.engine_died("a signal")
    assert set(states(models).values()) == {"failed"}
    assert models.loading is None
    assert not models.prewarm("high", 3)
    assert not models.prewarm("new", 3)
    assert models.next(["a"]) is None


class PreWarmWalk(RuleBasedStateMachine):
    """The engine's side: what is in it, and that what is wanted comes to an end."""

    def __init__(self) -> None:
        super().__init__()
        self.models = ModelPreWarmer(OFFERS, True)
        self.loaded: set[str] = set()

    @rule(demanded=st.lists(NAMES, max_size=2, unique=True))
    def begin(self, demanded: list[str]) -> None:
        model = self.models.next(demanded)
        if model is None:
            return
        assert model not in self.loaded
        assert states(self.models)[model] == "cold"
        waits = [name for name in demanded if states(self.models)[name] == "cold"]
        assert not waits or model == waits[0]
        self.models.begin(model)

    @precondition(lambda self: self.models.loading is not None)
    @rule(well=st.booleans())
    def end(self, well: bool) -> None:
        model = self.models.loading
        assert model is not None
        if well:
            self.models.loaded(model, 1, 1)
            self.loaded.add(model)
        else:
            self.models.failed(model, "broken", Code.ENGINE_ERROR)

    @precondition(lambda self: self.loaded)
    @rule(busy=st.lists(NAMES, max_size=2), keep=NAMES)
    def one_leaves(self, busy: list[str], keep: str) -> None:
        idle = self.models.idle(busy, keep)
        assert sorted(idle) == sorted(self.loaded - {*busy, keep})
        if idle:
            self.models.unloaded(idle[0])
            self.loaded.discard(idle[0])

    @rule(model=NAMES, priority=st.integers(-1, 2))
    def prewarm(self, model: str, priority: int) -> None:
        self.models.prewarm(model, priority)

    @invariant()
    def states_agree_with_the_engine(self) -> None:
        found = states(self.models)
        assert {model for model, state in found.items() if state == "warm"} == self.loaded
        assert [model for model, state in found.items() if state == "loading"] == (
            [self.models.loading] if self.models.loading else []
        )


TestPreWarmWalk = PreWarmWalk.TestCase
TestPreWarmWalk.settings = WALK


@pytest.mark.parametrize("model", ["low", "nowhere"])
def test_only_warm_is_warm(model: str) -> None:
    models = ModelPreWarmer(OFFERS, True)
    assert not models.is_warm(model)
    models.prewarm(model, 0)
    models.begin(model)
    assert not models.is_warm(model)
    models.loaded(model, 0, 0)
    assert models.is_warm(model)
