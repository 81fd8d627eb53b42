"""Recovery of runs with several faults: whose time is whose, what is late, and whether goodput comes back."""

from typing import Any

import msgspec
import pytest

from analysis.episodes import episodes
from analysis.facts import CLOCK_TOLERANCE_S
from analysis.judge import judge
from analysis.metrics import measure
from analysis.page import Figure, PhaseRow, figures
from analysis.recovery import fault_times
from analysis.recovery_view import recovery_view
from analysis.verdict import Counts, EpisodeResult
from tests.analysis.histories import EXPERIMENT, HEALED_S, INJECTED_S, INTERVAL_S, PHASES, WORKERS, Run, clean_run
from tests.analysis.test_checkers import fail, fresh, request

LAST = len(clean_run().schedule) - 1
OTHER = "worker-1"


def strike(run: Run, injected_s: float, healed_s: float | None, **fields: Any) -> None:
    """Another fault beside the one of a clean run."""
    row = run.find("faults")[0]
    values = {"name": "again", "targets": [OTHER], **fields}
    run.add("director", msgspec.structs.replace(row, injected_s=injected_s, healed_s=healed_s, **values))


def only(run: Run) -> EpisodeResult:
    (episode,) = episodes(run.history())
    return episode


def test_one_fault_is_one_episode_that_comes_back() -> None:
    episode = only(fresh())
    assert (episode.faults, episode.labels) == (["cut"], ["partition worker-0"])
    assert (episode.began_s, episode.healed_s, episode.until_s) == (INJECTED_S, HEALED_S, PHASES["recovery"][1])
    assert episode.steady == episode.goodput == "back"
    assert episode.return_to_steady_s == pytest.approx(1.4)
    assert episode.goodput_text == "was never away"
    assert episode.goodput_before == episode.goodput_last == 1.0
    assert episode.load_before_per_s == pytest.approx(1 / INTERVAL_S, rel=0.05)
    assert episode.lost == 0


def test_attempts_are_counted_per_request_that_began_with_them() -> None:
    run = fresh()
    episode = only(run)
    inside = [row for row in run.find("attempts", side="controller") if INJECTED_S <= row.begun_s < HEALED_S]
    again = [row for row in inside if row.attempt > 1]
    assert again
    assert episode.amplification_during == pytest.approx(len(inside) / (len(inside) - len(again)))
    assert episode.amplification_before == episode.amplification_after == episode.amplification_last == 1.0
    failed = run.find("attempts", side="controller", outcome="failed")
    assert episode.wasted_attempts == len([row for row in failed if row.begun_s >= INJECTED_S])
    assert episode.at_risk >= len(failed)


def test_tokens_that_nobody_got_are_wasted_and_delivered_ones_are_not() -> None:
    run = fresh()
    assert only(run).wasted_tokens == 0
    row = next(row for row in run.find("attempts", side="controller", outcome="failed") if row.begun_s > INJECTED_S)
    run.add("worker-0", msgspec.structs.replace(row, side="worker", tokens=7))
    assert only(run).wasted_tokens == 7


def test_requests_of_the_targets_are_at_risk_and_lost_where_they_do_not_complete() -> None:
    run = fresh()
    hurt = next(row for row in run.find("attempts", side="controller", outcome="failed") if row.begun_s > INJECTED_S)
    spared = next(
        row
        for row in run.find("attempts", side="controller", worker=OTHER)
        if 11 < row.begun_s < 13 and row.attempt == 1
    )
    for row in (hurt, spared):
        fail(run, row.request_id, "FIRST_TOKEN_TIMEOUT")
    assert only(run).lost == 1


@pytest.mark.parametrize("target", ["broker", "controller", "client-0"])
def test_everybody_hangs_on_the_broker_the_only_controller_and_their_client(target: str) -> None:
    run = clean_run(target=target)
    assert fault_times(run.history())[0].at_risk == len(alive_meanwhile(run))


def test_where_all_workers_are_hit_also_those_are_at_risk_whom_nobody_tried() -> None:
    run = fresh()
    run.change(run.find("faults")[0], targets=list(WORKERS))
    untried = next(row for row in alive_meanwhile(run) if row.intended_s > INJECTED_S)
    for row in run.find("attempts", request_id=untried.request_id):
        run.drop(row)
    fail(run, untried.request_id, "NO_WORKERS_AVAILABLE")
    episode = only(run)
    assert (episode.at_risk, episode.lost) == (len(alive_meanwhile(run)), 1)


def alive_meanwhile(run: Run) -> list[Any]:
    """The requests whose life meets the fault of a clean run."""
    return [row for row in run.find("requests") if row.intended_s < HEALED_S and row.ended_s > INJECTED_S]


def test_two_faults_apart_are_judged_each_over_its_own_time() -> None:
    run = fresh()
    run.change(run.find("faults")[0], healed_s=9.2)
    strike(run, 21.0, 22.0)
    run.event("controller", 21.3, "worker_suspected", OTHER)
    run.event("controller", 21.9, "worker_ready", OTHER)
    first, second = fault_times(run.history())
    assert second.detection_s == pytest.approx(0.3)
    assert first.return_to_steady_s == pytest.approx(6.2)
    assert second.return_to_steady_s == 0.0
    assert [each.faults for each in episodes(run.history())] == [["cut"], ["again"]]
    assert measure(run.history(), "return_to_steady_s").value == pytest.approx(6.2)


def test_what_is_noticed_after_the_next_strike_is_another_fault() -> None:
    run = clean_run(target="worker-2")
    strike(run, 20.0, 21.0, targets=["worker-2"])
    run.event("controller", 20.4, "worker_suspected", "worker-2")
    run.event("controller", 20.6, "worker_ready", "worker-2")
    first, second = fault_times(run.history())
    assert first.detection_s is None
    assert not first.detection_known
    assert second.detection_s == pytest.approx(0.4)
    assert measure(run.history(), "detection_s").value == pytest.approx(0.4)
    run.change(run.find("faults")[0], predicted_detection_s=1.6, predicted_by="no heartbeat for 1.6 s")
    first, _ = fault_times(run.history())
    assert first.late is True
    assert first.punctuality() == "late: never"
    assert measure(run.history(), "detection_s").value is None


def test_a_fault_40_ms_after_a_heal_says_so_and_nobody_says_never() -> None:
    run = fresh()
    strike(run, HEALED_S + 0.04, 15.2)
    first, second = fault_times(run.history())
    assert first.not_judged == "partition worker-1 struck 0.04 s after the heal"
    assert "not judged: partition worker-1 struck 0.04 s after the heal" in first.explanation()
    assert "never" not in first.explanation()
    assert second.not_judged == ""
    before, after = episodes(run.history())
    assert before.steady == before.goodput == "not_judged"
    assert before.goodput_last is before.load_last_per_s is before.amplification_last is None
    assert before.goodput_text == "not judged: partition worker-1 struck 0.04 s after the heal"
    assert after.steady == after.goodput == "back"
    assert measure(run.history(), "return_to_steady_s").samples == 1


def test_a_return_that_had_all_the_time_it_may_take_is_judged_although_another_fault_followed() -> None:
    run = fresh()
    run.change(run.find("faults")[0], healed_s=9.5)
    run.drop(run.find("events", kind="breaker_closed")[0])
    strike(run, 9.5 + 6.0 + 5.0, 22.0)
    first, _ = fault_times(run.history())
    assert first.followed
    assert first.not_judged == ""
    assert measure(run.history(), "return_to_steady_s").value is None
    assert episodes(run.history())[0].steady_text == "not back in the 11.0 s until the next fault"


def test_overlapping_faults_are_noticed_each_and_return_together() -> None:
    run = fresh()
    strike(run, 13.0, 15.0)
    run.event("controller", 13.5, "worker_suspected", OTHER)
    run.event("controller", 13.9, "worker_ready", OTHER)
    first, second = fault_times(run.history())
    assert first.detection_s == pytest.approx(1.2, abs=0.3)
    assert second.detection_s == pytest.approx(0.5)
    episode = only(run)
    assert episode.faults == ["cut", "again"]
    assert (episode.began_s, episode.healed_s) == (INJECTED_S, 15.0)
    assert episode.return_to_steady_s == first.return_to_steady_s == second.return_to_steady_s == pytest.approx(0.4)


def test_a_fault_on_whom_nobody_trusts_has_nothing_to_be_noticed() -> None:
    run = fresh()
    strike(run, 12.0, 13.0, targets=["worker-0"], predicted_detection_s=0.1, predicted_by="x")
    _, second = fault_times(run.history())
    assert (second.detection_s, second.noticed_how, second.late) == (None, "already_distrusted", None)
    assert "distrusted already" in second.explanation()
    assert measure(run.history(), "detection_s").samples == 1


def test_goodput_that_stays_low_under_a_normal_load_is_called_metastable() -> None:
    run = fresh()
    for number in range(int(INJECTED_S / INTERVAL_S), LAST + 1, 4):
        fail(run, f"r{number}", "FIRST_TOKEN_TIMEOUT")
    episode = only(run)
    assert episode.goodput == episode.steady == "never"
    assert episode.goodput_text == "not back within the run (metastable?)"
    assert episode.goodput_last == pytest.approx(0.75, abs=0.02)
    assert episode.load_last_per_s == pytest.approx(episode.load_before_per_s or 0.0, rel=0.1)


def test_slow_answers_are_no_goodput() -> None:
    run = fresh()
    for number in range(int(INJECTED_S / INTERVAL_S), LAST + 1):
        row = request(run, f"r{number}")
        run.change(row, ended_s=row.ended_s + 1.0)
    assert only(run).goodput == "never"


def test_low_goodput_under_a_higher_load_than_before_is_not_blamed_on_the_fault() -> None:
    run = fresh()
    for number in range(int(INJECTED_S / INTERVAL_S), LAST + 1):
        row = request(run, f"r{number}")
        if number % 2:
            fail(run, row.request_id, "FIRST_TOKEN_TIMEOUT")
        line = next(line for line in run.schedule if line["request_id"] == row.request_id)
        for name in ("twin", "other"):
            run.add("client-0", msgspec.structs.replace(request(run, row.request_id), request_id=f"{name}{number}"))
            run.schedule.append({**line, "request_id": f"{name}{number}"})
    assert only(run).goodput_text == "cannot say (the load was above the baseline's)"


def test_goodput_comes_back_when_the_failures_end() -> None:
    run = fresh()
    first, past = int(HEALED_S / INTERVAL_S), int((HEALED_S + 4) / INTERVAL_S)
    for number in range(first, past):
        fail(run, f"r{number}", "FIRST_TOKEN_TIMEOUT")
    episode = only(run)
    assert episode.goodput == "back"
    assert episode.goodput_back_s == pytest.approx(4.0, abs=2 * INTERVAL_S)


@pytest.mark.parametrize("phase", ["baseline", "recovery"])
def test_of_too_few_requests_nobody_can_say(phase: str) -> None:
    run = fresh()
    start_s, end_s = PHASES[phase]
    inside = [line["request_id"] for line in run.schedule if start_s <= line["intended_s"] < end_s]
    gone = {request_id for number, request_id in enumerate(inside) if number % 12}
    for row in run.find("requests"):
        if row.request_id in gone:
            run.drop(row)
    run.schedule = [line for line in run.schedule if line["request_id"] not in gone]
    episode = only(run)
    assert episode.goodput == "cannot_say"
    assert episode.goodput_text.startswith("cannot say (too few requests: ")


@pytest.mark.parametrize(
    ("predicted_s", "lag_s", "late", "said"),
    [
        (1.2, 0.0, False, "in time (tolerance 0.25 s)"),
        (1.0, 0.0, False, "in time (tolerance 0.25 s)"),
        (0.8, 0.0, True, "late by 0.40 s"),
        (0.8, 0.3, False, "in time (tolerance 0.55 s)"),
        (None, 0.0, None, ""),
    ],
)
def test_late_is_what_exceeds_the_prediction_by_more_than_its_tolerance(
    predicted_s: float | None, lag_s: float, late: bool | None, said: str
) -> None:
    run = clean_run(target="worker-2")
    run.event("controller", INJECTED_S + 1.2, "worker_suspected", "worker-2")
    run.event("controller", INJECTED_S + 1.4, "worker_ready", "worker-2")
    run.change(run.find("faults")[0], predicted_detection_s=predicted_s, predicted_by="no heartbeat")
    for row in run.find("nodes", role="controller"):
        run.change(row, loop_lag_s=lag_s)
    (times,) = fault_times(run.history())
    assert times.late is late
    assert times.punctuality() == said
    assert said in times.explanation()


@pytest.mark.parametrize(
    ("why", "at_s", "late"),
    [
        # Injected at 9.0 s, due after 0.8 s, noticed 1.6 s late; samples are taken every 0.5 s.
        ("the loop stood still long before", INJECTED_S - 3.0, True),
        ("the loop stood still between the last sign of life and the notice", INJECTED_S + 1.0, True),
        ("the loop stood still after it had noticed", INJECTED_S + 3.5, True),
        ("it read late what came before the injection", INJECTED_S, False),
        ("it noticed late", INJECTED_S + 2.5, False),
    ],
)
def test_a_busy_loop_is_an_excuse_only_when_it_mattered(why: str, at_s: float, late: bool) -> None:
    run = clean_run(target="worker-2")
    run.event("controller", INJECTED_S + 2.4, "worker_suspected", "worker-2")
    run.event("controller", INJECTED_S + 2.6, "worker_ready", "worker-2")
    run.change(run.find("faults")[0], predicted_detection_s=0.8, predicted_by="no heartbeat")
    (row,) = run.find("nodes", role="controller", time_s=at_s)
    run.change(row, loop_lag_s=1.5)
    (times,) = fault_times(run.history())
    assert times.late is late, why
    assert times.tolerance_s == pytest.approx(CLOCK_TOLERANCE_S + (0.0 if late else 1.5))


def test_predicted_measured_and_late_are_data_of_the_verdict_and_so_are_the_episodes() -> None:
    run = fresh()
    run.change(run.find("faults")[0], predicted_detection_s=0.5, predicted_by="no heartbeat")
    verdict = judge(run.history())
    (fault,) = verdict.faults
    assert (fault.name, fault.predicted_s, fault.tolerance_s, fault.late) == ("cut", 0.5, CLOCK_TOLERANCE_S, True)
    assert fault.measured_s == pytest.approx(1.2, abs=0.3)
    assert verdict.episodes == episodes(run.history())


def test_a_fault_that_did_not_bite_is_not_noticed_late() -> None:
    run = clean_run(target="worker-2")
    run.change(run.find("faults")[0], predicted_detection_s=1.6, predicted_by="no heartbeat")
    assert fault_times(run.history())[0].late is True
    run.change(run.find("faults")[0], verified=False)
    assert fault_times(run.history())[0].late is None


def test_what_is_over_before_it_was_due_need_not_be_noticed() -> None:
    run = clean_run(target="worker-2")
    run.change(run.find("faults")[0], healed_s=INJECTED_S + 1.0, predicted_detection_s=1.6, predicted_by="x")
    (times,) = fault_times(run.history())
    assert (times.detection_s, times.late) == (None, None)


def test_key_figures_show_the_worst_fault_and_name_it() -> None:
    run = fresh()
    run.change(run.find("faults")[0], healed_s=9.2)
    strike(run, 20.6, 21.0)
    run.event("controller", 22.1, "worker_suspected", OTHER)
    run.event("controller", 22.3, "worker_ready", OTHER)
    history = run.history()
    view = recovery_view(history, episodes(history))
    assert view is not None
    detection, _, back = view.figures()
    assert detection.value == "1.50 s"
    assert detection.note == "limit ≤ 3 s; worst: again (partition worker-1)"
    assert back.value == "6.20 s"
    assert "worst: cut (partition worker-0)" in back.note


def test_a_fault_that_never_came_back_is_the_worst_and_one_not_judged_is_not() -> None:
    run = fresh()
    strike(run, HEALED_S + 0.04, 15.2)
    history = run.history()
    view = recovery_view(history, episodes(history))
    assert view is not None
    assert view.figures()[2].note.endswith("worst: again (partition worker-1); 1 of 2 not judged")
    run.drop(run.find("events", kind="breaker_closed")[0])
    history = run.history()
    view = recovery_view(history, episodes(history))
    assert view is not None
    assert view.figures()[2].value == "never"


def test_of_several_phases_under_fault_the_worst_is_shown() -> None:
    calm = PhaseRow("baseline", 0.0, 8.0, 100, 100, 0, 0, 0, 0, 1.0, 0.1, 0.2, False)
    first = msgspec.structs.replace(calm, name="one short", start_s=8.0, under_fault=True)
    second = msgspec.structs.replace(first, name="all short", start_s=16.0, completed=60, refused=40, success=0.6)
    shown = figures(Counts(offered=300, completed=260, refused=40), [calm, first, second])
    assert shown[2] == Figure("Success in all short", "60.0 %", "40 of 100 lost; the worst phase")
    assert figures(Counts(offered=200, completed=200), [calm, first])[2].note == "0 of 100 lost"


def test_a_run_that_was_cut_does_not_know_what_came_after() -> None:
    run = fresh()
    run.drop(run.find("events", kind="breaker_closed")[0])
    run.info = msgspec.structs.replace(run.info, complete=False)
    assert only(run).steady == "cannot_say"
    run.change(run.find("faults")[0], healed_s=None)
    episode = only(run)
    assert (episode.healed_s, episode.goodput_text) == (None, "cannot say (the run was cut)")


def test_without_a_fault_there_is_no_episode_and_no_section() -> None:
    run = fresh()
    run.rows["faults"] = []
    history = run.history()
    assert episodes(history) == []
    assert recovery_view(history, []) is None
    assert EXPERIMENT["baseline_phase"] == "baseline"
