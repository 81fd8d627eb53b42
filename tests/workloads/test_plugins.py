"""Loads of installed packages: found, called and checked, and named when something is wrong."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest
from hypothesis import given, settings
from msgspec.structs import replace

from tests.workloads.test_schedule import seeds, specs
from workloads import plugins
from workloads.arrivals import Stretch
from workloads.plugins import ENTRY_POINTS, PluginError, check_schedule, find_plugin
from workloads.schedule import ScheduledRequest, build_schedule, first_requests
from workloads.spec import Option, WorkloadSpec
from workloads.vocabulary import ByteVocabulary, PromptVocabulary

WORDS = ByteVocabulary()
made: list[ScheduledRequest] = []


def every_so_often(
    options: Mapping[str, Option],
    *,
    rate_per_s: float,
    duration_s: float,
    seed: int,
    vocabulary: PromptVocabulary,
    context_max_tokens: int,
) -> list[ScheduledRequest]:
    gap_s = options.get("gap_s", 1 / rate_per_s)
    if not isinstance(gap_s, float):
        raise ValueError("gap_s: expected\na number")
    times = [gap_s * number for number in range(int(duration_s / gap_s))]
    return [
        ScheduledRequest(f"mine-{number}", time_s, "s", number, f"p{number % 3}", (5, seed, number % 3), 4)
        for number, time_s in enumerate(times)
    ]


def returns_made(options: Mapping[str, Option], **given: Any) -> list[ScheduledRequest]:
    return made


def takes_less(options: Mapping[str, Option], *, rate_per_s: float) -> list[ScheduledRequest]:
    return made


no_callable = 5


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    here = __name__
    points = [
        EntryPoint("often", f"{here}:every_so_often", ENTRY_POINTS),
        EntryPoint("made", f"{here}:returns_made", ENTRY_POINTS),
        EntryPoint("less", f"{here}:takes_less", ENTRY_POINTS),
        EntryPoint("five", f"{here}:no_callable", ENTRY_POINTS),
        EntryPoint("gone", f"{here}:not_there", ENTRY_POINTS),
        EntryPoint("lost", "nowhere_at_all:x", ENTRY_POINTS),
        EntryPoint("twice", f"{here}:returns_made", ENTRY_POINTS),
        EntryPoint("twice", f"{here}:every_so_often", ENTRY_POINTS),
        EntryPoint("other", f"{here}:returns_made", "some.other.group"),
    ]

    def entry_points(group: str) -> EntryPoints:
        return EntryPoints(point for point in points if point.group == group)

    monkeypatch.setattr(plugins, "entry_points", entry_points)


def test_a_plugin_makes_the_load_and_is_told_everything() -> None:
    spec = WorkloadSpec(plugin="often", options={"gap_s": 0.25})
    schedule = build_schedule(spec, 10, 3, 7, WORDS)
    assert [request.intended_s for request in schedule] == [0.25 * number for number in range(12)]
    assert schedule == every_so_often(
        {"gap_s": 0.25}, rate_per_s=10, duration_s=3, seed=7, vocabulary=WORDS, context_max_tokens=4096
    )
    assert len(build_schedule(WorkloadSpec(plugin="often"), 10, 3, 7, WORDS)) == 30


def test_a_closed_loop_takes_what_a_plugin_asks_as_often_as_it_needs() -> None:
    requests = first_requests(WorkloadSpec(plugin="often", options={"gap_s": 0.2}), 12, 7, WORDS)
    assert [request.prompt[2] for request in requests] == [0, 1, 2, 0, 1] * 2 + [0, 1]
    assert len({request.request_id for request in requests}) == 12


def test_a_plugin_knows_nothing_of_phases() -> None:
    with pytest.raises(ValueError, match="the plugin often knows nothing of phases"):
        build_schedule(WorkloadSpec(plugin="often"), 10, 3, 7, WORDS, profile=(Stretch(0, 1, 2.0),))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("night", r"no entry point named 'night' in the group mlx_chaos.workloads; installed: five, gone, less, lost"),
        ("other", "no entry point named 'other'"),
        ("twice", "2 entry points named 'twice'"),
        ("five", "five of .* cannot be called"),
        ("gone", "gone of .* cannot be loaded"),
        ("lost", "lost of nowhere_at_all:x cannot be loaded"),
        ("less", "less of .* does not take options, rate_per_s, duration_s, seed, vocabulary, context_max_tokens: "),
    ],
)
def test_a_plugin_that_cannot_be_used_is_named(name: str, complaint: str) -> None:
    with pytest.raises(PluginError, match=complaint) as refused:
        find_plugin(name)
    assert "\n" not in str(refused.value)


def test_what_a_plugin_says_of_its_options_is_one_line_with_its_name() -> None:
    with pytest.raises(PluginError, match=r"^often: gap_s: expected a number$"):
        build_schedule(WorkloadSpec(plugin="often", options={"gap_s": "wide"}), 10, 3, 7, WORDS)


@settings(max_examples=20, deadline=None)
@given(specs, seeds)
def test_the_projects_own_loads_pass_the_check(spec: WorkloadSpec, seed: int) -> None:
    schedule = build_schedule(spec, 20, 4, seed, WORDS)
    if schedule:
        check_schedule(schedule, 4, 4096)


GOOD = ScheduledRequest("r0", 0.5, "s0", 0, "p0", (1, 2), 3)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"intended_s": 0.4}, "request 1: intended_s: 0.4 comes after 0.5"),
        ({"intended_s": -1.0}, "request 1: intended_s: -1 comes after"),
        ({"intended_s": float("nan")}, "request 1: intended_s: expected seconds, got nan"),
        ({"intended_s": "now"}, "request 1: intended_s: expected seconds, got 'now'"),
        ({"intended_s": 3.0}, "request 1: intended_s: 3 is beyond the load's 3 s"),
        ({"request_id": "r0"}, "request 1: request_id: r0 is there twice"),
        ({"request_id": ""}, "request 1: request_id: expected 1 to 200 printable"),
        ({"request_id": "probe-7"}, "request 1: request_id: probe- is what the requests of the capacity probe"),
        ({"session_id": "a\nb"}, "request 1: session_id: expected"),
        ({"prompt_id": 5}, "request 1: prompt_id: expected"),
        ({"prompt_id": "p0"}, "request 1: prompt_id: p0 names another prompt already"),
        ({"arm": None}, "request 1: arm: expected a name"),
        ({"turn": -1}, "request 1: turn: expected"),
        ({"max_tokens": 0}, "request 1: max_tokens: expected"),
        ({"max_tokens": True}, "request 1: max_tokens: expected"),
        ({"block": -2}, "request 1: block: expected"),
        ({"prompt": ()}, "request 1: prompt: expected a tuple of token ids"),
        ({"prompt": [1, 2]}, "request 1: prompt: expected a tuple"),
        ({"prompt": (1, -2)}, "request 1: prompt: expected a tuple"),
        ({"max_tokens": 8}, "request 1: prompt: with the output cap it takes 11 tokens, the context holds 10"),
    ],
)
def test_a_wrong_request_is_named_with_its_plugin_and_field(wrong: dict[str, Any], complaint: str) -> None:
    fine = {"request_id": "r1", "prompt_id": "p1", "prompt": (1, 2, 3)}
    made[:] = [GOOD, replace(GOOD, **fine)]
    spec = WorkloadSpec(plugin="made")
    assert build_schedule(spec, 1, 3, 1, WORDS, context_max_tokens=10) == made
    made[:] = [GOOD, replace(GOOD, **(fine | wrong))]
    with pytest.raises(PluginError) as refused:
        build_schedule(spec, 1, 3, 1, WORDS, context_max_tokens=10)
    assert str(refused.value).startswith(f"made made no load: {complaint}")


@pytest.mark.parametrize("nothing", [None, [], {}, iter(()), [GOOD, "r1"]])
def test_what_is_no_list_of_requests_is_refused(nothing: Any) -> None:
    with pytest.raises(ValueError, match="expected a"):
        check_schedule(nothing, 3, 10)
