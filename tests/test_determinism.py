"""The comparison of tests.determinism: what it calls identical, and what it must not."""

from msgspec.structs import replace

from chaos.searching.plans import Plan
from tests.determinism import PLAN_EVERY, TURNS, Told, differences, examine, plan_of

FIRST = Told({"a.arrow": "1", "b.arrow": "2"}, 10, 7)


def test_plays_that_left_the_same_are_the_same() -> None:
    assert differences({"one": FIRST, "other": replace(FIRST, hashed=8)}) == []


def test_other_rows_missing_files_and_empty_plays_are_told() -> None:
    for files in ({"a.arrow": "1", "b.arrow": "3"}, {"a.arrow": "1"}, {"a.arrow": "1", "b.arrow": "2", "c.arrow": "4"}):
        (problem,) = differences({"one": FIRST, "other": Told(files, 10, 8)})
        assert problem.startswith("other and one: other rows in ")
        assert problem.endswith("(1 files)")
    assert "one: no rows at all" in differences({"one": Told({}, 0, 1), "other": Told({}, 0, 2)})
    assert differences({"one": FIRST, "other": FIRST}) == ["all of them hash alike, so they show nothing"]


def test_a_player_that_depends_on_its_process_is_found() -> None:
    def steady(plan: Plan) -> Told:
        return Told({"a": f"{plan.seed}"}, 1, 1)

    def moody(plan: Plan) -> Told:
        return Told({"a": f"{plan.seed if plan.seed != 2 else 'another'}"}, 1, 2)

    found = list(examine(range(1, 4), {"steady": steady, "moody": moody}, jobs=2))
    assert [bool(problems) for _, _, problems in found] == [False, True, False]


def test_two_seeds_with_the_same_rows_are_told() -> None:
    players = {"one": lambda plan: FIRST, "other": lambda plan: replace(FIRST, hashed=8)}
    problems = [problems for _, _, problems in examine(range(1, 3), players, jobs=1)]
    assert problems[0] == []
    assert problems[1][0].startswith("the same rows as of 1 ")


def test_seeds_take_turns_through_the_catalogue_and_random_plans() -> None:
    seeds = range(1, 1 + len(TURNS) * PLAN_EVERY // (PLAN_EVERY - 1) + 1)
    names = [plan_of(seed)[0] for seed in seeds]
    assert set(TURNS) <= set(names)
    random = [plan_of(seed)[1] for seed in range(PLAN_EVERY, 5 * PLAN_EVERY, PLAN_EVERY)]
    assert len({repr(plan.experiment) for plan in random}) == len(random)
    assert random[0] == plan_of(PLAN_EVERY)[1]
