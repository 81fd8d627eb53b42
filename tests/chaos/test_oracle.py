"""Streams that differ from the reference are measured, those that do not are not."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from chaos.oracle import consult
from chaos.results import ResultsDirectory
from chaos.worlds.world import World
from workloads.schedule import ScheduledRequest


class Model:
    """A world that knows one completion, and gives every token of a measured stream its own gap."""

    exact_tokens = False

    def __init__(self) -> None:
        self.cases: list[tuple[Sequence[int], Sequence[int]]] = []

    async def references(self, prompts: dict[str, Any]) -> dict[str, list[int]]:
        return {prompt_id: [5, 6, 7, 8] for prompt_id in prompts}

    async def token_gaps(self, cases: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        self.cases += cases
        return [[0.25 * index for index in range(len(delivered))] for _, delivered in cases]


class Results:
    """Keeps what is written."""

    def __init__(self, delivered: dict[str, list[int]]) -> None:
        self.delivered = delivered
        self.references: dict[str, list[int]] = {}
        self.gaps: list[tuple[str, int, float]] = []

    def write_references(self, references: dict[str, list[int]]) -> None:
        self.references = references

    def write_token_gaps(self, gaps: list[tuple[str, int, float]]) -> None:
        self.gaps = gaps

    def completions(self) -> list[tuple[str, str, list[int]]]:
        return [(request_id, "p", tokens) for request_id, tokens in self.delivered.items()]


def test_gaps_are_measured_from_the_first_difference_on() -> None:
    model, results = Model(), Results({"same": [5, 6, 7], "other": [5, 9, 7, 8]})
    request = ScheduledRequest("same", 0.0, "s", 0, "p", (1, 2), 4)
    asyncio.run(consult(cast(World, model), cast(ResultsDirectory, results), [request]))
    assert results.references == {"p": [5, 6, 7, 8]}
    assert model.cases == [((1, 2), [5, 9, 7, 8])]
    assert results.gaps == [("other", 1, 0.25), ("other", 2, 0.5), ("other", 3, 0.75)]


def test_token_gaps_are_a_table(tmp_path: Path) -> None:
    results = ResultsDirectory.__new__(ResultsDirectory)
    results.path = tmp_path
    results.write_token_gaps([("r", 3, 0.5)])
    table = pq.read_table(tmp_path / "token_gaps.parquet")
    assert table.to_pylist() == [{"request_id": "r", "index": 3, "gap": 0.5}]
    assert table.schema.field("index").type == pa.int64()
