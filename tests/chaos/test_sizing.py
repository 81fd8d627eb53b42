"""How many workers are enough: the search by itself, with trials that are made up, and one small size for real."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.point import Figures
from chaos import size
from chaos.experiment import ExperimentError, find
from chaos.resolve import load
from chaos.sizing import Answer, Demand, Search, Trial, experiment_for
from chaos.sizing import find as find_size

DEMAND = Demand(rate_per_s=40.0, down=1, success=0.99, ttft_p95_s=0.5, latency_p95_s=None)


def made_up(enough: Callable[[int, int], bool]) -> Callable[[Sequence[tuple[int, int]]], list[Trial]]:
    def play(pairs: Sequence[tuple[int, int]]) -> list[Trial]:
        return [Trial(workers, seed, "" if enough(workers, seed) else "too slow") for workers, seed in pairs]

    return play


@given(least=st.integers(1, 20), more=st.integers(0, 200), needed=st.integers(1, 300))
def test_search_finds_the_least_that_is_enough(least: int, more: int, needed: int) -> None:
    most, asked = least + more, list[int]()
    search = Search(least, most)
    while (workers := search.next) is not None:
        asked.append(workers)
        search.tell(workers >= needed)
    assert search.found == (None if needed > most else max(needed, least))
    assert len(asked) == len(set(asked)) <= 2 * most.bit_length() + 1
    assert all(least <= workers <= most for workers in asked)


@given(
    needed=st.dictionaries(st.integers(1, 9), st.integers(2, 40), min_size=1),
    down=st.integers(0, 3),
    most=st.integers(4, 32),
)
def test_the_answer_was_enough_with_every_seed_and_one_less_was_not(
    needed: dict[int, int], down: int, most: int
) -> None:
    answer = find_size(made_up(lambda workers, seed: workers >= needed[seed]), list(needed), down, most)
    worst = max(*needed.values(), down + 1)
    assert answer.workers == (worst if worst <= most else None)
    if answer.workers is not None:
        seen = {(trial.workers, trial.seed): trial.enough for trial in answer.trials}
        assert all(seen[answer.workers, seed] for seed in needed)
        if answer.workers - 1 > down:
            assert not all(seen[answer.workers - 1, seed] for seed in needed)


def test_an_answer_is_seen_even_where_more_workers_do_worse() -> None:
    # With the second seed 3 are enough, and 4 and 5 are not.
    answer = find_size(
        made_up(lambda workers, seed: workers >= 5 if seed == 1 else workers in (3, 6, 7, 8)), [1, 2], 0, 8
    )
    assert answer.needed == {1: 5, 2: 3}
    assert answer.workers == 6


def test_none_is_the_answer_when_the_most_are_too_few_with_one_seed() -> None:
    answer = find_size(made_up(lambda workers, seed: seed == 1), [1, 2], 1, 8)
    assert answer.workers is None
    assert size.told(answer, DEMAND, 8)[0].startswith("ANSWER: none. 8 workers are too few with 1 of 2 seeds")


def test_share_is_the_exact_bound_of_none_failed() -> None:
    # 59 without a failure show 95 %, the rule of thumb of 3 / n.
    assert Answer(3, dict.fromkeys(range(59), 3), []).share == pytest.approx(0.95, abs=1e-3)


@pytest.mark.parametrize(
    ("ttft_s", "success", "missed"),
    [
        (0.4, 1.0, ""),
        (0.6, 1.0, "TTFT p95 0.600 s"),
        (0.4, 0.98, "success 98.00%"),
        (None, 1.0, "TTFT p95 cannot be told"),
    ],
)
def test_what_is_missed_is_said(ttft_s: float | None, success: float, missed: str) -> None:
    assert DEMAND.unmet(_figures(ttft_s, success)) == missed


def test_the_experiment_asks_for_what_is_demanded_with_workers_gone() -> None:
    base = load(find("network_partition"))
    experiment = experiment_for(base, DEMAND, 5)
    assert experiment.faults["gone"].targets == ("worker-0",)
    assert experiment.expectations["ttft_p95"].at_most == 0.5
    assert experiment.policy == base.policy
    # 2,000 requests at 40 a second, after the cluster has settled.
    assert experiment.phases["down"].duration_s == 55.0
    with pytest.raises(ExperimentError, match=r"network_partition cannot be sized: .*guard"):
        experiment_for(base, DEMAND, 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "40"], "expected a limit"),
        (["--rate", "nan", "--ttft-p95", "1"], "--rate"),
        (["--rate", "40", "--ttft-p95", "1", "--down", "64"], "--down"),
    ],
)
def test_a_wrong_demand_is_refused_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        size.main(["network_partition", *arguments])
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_size_is_found_and_its_answer_is_an_experiment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demand = ["--rate", "15", "--ttft-p95", "1", "--seeds", "1", "--jobs", "1", "--workers-max", "3", "--requests", "1"]
    slow = ["--set", "cluster.costs.step_s=0.03"]
    assert size.main(["network_partition", *demand, *slow, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "ANSWER (simulated): 3 workers" in said
    assert load(tmp_path / "answer.yaml").cluster.workers == 3


def _figures(ttft_s: float | None, success: float) -> Figures:
    values = dict.fromkeys(Figures.__struct_fields__)
    return Figures(**{**values, "ttft_p95_s": ttft_s, "success": success})  # type: ignore[arg-type]
