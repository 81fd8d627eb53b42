"""The report of a sweep: what it says of scaling, of what limited it, and of what nobody can say."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from analysis import sweep_view
from analysis.sweep_page import TIMED, html, markdown, text
from analysis.sweep_table import SweepRow, to_table
from analysis.sweep_view import Missing, SweepReport, curves_of, limits_of, notes_of, point_rows, series_of
from tests.analysis.sweeps import row, rows

HOSTILE = "<script>alert(1)</script>"
SEVEN = {count: (10.0 * count / (1 + 0.05 * (count - 1)), 10.1 * count / (1 + 0.05 * (count - 1))) for count in
         (1, 2, 3, 4, 6, 8, 10)}  # fmt: skip


def report(found: list[SweepRow], *, title: str = "How it scales", missing: int = 0) -> SweepReport:
    series = series_of(found)
    return SweepReport(
        experiment="scalability",
        title=title,
        question="Does it?",
        world=found[0].world,
        engine=found[0].engine,
        command="python -m chaos.sweep scalability",
        axes={"cluster.workers": ["1"]},
        repeats=2,
        planned=len(found) + missing,
        done=len(found),
        settle_s=2.0,
        statements=sweep_view.statements_of(series),
        limits=limits_of(found),
        notes=notes_of(found),
        missing=[Missing(f"point {number}", "not run yet") for number in range(missing)],
        series=series,
        curves=curves_of(found),
        points=point_rows(found),
        rows=found,
    )


def test_a_load_that_grows_and_one_that_stays_are_told_apart() -> None:
    found = (
        rows(SEVEN) + rows(SEVEN, phase="fixed", in_flight=48) + rows({1: [5.0], 2: [6.0]}, phase="other", in_flight=7)
    )
    assert [(each.label, each.kind, each.load) for each in series_of(found)] == [
        ("weak", "weak", "16 in flight per worker"),
        ("fixed", "strong", "48 in flight"),
        ("other", "strong", "7 in flight"),
    ]


def test_other_settings_make_series_of_their_own() -> None:
    found = rows({1: [10.0], 2: [19.0]}, faults__x__enabled="false")
    found += rows({1: [9.0], 2: [10.0]}, faults__x__enabled="true")
    assert [each.label for each in series_of(found)] == ["weak, faults.x.enabled=false", "weak, faults.x.enabled=true"]
    assert [each.levels[1].mean for each in series_of(found)] == pytest.approx([19.0, 10.0])


def test_a_law_is_shown_with_seven_points_and_refused_with_three() -> None:
    whole = report(rows(SEVEN))
    assert whole.series[0].law is not None
    assert whole.series[0].law.contention == pytest.approx(0.05, abs=0.02)
    few = report(rows({1: [10.0], 2: [19.0], 3: [27.0]}))
    assert few.series[0].law is None
    for shown in (html(few), markdown(few), text(few)):
        assert "3 numbers of workers, 6 are needed" in shown
    assert "contention" in text(whole)


def test_an_invalid_run_and_one_without_any_answer_count_for_nothing() -> None:
    found = [row(1, 10.0), row(2, 19.0), row(2, 1.0, repeat=2, verdict="invalid"), row(3, 0.0)]
    (series,) = series_of(found)
    assert [(each.workers, each.runs) for each in series.levels] == [(1, 1), (2, 1)]
    told = " ".join(notes_of(found))
    assert "cluster.workers=2, repeat 2 is invalid and does not count" in told
    assert "cluster.workers=3 in weak: nothing was completed" in told
    assert point_rows(found)[1].verdicts == {"pass": 1, "invalid": 1}


@pytest.mark.parametrize(
    ("more", "said", "unsaid"),
    [
        ({}, "Core-limited on this machine: 3 workers on 2 cores", "Time is virtual"),
        ({"cores": 4}, "no host was the limit", "Core-limited"),
        ({"hosts": 3}, "no host was the limit", "Core-limited"),
        (
            {"cores": 4, "host_cpu": 0.95, "nodes_cpu": 3.9},
            "busy for 90% of the time or more with 1, 3 workers",
            "no host was",
        ),
        ({"host_cpu": 0.99, "nodes_cpu": 0.4}, "of 2 cores the nodes of the cluster used 0.4 with", "is the limit"),
        ({"host_cpu": 0.99}, "host is the limit", "Something else"),
        ({"machine": "macOS-15-arm64 Darwin"}, "Up to 3 workers share the one GPU", "Core-limited"),
        ({"engine": "timed"}, "no host was the limit", "Core-limited"),
        ({"engine": "timed", "world": "simulated"}, "Time is virtual", "host was"),
    ],
)
def test_it_says_when_the_host_and_not_the_cluster_is_the_limit(
    more: dict[str, object], said: str, unsaid: str
) -> None:
    told = " ".join(limits_of(rows({1: [10.0], 3: [11.0]}, **more)))
    assert said in told
    assert unsaid not in told


def test_nobody_takes_the_timed_engine_for_mlx() -> None:
    live, simulated = report(rows(SEVEN, engine="timed")), report(rows(SEVEN, engine="timed", world="simulated"))
    assert TIMED.split(". ")[1] in html(live)
    assert "timed engine" in html(live)
    assert "no model was computed" in markdown(live)
    assert text(live).startswith("Timed engine: no model was computed")
    assert "no model was computed" not in html(simulated)
    assert "no model was computed" not in html(report(rows(SEVEN)))


def test_latency_against_load_is_a_curve_for_each_cluster_with_its_knee() -> None:
    found = [
        row(2, load / taken_s, in_flight=load, latency_s=taken_s, phases__weak__load__closed=str(load))
        for load, taken_s in ((4, 0.4), (8, 0.42), (16, 0.8), (32, 1.6))
    ]
    (curve,) = curves_of(found)
    assert [point.load for point in curve.points] == ["4 in flight", "8 in flight", "16 in flight", "32 in flight"]
    assert curve.knee is not None
    assert curve.knee.place == 1
    assert "Latency against load" in html(report(found))
    assert "| here |" in markdown(report(found))


def test_an_unfinished_sweep_says_so() -> None:
    whole = report(rows({1: [10.0], 2: [19.0]}), missing=3)
    assert "This sweep is incomplete" in html(whole)
    assert "This sweep is incomplete" in markdown(whole)
    assert "missing: point 2: not run yet" in text(whole)


def test_what_others_wrote_stays_text() -> None:
    whole = report(rows({1: [10.0], 2: [19.0]}, workload__model=HOSTILE), title=HOSTILE)
    page = html(whole)
    assert "<script" not in page
    assert "alert(1)" in page
    assert "<script" not in markdown(whole)


def test_a_page_of_one_point_has_no_plot_and_no_law() -> None:
    page = html(report([row(1, 10.0)]))
    assert "Nothing can be drawn yet" in page
    assert '<svg class="plot throughput' not in page


def test_the_dataset_has_a_column_for_each_setting(tmp_path: Path) -> None:
    found = [*rows(SEVEN, workload__rate="10/s"), row(2, None, workload__rate="20/s")]
    pq.write_table(to_table(found), tmp_path / "points.parquet")
    table = pq.read_table(tmp_path / "points.parquet")
    assert table.num_rows == 15
    assert table["cluster.workers"].to_pylist()[:3] == [1, 1, 2]
    assert table["workload.rate"].to_pylist()[-1] == "20/s"
    assert table["requests_per_s"].to_pylist()[-1] is None
    assert {"verdict", "run", "latency_p95_s", "ttft_p95_s", "batch_mean", "engine", "world"} <= set(table.column_names)


def test_settings_of_many_kinds_become_text() -> None:
    found = [row(1, 1.0, a__b="{closed: 4}"), row(1, 1.0, a__b="3"), row(1, 1.0, a__b="x")]
    assert to_table(found)["a.b"].to_pylist() == ["{closed: 4}", "3", "x"]
