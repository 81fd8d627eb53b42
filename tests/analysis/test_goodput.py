"""Whether goodput came back after a fault: a number only where the rows carry one, else why it cannot be told."""

from collections.abc import Callable

import msgspec
import pytest

from analysis.episodes import episodes
from analysis.verdict import EpisodeResult
from tests.analysis.histories import HEALED_S, INJECTED_S, INTERVAL_S, PHASES, Run
from tests.analysis.test_checkers import fail, fresh
from tests.analysis.test_recovery import strike

LAST_S = PHASES["recovery"][1]


def ids(run: Run, start_s: float, end_s: float) -> list[str]:
    return [line["request_id"] for line in run.schedule if start_s <= line["intended_s"] < end_s]


def lose(start_s: float, end_s: float, every: int = 1) -> Callable[[Run], None]:
    """Requests due then fail."""

    def change(run: Run) -> None:
        for request_id in ids(run, start_s, end_s)[::every]:
            fail(run, request_id, "FIRST_TOKEN_TIMEOUT")

    return change


def never_ask(start_s: float, end_s: float, but_every: int = 0) -> Callable[[Run], None]:
    """Nothing is offered then, or one of so many."""

    def change(run: Run) -> None:
        inside = ids(run, start_s, end_s)
        gone = set(inside) - set(inside[::but_every] if but_every else ())
        run.schedule = [line for line in run.schedule if line["request_id"] not in gone]
        for row in run.find("requests"):
            if row.request_id in gone:
                run.drop(row)

    return change


def struck_in_the_baseline(run: Run) -> None:
    strike(run, 3.0, 4.0)


def struck_again(injected_s: float) -> Callable[[Run], None]:
    def change(run: Run) -> None:
        strike(run, injected_s, injected_s + 1.0)

    return change


def one_that_outlives_the_load(run: Run) -> None:
    run.change(run.find("faults")[0], healed_s=LAST_S - 4.5)


CASES: list[tuple[str, list[Callable[[Run], None]], str, float | None, str]] = [
    ("nothing ever failed", [], "back", None, "was never away"),
    (
        "it was away during the fault",
        [lose(INJECTED_S, HEALED_S)],
        "back",
        0.0,
        "came back after 0.00 s",
    ),
    (
        "it was away for some seconds after it",
        [lose(INJECTED_S, HEALED_S + 3.0)],
        "back",
        3.0,
        "came back after 3",
    ),
    (
        "nothing was good before the fault either",
        [lose(0.0, LAST_S)],
        "cannot_say",
        None,
        "cannot say (goodput was 0% before)",
    ),
    (
        "the base itself was under a fault",
        [struck_in_the_baseline],
        "cannot_say",
        None,
        "cannot say (a fault was on in the baseline)",
    ),
    (
        "the load ended with the heal",
        [lose(INJECTED_S, HEALED_S), never_ask(HEALED_S, LAST_S)],
        "cannot_say",
        None,
        "cannot say (too few requests: 0 at last)",
    ),
    (
        "a third of the load was left, and that went well",
        [lose(INJECTED_S, HEALED_S + 2.0), never_ask(HEALED_S + 2.0, LAST_S, but_every=3)],
        "cannot_say",
        None,
        "were offered at last",
    ),
    (
        "nobody asked just after the heal",
        [lose(INJECTED_S, HEALED_S), never_ask(HEALED_S, HEALED_S + 6.0)],
        "back",
        None,
        "back, since when cannot be told (nothing was offered for 6",
    ),
    (
        "nobody asked between the last failure and the first success",
        [lose(INJECTED_S, HEALED_S + 2.0), never_ask(HEALED_S + 2.0, HEALED_S + 5.0)],
        "back",
        None,
        "back, since when cannot be told (nothing was offered for 3",
    ),
    (
        "so few were offered that a window of two seconds shows nothing",
        [never_ask(0.0, LAST_S, but_every=6), lose(INJECTED_S, HEALED_S)],
        "cannot_say",
        None,
        "cannot say (too few requests",
    ),
    (
        "nobody asked during the fault",
        [never_ask(INJECTED_S, HEALED_S)],
        "back",
        None,
        "up, whether it was ever away cannot be told (nothing was offered for 5",
    ),
    (
        "the next fault touches this one",
        [lose(INJECTED_S, HEALED_S), struck_again(HEALED_S)],
        "back",
        0.0,
        "came back after 0.00 s",
    ),
    (
        "the next fault strikes at once",
        [lose(INJECTED_S, HEALED_S), struck_again(HEALED_S + 0.2)],
        "not_judged",
        None,
        "not judged: partition worker-1 struck 0.20 s after the heal",
    ),
    (
        "the load ended too soon after the heal",
        [lose(INJECTED_S, LAST_S), one_that_outlives_the_load],
        "cannot_say",
        None,
        "the load ended 4.50 s after the heal",
    ),
    (
        "it stays away under the same load",
        [lose(INJECTED_S, LAST_S, every=4)],
        "never",
        None,
        "not back within the run (metastable?)",
    ),
    (
        "it stays away although less is offered",
        [lose(INJECTED_S, LAST_S), never_ask(HEALED_S + 2.0, LAST_S, but_every=2)],
        "never",
        None,
        "not back within the run (metastable?)",
    ),
]


def found(*changes: Callable[[Run], None]) -> list[EpisodeResult]:
    run = fresh()
    for change in changes:
        change(run)
    return episodes(run.history())


@pytest.mark.parametrize(("why", "changes", "state", "back_s", "text"), CASES, ids=[case[0] for case in CASES])
def test_a_return_is_a_number_only_where_the_rows_carry_one(
    why: str, changes: list[Callable[[Run], None]], state: str, back_s: float | None, text: str
) -> None:
    episode = next(each for each in found(*changes) if "cut" in each.faults)
    assert (episode.goodput, text in episode.goodput_text) == (state, True), (why, episode.goodput_text)
    assert episode.goodput_back_s == (None if back_s is None else pytest.approx(back_s, abs=2 * INTERVAL_S))


def test_a_window_that_holds_too_few_requests_gives_no_number() -> None:
    """Three in a second, of which two were good before: enough to say that goodput is back, not since when."""
    run = fresh()
    factor = 4.0
    _stretch(run, factor)
    start_s, end_s = (factor * edge_s for edge_s in PHASES["baseline"])
    lose(start_s, end_s, every=3)(run)
    lose(INJECTED_S * factor, HEALED_S * factor)(run)
    (episode,) = episodes(run.history())
    assert (episode.goodput, episode.goodput_back_s) == ("back", None), episode.goodput_text
    assert "requests in 2 s show nothing" in episode.goodput_text


def _stretch(run: Run, factor: float) -> None:
    """Let everything last so much longer."""
    for table, names in (
        ("events", ("time_s",)),
        ("faults", ("injected_s", "healed_s", "verified_s")),
        ("requests", ("intended_s", "sent_s", "ended_s", "deadline_s", "first_token_s")),
    ):
        for row in run.find(table):
            run.change(row, **{name: getattr(row, name) * factor for name in names})
    for row in run.find("requests"):
        run.change(row, ended_s=row.intended_s + 0.2)
    run.schedule = [line | {"intended_s": line["intended_s"] * factor} for line in run.schedule]


@pytest.mark.parametrize(("margin_s", "state"), [(0.9, "back"), (3.0, "not_judged")])
def test_what_the_next_fault_took_away_is_not_blamed_on_this_one(margin_s: float, state: str) -> None:
    """Due less than a caller's patience (1 s) before the next fault, and lost to it; or lost long before."""
    next_s = HEALED_S + 8.0
    first = found(lose(INJECTED_S, HEALED_S), struck_again(next_s), lose(next_s - margin_s, next_s))[0]
    assert first.goodput == state, first.goodput_text
    assert msgspec.json.encode(first)
