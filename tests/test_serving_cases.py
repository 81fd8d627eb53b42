"""The soak's own check: it must see what it is there to see."""

import subprocess
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.client import ClientNode
from cluster.node import Ask
from cluster.policy import Policy
from tests.cases import cases
from tests.serving_cases import CENSUS, GROWTH_MAX, REQUESTS_MIN, Census, left_behind

BASE = {"link.subscriptions": 3, "gauge.open_requests": 0, "node._ledger": 0, "node._sessions._known": 0}


def soaked(folder: Path, requests: int = REQUESTS_MIN, **after: int) -> list[str]:
    """What is said of a soak in which these collections of the controller hold so much afterwards."""
    held = {name.replace("__", "."): value for name, value in after.items()}
    census = Census({"controller-0": BASE}, {"controller-0": BASE | held})
    (folder / CENSUS).write_bytes(msgspec.json.encode(census))
    pq.write_table(pa.table({"outcome": ["completed"] * requests}), folder / "requests.parquet")
    return left_behind(folder)[0]


def test_nothing_is_left_where_nothing_grew(tmp_path: Path) -> None:
    assert soaked(tmp_path) == []
    assert soaked(tmp_path, node___ledger=GROWTH_MAX, node___sessions___known=5_000) == []
    assert soaked(tmp_path, shell__engine___models__tiny___kept=700, node___cache___entries=700) == []


@pytest.mark.parametrize(
    ("after", "told"),
    [
        ({"node___ledger": GROWTH_MAX + 1}, "controller-0: node._ledger holds 65, at the beginning 0"),
        ({"node__new": 700}, "controller-0: node.new holds 700"),
        ({"shell__engine___models__tiny___kept": 3}, "the engine keeps 3 caches, its worker knows of 0"),
        ({"gauge__open_requests": 1}, "gauge.open_requests holds 1"),
        ({"link__subscriptions": 4}, "controller-0 has 4 subscriptions"),
        ({"requests": REQUESTS_MIN - 1}, "1999 requests completed, 2000 are needed"),
    ],
)
def test_what_is_left_is_told(tmp_path: Path, after: dict[str, int], told: str) -> None:
    (problem,) = soaked(tmp_path, **after)
    assert told in problem


def test_a_soak_that_nobody_counted_is_none(tmp_path: Path) -> None:
    (tmp_path / CENSUS).write_bytes(msgspec.json.encode(Census(problem="worker-0: gone")))
    assert left_behind(tmp_path)[0] == ["worker-0: gone", "nothing was counted after the load"]


@pytest.mark.parametrize("there", [True, False])
def test_the_long_tests_have_their_model_or_say_why_not(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        pulls = "pull" in command
        said = "fetching it\nno network\n" if pulls and not there else ""
        return subprocess.CompletedProcess(command, 5 if said else 0, "== 9 passed ==\n", said)

    monkeypatch.setattr("tests.cases.subprocess.run", run)
    (case,) = (case for case in cases() if case.name == "bad_days")
    outcome = case.play(tmp_path)
    assert [("pull" in command, "pytest" in command) for command in commands] == [(True, False), (False, True)]
    told = "smollm2-135m cannot be pulled, and the tests that ask it fail: no network"
    assert outcome.problems == ([] if there else [told])


def test_no_long_test_skips_itself_for_want_of_the_model() -> None:
    for path in Path(__file__).parent.rglob("test_*.py"):
        if path != Path(__file__):
            assert "except ModelUnavailable" not in path.read_text(), path


def test_every_collection_of_a_node_is_counted() -> None:
    from tests.counting_world import count_collections

    node = ClientNode("client-0", 1, Policy())
    before = count_collections(node=node)
    for number in range(100):
        node.handle(Ask(f"r{number}", "m", (1, 2), 4, 0.0, 10.0), 0.0)
    after = count_collections(node=node)
    grown = {name for name, held in after.items() if held >= before[name] + 100}
    assert {"node._open", "node._timers"} <= grown
    assert before["node._open"] == 0
