"""ResourceManager: what fits, what goes for it, and when pressure begins and ends."""

import pytest

from cluster.errors import Code
from cluster.policy import MemoryPolicy
from cluster.protocol import AttemptId
from cluster.worker.prewarm import ModelOffer, ModelPreWarmer
from cluster.worker.resources import ResourceManager, Room
from cluster.worker.session_cache import SessionCache

A, B = AttemptId("a", 1, 1), AttemptId("b", 1, 1)


class Memory:
    """Two models of 300 and 200 bytes in 1000; a token takes 10."""

    def __init__(self, bytes_max: int | None = 1_000) -> None:
        policy = MemoryPolicy(bytes_max=bytes_max, soft_share=0.8, resume_share=0.6, cache_bytes_max=500)
        self.cache = SessionCache(MemoryPolicy(cache_bytes_max=500, session_share_max=1.0))
        self.models = ModelPreWarmer((ModelOffer("m", 0, 300), ModelOffer("n", 0, 200)), True)
        self.ledger = ResourceManager(policy, self.cache, self.models)

    def load(self, model: str) -> None:
        self.models.begin(model)
        self.models.loaded(model, 0, 10)
        self.ledger.hold_weights(model, self.models.weights_bytes(model))

    def keep(self, number: int, size_bytes: int) -> None:
        assert not self.cache.keep(number, "m", f"s{number}", (number, 1), size_bytes)


def test_used_is_weights_and_reservations_and_caches() -> None:
    memory = Memory()
    memory.load("m")
    memory.keep(1, 50)
    memory.ledger.reserve(A, 100)
    memory.ledger.reserve(B, 20)
    memory.ledger.reserve(B, 30)
    assert (memory.ledger.used_bytes, memory.ledger.reserved_bytes) == (480, 130)
    memory.ledger.release(A)
    memory.ledger.release(A)
    memory.ledger.release(B)
    memory.ledger.free_weights("m")
    assert (memory.ledger.used_bytes, memory.ledger.reserved_bytes) == (50, 0)


def test_caches_go_before_models_and_only_as_many_as_it_takes() -> None:
    memory = Memory()
    memory.load("m")
    memory.load("n")
    memory.keep(1, 200)
    memory.keep(2, 200)
    assert memory.ledger.make_room(100, "m", ["m"]) == Room()
    assert memory.ledger.make_room(150, "m", ["m"]) == Room(caches=(1,))
    assert memory.ledger.make_room(600, "m", ["m"]) == Room(caches=(2,), models=("n",))
    assert memory.models.state("n") == "cold"
    assert memory.ledger.used_bytes == 300


@pytest.mark.parametrize("busy", [["m"], ["m", "n"]])
def test_what_does_not_fit_whatever_goes_changes_nothing(busy: list[str]) -> None:
    memory = Memory()
    memory.load("m")
    memory.load("n")
    memory.keep(1, 200)
    most = 700 if busy == ["m"] else 500
    assert memory.ledger.make_room(most + 1, "m", busy) is None
    assert (memory.ledger.used_bytes, len(memory.cache), memory.models.state("n")) == (700, 1, "warm")
    assert memory.ledger.make_room(most, "m", busy) is not None


def test_without_a_limit_everything_fits() -> None:
    memory = Memory(None)
    assert memory.ledger.make_room(2**60, "m", []) == Room()
    memory.ledger.reserve(A, 2**60)
    assert not memory.ledger.strained()
    assert memory.ledger.pressure([]) == 0
    assert not memory.ledger.exceeds(2**60)


def test_pressure_lasts_until_usage_is_well_below_where_it_began() -> None:
    memory = Memory()
    memory.load("m")
    seen = []
    for size_bytes in [500, 501, 400, 301, 300, 299, 400]:
        memory.ledger.reserve(A, size_bytes)
        seen.append(memory.ledger.pressure(["m"]))
    assert seen == [0, 1, 1, 1, 1, 0, 0]


def test_under_pressure_caches_go_until_it_is_over() -> None:
    memory = Memory()
    memory.load("m")
    for number in range(1, 5):
        memory.keep(number, 60)
    memory.ledger.reserve(A, 200)
    assert memory.ledger.relieve() == Room()
    memory.ledger.reserve(B, 61)
    assert memory.ledger.relieve() == Room(caches=(1, 2, 3, 4)), "801 bytes; below 600 only without all of them"
    assert memory.ledger.pressure(["m"]) == 0


def test_pressure_does_not_outlive_all_that_could_be_given_back() -> None:
    """Weights above the level at which it ends would keep low priority out of an idle worker for ever."""
    memory = Memory()
    memory.models.prewarm("big", 0)
    memory.models.begin("big")
    memory.models.loaded("big", 700, 10)
    memory.ledger.hold_weights("big", 700)
    memory.ledger.reserve(A, 150)
    assert memory.ledger.strained()
    memory.ledger.release(A)
    assert not memory.ledger.strained()


def test_pressure_is_hard_when_the_smallest_request_does_not_fit() -> None:
    memory = Memory()
    memory.load("m")
    memory.ledger.reserve(A, 680)
    assert memory.ledger.pressure(["m"]) == 1
    memory.ledger.reserve(A, 681)
    assert memory.ledger.pressure(["m"]) == 2
    memory.load("n")
    assert memory.ledger.pressure(["m"]) == 2
    memory.ledger.reserve(A, 481)
    assert memory.ledger.pressure(["m", "n"]) == 2, "n's weights would have to go for it, and n is busy"
    assert memory.ledger.pressure(["m"]) == 1


def test_what_the_engine_measures_beyond_the_ledger_counts_until_the_last_request_ends() -> None:
    memory = Memory()
    memory.load("m")
    memory.ledger.reserve(A, 100)
    memory.ledger.measured(900)
    assert memory.ledger.used_bytes == 900
    assert memory.ledger.make_room(101, "m", ["m"]) is None
    memory.ledger.reserve(B, 50)
    assert memory.ledger.used_bytes == 950
    memory.ledger.measured(0)
    assert memory.ledger.used_bytes == 950, "an engine that cannot say is no news"
    memory.ledger.measured(300)
    assert memory.ledger.used_bytes == 450, "less than the ledger: the rest is promised"
    memory.ledger.measured(900)
    memory.ledger.release(A)
    memory.ledger.release(B)
    assert memory.ledger.used_bytes == 300
    memory.ledger.measured(900)
    assert memory.ledger.used_bytes == 300, "nobody runs: what was measured is on its way out"


def test_a_model_that_failed_takes_no_part() -> None:
    memory = Memory()
    memory.load("m")
    memory.models.failed("m", "gone", Code.ENGINE_ERROR)
    memory.ledger.free_weights("m")
    assert memory.ledger.used_bytes == 0
    assert memory.models.idle([], "n") == []
