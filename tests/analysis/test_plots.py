"""Plots are functions of a history: well-formed, repeatable, within their size, and harmless whatever names say."""

import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import msgspec
import numpy as np
import pandas as pd
import pytest

from analysis import canvas, lanes, plots
from tests.analysis.report_fixture import END_S, HEALED_S, INJECTED_S, empty_history, history

SVG_BYTES_MAX = 200_000
HOSTILE = (
    '<script>alert("1")</script>', "worker'&amp;\"><b>", "\u202egnp.exe", "$\\frac{1}$", "w" * 5000, "\x00\x1b[1m",
)  # fmt: skip


@pytest.fixture(scope="module")
def drawn() -> list[plots.Plot]:
    return plots.draw(history())


def test_every_plot_is_one_small_well_formed_svg(drawn: list[plots.Plot]) -> None:
    for plot in drawn:
        for text in (plot.wide, plot.narrow):
            root = ElementTree.fromstring(text)
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert root.get("aria-label")
            assert len(text.encode()) < SVG_BYTES_MAX, plot.name


def test_ids_are_unique_over_all_plots(drawn: list[plots.Plot]) -> None:
    ids = [name for plot in drawn for text in (plot.wide, plot.narrow) for name in re.findall(r'\bid="([^"]+)"', text)]
    assert len(ids) == len(set(ids))
    for plot in drawn:
        for text in (plot.wide, plot.narrow):
            assert set(re.findall(r'(?:url\(|href=")#([\w-]+)', text)) <= set(re.findall(r'\bid="([^"]+)"', text))


def test_the_same_history_gives_the_same_bytes(drawn: list[plots.Plot]) -> None:
    assert plots.draw(history()) == drawn


def test_colours_are_left_to_the_page(drawn: list[plots.Plot]) -> None:
    for plot in drawn:
        outside_fallbacks = re.sub(r"var\(--[\w-]+, #[0-9a-f]{6}\)", "", plot.wide)
        assert set(re.findall(r"#[0-9a-f]{6}\b", outside_fallbacks)) <= {"#000000"}, plot.name
        assert canvas.INK not in plot.wide
        assert "currentColor" in plot.wide


def test_nothing_recorded_is_said_and_not_drawn() -> None:
    for plot in plots.draw(empty_history()):
        texts = [part.text for part in ElementTree.fromstring(plot.wide).iter("{http://www.w3.org/2000/svg}text")]
        assert len(texts) == 1
        assert str(texts[0]).startswith("No ")


def test_hostile_names_are_text_and_nothing_else() -> None:
    for plot in plots.draw(history(workers=HOSTILE)):
        root = ElementTree.fromstring(plot.wide)
        assert not list(root.iter("{http://www.w3.org/2000/svg}script"))
        shown = "".join(root.itertext())
        assert "\u202e" not in shown
        assert len(max(shown.splitlines(), key=len)) < 200


def test_many_requests_stay_within_the_size() -> None:
    run = history()
    many = pd.concat([run.requests] * 12, ignore_index=True)
    shift = np.random.default_rng(3).normal(0, 0.4, len(many))
    many["request_id"] = [f"many-{number}" for number in range(len(many))]
    many["intended_s"] = (many["intended_s"] + shift).clip(0, END_S)
    many["ended_s"] = (many["ended_s"] + shift * 1.2).clip(many["intended_s"] + 0.01)
    text = plots.latency(msgspec.structs.replace(run, requests=many, schedule=run.schedule.head(0)), canvas.WIDE)
    assert len(text.encode()) < SVG_BYTES_MAX


def test_thinning_keeps_the_outlier() -> None:
    at = np.linspace(0, 100, 60_000)
    taken = np.full_like(at, 0.3)
    taken[31_415] = 9.0
    _, axes = canvas.plain_axes(canvas.WIDE, 100)
    kept_at, kept = plots._thinned(at, taken, axes)
    assert len(kept) <= plots.DOTS_MAX
    assert kept.max() == 9.0
    assert np.ptp(kept_at) > 99


def test_a_percentile_is_not_drawn_from_too_few_samples() -> None:
    at = np.array([1.0, 1.1, 1.2, 30.0])
    _, level = plots.rolling(at, np.ones(4), 0.5, 3, 60.0)
    grid_s = np.linspace(0, 60, len(level))
    assert np.isfinite(level[(grid_s > 1.3) & (grid_s < 3.9)]).all()
    assert np.isnan(level[grid_s > 5]).all()


def test_tokens_of_an_attempt_are_spread_over_its_time() -> None:
    run = history()
    edges = canvas.nice_bins(canvas.time_axis(run).end_s)
    rate = plots._token_rate(run.attempts, edges)
    assert float((rate * np.diff(edges)).sum()) == pytest.approx(run.attempts["tokens"].sum())


def test_states_follow_each_other_without_gap_to_the_end_of_the_run() -> None:
    run = history()
    found = lanes.stretches(run, lanes.FAMILIES[0], END_S)["worker-0"]
    assert [part.state for part in found] == ["joined", "ready", "suspected", "dead", "joined", "ready"]
    assert found[-1].end_s == END_S
    assert all(before.end_s == after.start_s for before, after in pairwise(found))


def test_a_breaker_that_never_moved_was_closed() -> None:
    found = lanes.stretches(history(), lanes.FAMILIES[1], END_S)
    assert [part.state for part in found["worker-1"]] == ["closed"]


def test_a_large_cluster_shows_whom_the_fault_hit() -> None:
    run = history(workers=tuple(f"worker-{number}" for number in range(40)))
    for text in (plots.work(run, canvas.WIDE), plots.queues(run, canvas.WIDE), lanes.state_lanes(run, canvas.WIDE)):
        assert ">worker-0<" in text
        assert "more" in text
        assert len(text.encode()) < SVG_BYTES_MAX


def test_the_window_of_a_fault_that_was_never_healed_lasts_to_the_end() -> None:
    run = history()
    line = canvas.time_axis(run)
    assert [(window.start_s, window.end_s) for window in line.windows] == [(INJECTED_S, HEALED_S)]
    open_fault = run.faults.assign(healed_s=np.nan)
    assert canvas.time_axis(msgspec.structs.replace(run, faults=open_fault)).windows[0].end_s == line.end_s
