"""The grid of a sweep: every combination is checked before any is run, and a run is known by all that it is."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.experiment import find
from chaos.grid import Axis, Base, GridError, parse_axis, points, resolved, trials
from chaos.resolve import load

SCALABILITY = find("scalability")
BASE = Base(SCALABILITY, "simulated", 1)
WORKERS = Axis("cluster.workers", ("1", "2", "3"))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("cluster.workers=1,2,4", ("1", "2", "4")),
        ("cluster.workers=1..4", ("1", "2", "3", "4")),
        ("cluster.workers=1,4..10..3", ("1", "4", "7", "10")),
        ("workload.rate=10/s,20%", ("10/s", "20%")),
        ("faults.cut.targets=[worker-0],[worker-0, worker-1]", ("[worker-0]", "[worker-0, worker-1]")),
        ("phases.a.load={closed: 8},none,null", ("{closed: 8}", "none", "null")),
        ("title='a, b',\"c\"", ("a, b", "c")),
        ("policy.x=true,0.5,1e-3", ("true", "0.5", "1e-3")),
    ],
)
def test_values_are_yaml_with_commas_between(text: str, values: tuple[str, ...]) -> None:
    assert parse_axis(text) == Axis(text.partition("=")[0], values)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()), min_size=1, max_size=4))
def test_a_value_reads_back_as_what_it_was(values: list[object]) -> None:
    listed = ", ".join(yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip() for value in values)
    try:
        found = parse_axis(f"a.b={listed}")
    except GridError:
        return
    if len(found.values) == len(values):
        assert [yaml.safe_load(text) for text in found.values] == yaml.safe_load(f"[{listed}]")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cluster.workers", "expected path.to.field=value"),
        ("cluster..workers=1", "expected path.to.field=value"),
        ("cluster.workers=", "expected values"),
        ("cluster.workers=[1", "not YAML"),
        ("cluster.workers=1,2,1", "a value is there twice"),
        ("cluster.workers=4..1", "expected a range that rises"),
        ("cluster.workers=1..99999999", "of at most 10000 values"),
    ],
)
def test_a_wrong_list_costs_one_line(text: str, said: str) -> None:
    with pytest.raises(GridError, match=said) as caught:
        parse_axis(text)
    assert "\n" not in str(caught.value)


def test_every_combination_is_a_point_that_is_checked() -> None:
    found, left_out = points([WORKERS, Axis("workload.turns_max", ("1", "2"))], BASE)
    assert len(found) == 6
    assert left_out == []
    assert {(each.experiment.cluster.workers, each.experiment.workload.turns_max) for each in found} == {
        (workers, turns) for workers in (1, 2, 3) for turns in (1, 2)
    }
    assert found[1].name == "cluster.workers=1, workload.turns_max=2"


def test_the_load_per_worker_grows_with_the_workers() -> None:
    found, _ = points([WORKERS], BASE)
    loads = [each.experiment.phases["weak"].load for each in found]
    assert [load.closed for load in loads if load is not None and load != "none"] == [16, 32, 48]


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ([Axis("cluster.workers", ("1", "0"))], "point cluster.workers=0: cluster.workers: expected"),
        ([Axis("cluster.wrokers", ("1",))], "point cluster.wrokers=1: cluster.wrokers: no such field; did you mean"),
        ([WORKERS, WORKERS], "--over cluster.workers: given twice"),
        (
            [WORKERS, Axis("faults.one_down.enabled", ("true",))],
            "point cluster.workers=1, faults.one_down.enabled=true: faults.one_down.targets",
        ),
        ([Axis("cluster.workers", tuple(map(str, range(1, 102)))), Axis("workload.seed", tuple(map(str, range(100))))],
         "10100 points, expected at most 10000"),
    ],
)  # fmt: skip
def test_a_bad_point_is_named_before_anything_starts(axes: list[Axis], said: str) -> None:
    with pytest.raises(GridError) as caught:
        points(axes, BASE)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_run_is_left_out_on_request() -> None:
    found, left_out = points([WORKERS, Axis("faults.one_down.enabled", ("false", "true"))], BASE, skip_invalid=True)
    assert [each.name for each in found if each.values["cluster.workers"] == "1"] == [
        "cluster.workers=1, faults.one_down.enabled=false"
    ]
    assert len(found) == 5
    assert left_out[0].startswith("point cluster.workers=1, faults.one_down.enabled=true: faults.one_down.targets: ")
    with pytest.raises(GridError, match="no point is left"):
        points([Axis("cluster.workers", ("0",))], BASE, skip_invalid=True)


def test_a_fault_that_is_not_enabled_is_not_there() -> None:
    assert load(SCALABILITY).faults == {}
    assert list(load(SCALABILITY, ["faults.one_down.enabled=true"]).faults) == ["one_down"]


def test_each_repeat_has_all_points_in_an_order_and_with_a_seed_of_its_own() -> None:
    found, _ = points([Axis("cluster.workers", tuple(map(str, range(1, 8))))], BASE)
    ordered = trials(found, BASE, 3)
    blocks = [ordered[first : first + 7] for first in (0, 7, 14)]
    orders = [[trial.point.values["cluster.workers"] for trial in block] for block in blocks]
    assert [sorted(order) for order in orders] == [sorted(orders[0])] * 3
    assert orders[0] != orders[1] != orders[2]
    assert [{(trial.repeat, trial.seed) for trial in block} for block in blocks] == [{(1, 1)}, {(2, 2)}, {(3, 3)}]
    assert [trial.key for trial in trials(found, BASE, 3)] == [trial.key for trial in ordered]
    assert len({trial.key for trial in ordered}) == 21


def test_a_run_is_known_by_all_that_is_run() -> None:
    def keys(**other: object) -> set[str]:
        base = Base(SCALABILITY, **{"world": "simulated", "seed": 1, **other})  # type: ignore[arg-type]
        return {trial.key for trial in trials(points([WORKERS], base)[0], base, 1)}

    assert keys() == keys()
    for other in ({"world": "live"}, {"seed": 2}, {"settings": ("workload.turns_max=2",)}, {"profile": "timed"}):
        assert not keys() & keys(**other), other


def test_a_run_keeps_its_name_in_a_wider_grid() -> None:
    narrow, _ = points([WORKERS], BASE)
    wide, _ = points([WORKERS, Axis("faults.one_down.enabled", ("false", "true"))], BASE, skip_invalid=True)
    known = {trial.key for trial in trials(wide, BASE, 2)}
    assert {trial.key for trial in trials(narrow, BASE, 1)} < known


def test_points_that_are_the_same_experiment_are_run_once() -> None:
    axes = [
        Axis("cluster.workers", ("2",)),
        Axis("faults.one_down.enabled", ("false", "true")),
        Axis("faults.one_down.duration_s", ("3", "5")),
    ]
    found, _ = points(axes, BASE)
    assert len(found) == 4
    assert len(trials(found, BASE, 1)) == 3


def test_a_resolved_point_is_a_file_of_its_own(tmp_path: Path) -> None:
    found, _ = points([WORKERS], Base(SCALABILITY, "live", 1, profile="timed"))
    (tmp_path / "experiment.yaml").write_text(resolved(found[2].experiment))
    assert load(tmp_path / "experiment.yaml") == found[2].experiment
