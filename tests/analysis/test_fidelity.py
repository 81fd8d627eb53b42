"""Fidelity: a pair of equal runs has no error, a slower one has its own, and what is no pair is refused."""

from collections.abc import Callable

import msgspec
import pytest
from msgspec.structs import replace

from analysis import compare
from analysis.fidelity import Fidelity, Line, NotAPair, Verdict, fidelity, table
from analysis.history import History
from tests.analysis.histories import clean_run
from tests.analysis.timed_run import timed_run


def histories(slower: dict[str, float] | None = None, requests: int = 120) -> tuple[History, History]:
    """A live run and its simulated one, some of whose parts take another time."""
    live = timed_run(requests=requests, arms=("a", "b")).history()
    simulated = timed_run(requests=requests, arms=("a", "b"), **(slower or {})).history()  # type: ignore[arg-type]
    return of_world(live, "live"), of_world(simulated, "simulated")


def of_world(run: History, world: str) -> History:
    return replace(run, info=replace(run.info, world=world, run_id=world))


def find(found: Fidelity, part: str, quantity: str, statistic: str) -> Line:
    (line,) = [
        line for line in found.lines if (line.part, line.quantity, line.statistic) == (part, quantity, statistic)
    ]
    return line


def test_equal_runs_have_no_error() -> None:
    found = fidelity(*histories())
    assert (found.offered, found.joined, found.beyond) == (120, 120, [])
    judged = [line for line in found.lines if line.limit is not None]
    assert {line.quantity for line in judged} == {"ttft", "inter_token", "end_to_end"}
    assert all(line.error == pytest.approx(0, abs=1e-9) and line.verdict is Verdict.WITHIN for line in judged)
    assert {line.part for line in judged} == {"all", "phase measure", "arm a", "arm b"}


def test_an_error_has_its_sign_and_is_held_against_the_limit_of_its_quantity() -> None:
    # Of 68 ms to the end 19 are until the first token, of which 3 more are 16 %, and 4 % of the whole.
    found = fidelity(*histories({"prefill": 0.013}))
    first, whole = find(found, "all", "ttft", "p50"), find(found, "all", "end_to_end", "p90")
    assert first.live is not None
    assert first.simulated == pytest.approx(first.live + 0.003)
    assert first.error == pytest.approx(0.003 / first.live)
    assert (first.verdict, whole.verdict) == (Verdict.WITHIN, Verdict.WITHIN)
    found = fidelity(*histories({"decode": 0.04}))
    gaps = find(found, "all", "inter_token", "p90")
    assert gaps.error is not None
    assert gaps.error < -0.1
    assert gaps.verdict is Verdict.BEYOND
    assert gaps.interval is not None
    assert gaps.interval[0] <= gaps.error <= gaps.interval[1]
    assert find(found, "all", "inter_token", "mean").verdict is Verdict.NO_LIMIT


def test_few_requests_say_nothing() -> None:
    found = fidelity(*histories({"decode": 0.1}, requests=30))
    assert {line.verdict for line in found.lines if line.limit is not None} == {Verdict.FEW}
    assert found.beyond == []


def test_the_time_under_a_fault_and_its_recovery_are_lines_of_their_own() -> None:
    live, simulated = of_world(clean_run().history(), "live"), of_world(clean_run().history(), "simulated")
    found = fidelity(live, simulated)
    assert any(line.part == "fault cut" and line.quantity == "end_to_end" for line in found.lines)
    detection = find(found, "faults", "detection", "value")
    assert detection.live == detection.simulated
    assert detection.live is not None
    throughput = find(found, "phase fault", "throughput", "value")
    assert throughput.error == 0


def another_rate(run: History) -> History:
    return replace(run, schedule=run.schedule.assign(intended_s=run.schedule["intended_s"] * 1.01))


def another_seed(run: History) -> History:
    return replace(another_rate(run), info=replace(run.info, seed=run.info.seed + 1))


def another_experiment(run: History) -> History:
    return replace(run, info=replace(run.info, experiment="load_spike"))


def another_live_run(run: History) -> History:
    return of_world(run, "live")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [(another_rate, "another rate"), (another_seed, "another seed"), (another_experiment, "two experiments"),
     (another_live_run, "expected a live run and then a simulated one")],
)  # fmt: skip
def test_what_is_no_pair_is_refused_with_the_way_to_make_one(spoil: Callable[[History], History], why: str) -> None:
    live, simulated = histories()
    with pytest.raises(NotAPair, match=why) as refused:
        fidelity(live, spoil(simulated))
    assert "--world simulated --like" in str(refused.value)


def test_a_request_that_did_not_complete_in_both_is_no_pair() -> None:
    live, simulated = histories()
    rows = live.requests.copy()
    rows.loc[rows.index[:7], "outcome"] = "failed"
    assert fidelity(replace(live, requests=rows), simulated).joined == 113


@pytest.mark.parametrize(("form", "expected"), [(None, "within"), ("markdown", "| part |"), ("json", '"joined": 120')])
def test_the_command_prints_it_in_every_form_and_has_an_exit_code(
    form: str | None, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for slower, code in (({}, 0), ({"decode": 0.1}, compare.EXIT_WORSE)):
        runs: dict[str, History] = dict(zip(("L", "S"), histories(slower), strict=True))
        monkeypatch.setattr(compare, "load_history", lambda path, runs=runs: runs[str(path)])
        assert compare.main(["--fidelity", "L", "S", *([f"--{form}"] if form else [])]) == code
        assert expected in capsys.readouterr().out


def test_the_command_says_in_a_line_what_is_no_pair(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    live, _ = histories()
    monkeypatch.setattr(compare, "load_history", lambda path: live)
    assert compare.main(["--fidelity", "L", "S"]) == compare.EXIT_USAGE
    assert capsys.readouterr().err.count("\n") == 1
    assert compare.main(["--fidelity", "L"]) == compare.EXIT_USAGE


def test_every_row_of_the_table_is_as_long_as_the_headings() -> None:
    rows = table(fidelity(*histories()))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert msgspec.json.decode(msgspec.json.encode(fidelity(*histories())))["experiment"]
