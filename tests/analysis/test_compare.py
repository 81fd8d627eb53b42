"""Regression comparison: what is called better or worse, baselines, and how strangers' folders are refused."""

import json
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest

from analysis import baselines, compare, regression
from analysis.baselines import Measured, RunSummary, Side
from analysis.comparison import Change
from analysis.regression import BETWEEN, COUNTED, WITHIN, Compared, NotComparable, compare_sides
from tests.analysis.histories import clean_run
from tests.analysis.saved_runs import save

LATENCY = "latency_p50_s (baseline)"


@cache
def recorded() -> RunSummary:
    """A clean run whose latencies vary by 10 %."""
    random = np.random.default_rng(1)
    run = clean_run()
    for row in run.find("requests"):
        latency_s = 0.2 * float(np.exp(0.1 * random.normal()))
        run.change(row, first_token_s=row.intended_s + latency_s / 2, ended_s=row.intended_s + latency_s)
    found = baselines.summarise(run.history())
    assert found.verdict != "invalid"
    assert found.measured[LATENCY].blocks
    return found


def summary(seed: int, factor: float = 1.0) -> RunSummary:
    """The recorded run again, so many times as slow, and as a whole by 2 % different from run to run."""
    whole = factor * float(np.exp(0.02 * np.random.default_rng(seed).normal()))
    measured = {
        name: msgspec.structs.replace(
            each, value=each.value * whole, blocks=[[whole * value for value in block] for block in each.blocks]
        )
        if each.unit == "s" and each.value is not None
        else each
        for name, each in recorded().measured.items()
    }
    return msgspec.structs.replace(recorded(), run_id=f"run-{seed}-{factor:g}", measured=measured)


def side(name: str, seeds: range, factor: float = 1.0) -> Side:
    return Side(name=name, runs=[summary(seed, factor) for seed in seeds])


def of(found: regression.Regression, name: str) -> Compared:
    return next(each for each in found.compared if each.name == name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One results directory, twice, in a folder with a link and a file that are none."""
    folder = tmp_path_factory.mktemp("runs")
    save(folder / "one")
    save(folder / "two")
    (folder / "latest").symlink_to("one")
    (folder / "notes.txt").write_text("nothing")
    return folder


def test_runs_are_the_blocks_where_there_are_enough() -> None:
    slower = compare_sides(side("a", range(5)), side("b", range(5, 10), 1.3))
    latency = of(slower, LATENCY)
    assert (latency.change, latency.basis) == (Change.WORSE, BETWEEN)
    assert latency.interval is not None
    assert latency.interval[0] > 1.1
    assert latency in slower.worse
    faster = of(compare_sides(side("b", range(5, 10), 1.3), side("a", range(5))), LATENCY)
    assert faster.change is Change.BETTER
    equal = compare_sides(side("a", range(5)), side("b", range(5, 10)))
    assert not equal.worse
    assert of(equal, "success (baseline)").basis == COUNTED
    single = of(compare_sides(side("a", range(5)), side("b", range(6, 7), 1.3)), LATENCY)
    assert (single.change, single.basis) == (Change.WORSE, BETWEEN)


def test_one_run_against_one_says_that_it_knows_nothing_of_other_runs() -> None:
    found = compare_sides(side("a", range(1)), side("b", range(1, 2), 1.5))
    latency = of(found, LATENCY)
    assert (latency.change, latency.basis) == (Change.WORSE, WITHIN)
    assert any("fewer than 3 runs" in note for note in found.notes)
    detection = of(found, "detection")
    assert detection.change is Change.CANNOT_SAY
    assert "one number per run" in detection.why


def test_shares_are_told_from_each_other_by_their_good_part() -> None:
    def refused(share: float) -> Side:
        one = Measured(
            metric="refused_rate", unit="share", better="lower", estimator="proportion", value=share, samples=1000
        )
        run = msgspec.structs.replace(summary(1), measured={"refused": one})
        return Side(name=f"{share}", runs=[run])

    assert of(compare_sides(refused(0.0), refused(0.1)), "refused").change is Change.WORSE
    assert of(compare_sides(refused(0.1), refused(0.0)), "refused").change is Change.BETTER
    assert of(compare_sides(refused(0.0), refused(0.0)), "refused").change is Change.SAME


def test_other_things_are_not_compared_unless_it_must_be() -> None:
    own, other = side("a", range(1)), side("b", range(1, 2))
    for field in ("experiment", "world", "model"):
        strange = Side(name="b", runs=[msgspec.structs.replace(other.runs[0], **{field: "another"})])
        with pytest.raises(NotComparable, match=f"{field} .*--force"):
            compare_sides(own, strange)
        assert any("another" in note for note in compare_sides(own, strange, force=True).notes)
    cut = Side(name="cut", runs=[msgspec.structs.replace(other.runs[0], complete=False)])
    with pytest.raises(NotComparable, match="it was cut"):
        compare_sides(own, cut)
    assert compare_sides(own, cut, force=True).compared


def test_a_baseline_is_kept_and_read_back(tmp_path: Path) -> None:
    kept = side("a", range(3))
    path = baselines.save(kept, "main", tmp_path)
    assert path.stat().st_size < 1_000_000
    again = baselines.read_baseline("main", tmp_path)
    assert again.saved
    assert again.runs == kept.runs
    assert baselines.names(tmp_path) == ["main"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "not a baseline"),
        (b"[]", "not a baseline"),
        (b"\xff\xfe", "not a baseline"),
        (b'{"schema": 99, "name": "x", "runs": []}', "schema 99"),
        (b'{"name": "x", "runs": []}', "schema none"),
        (b'{"schema": 1, "name": "x", "runs": []}', "holds no run"),
        (b'{"schema": 1, "name": "x", "runs": [{"run_id": 3}]}', "not a baseline"),
    ],
)
def test_a_baseline_of_somebody_else_is_one_line(
    tmp_path: Path, content: bytes, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_bytes(content)
    assert compare.main(["x", "x", "--baselines", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1


def test_the_command_says_it_and_ends_with_a_code(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ["--baselines", str(tmp_path)]
    assert compare.main(["--save", "main", str(runs), *kept]) == 0
    assert compare.main(["--list", *kept]) == 0
    assert "2 runs" in capsys.readouterr().out
    assert compare.main(["main", str(runs / "one"), "--json", *kept]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["runs"] == [2, 1]
    assert not told["worse"]
    assert {each["change"] for each in told["compared"]} <= {"same", "cannot_say"}
    assert compare.main([str(runs / "one"), str(runs / "two"), "--markdown"]) == 0
    assert "| metric | base |" in capsys.readouterr().out


def test_something_worse_ends_with_one_and_nothing_known_with_three(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baselines.save(side("a", range(5)), "fast", tmp_path)
    baselines.save(side("b", range(5, 10), 1.3), "slow", tmp_path)
    assert compare.main(["fast", "slow", "--baselines", str(tmp_path)]) == 1
    assert "worse" in capsys.readouterr().out
    first = summary(1)
    alone = {"detection": first.measured["detection"]}
    one = Side(name="one", runs=[msgspec.structs.replace(first, measured=alone)])
    baselines.save(one, "silent", tmp_path)
    assert compare.main(["silent", "silent", "--baselines", str(tmp_path)]) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["nowhere", "nowhere"],
        ["/nowhere/at/all", "/nowhere"],
        ["only_one"],
        [],
        ["--save", "../outside", "."],
        ["--save", "name"],
        ["--save", "name", "nowhere"],
        ["../x", "../x"],
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compare.main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("requests.parquet", b"PAR1 not really"),
        ("requests.parquet", None),
        ("run.json", b"{}"),
        ("run.json", b"\xff"),
        ("experiment.yaml", b"\xff\xfe"),
        ("experiment.yaml", b"- 1"),
        ("experiment.yaml", b"expectations: {x: {metric: [1]}}"),
    ],
)
def test_a_damaged_directory_is_one_line(
    runs: Path, tmp_path: Path, file: str, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    hurt = tmp_path / "hurt"
    hurt.mkdir()
    for path in (runs / "one").iterdir():
        if path.is_file():
            (hurt / path.name).write_bytes(path.read_bytes())
    if content is None:
        whole = (hurt / file).read_bytes()
        content = whole[: len(whole) // 2]
    (hurt / file).write_bytes(content)
    assert compare.main([str(runs / "one"), str(hurt)]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert file.split(".")[0] in said


def test_names_that_want_to_be_markup_are_text() -> None:
    hostile = msgspec.structs.replace(summary(1), measured={"a|b<script>`": summary(1).measured[LATENCY]})
    found = compare_sides(Side(name="x", runs=[hostile]), Side(name="y", runs=[hostile]))
    shown = compare.as_markdown(found)
    assert "<script>" not in shown.replace("\\<", "").replace("\\>", "")
    row = next(line for line in shown.splitlines() if "script" in line)
    assert row.replace("\\|", "").count("|") == 9
