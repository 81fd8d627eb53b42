"""Every kind of load as an experiment's settings: refused by field, and offered in a whole simulated run."""

from pathlib import Path

import pytest

from chaos.experiment import Experiment, ExperimentError, find
from chaos.resolve import load
from tests.chaos.simulated_runs import conduct

DATA = Path(__file__).parent.parent / "workloads" / "data"
TRACE = f"workload.trace={{path: {DATA}/mooncake.jsonl, format: mooncake, repeat: true, scale_tokens: 0.1}}"
REPLAYED = ("workload.arrivals=trace", TRACE)
PACKAGE = """
from workloads.request import ScheduledRequest
def pairs(options, *, rate_per_s, duration_s, seed, vocabulary, context_max_tokens):
    prompt = (*vocabulary.markers.before_first, 7, 8, 9, *vocabulary.markers.before_reply)
    count = int(rate_per_s * duration_s / 2)
    return [
        ScheduledRequest(f"n{number}-{half}", 2 * number / rate_per_s, f"n{number}-{half}", 0, "p", prompt, 6)
        for number in range(count) for half in (0, 1)
    ]
"""


def resolve(*settings: str) -> Experiment:
    return load(find("network_partition"), settings)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of somebody else's, as pip would leave it."""
    (tmp_path / "shifts.py").write_text(PACKAGE)
    metadata = tmp_path / "shifts-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shifts\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[mlx_chaos.workloads]\npairs = shifts:pairs\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "field", "what"),
    [
        (["workload.arrivals=gamma"], "workload.burstiness", "needs one, say 2.5"),
        (["workload.burstiness=2"], "workload.burstiness", "alone has one"),
        (["workload.ramp=[1]"], "workload.ramp", "length 2"),
        (["workload.ramp=[0, 0]"], "workload.ramp", "above 0"),
        (["workload.ramp=[1, 2]", "workload.steps=[[2, 3]]"], "workload.steps", "not both"),
        (["workload.steps=[[5, 1], [2, 3]]"], "workload.steps", "ascending"),
        (["workload.steps=[[5, 2], [900, 1]]"], "workload.steps", "a step comes after 900 s, the phases last 73 s"),
        (["workload.think_s=[5, 1]"], "workload.think_s", "least <= most"),
        (["workload.think_s={kind: lognormal, meen: 2}"], "workload.think_s.meen", "did you mean mean?"),
        (["workload.prompt_tokens=0"], "workload.prompt_tokens", "between 1 and 10000"),
        (["workload.prompt_tokens={kind: choices, values: [5000, 9]}"], "workload.prompt_tokens", "4096"),
        (["workload.system_prompts={count: 2, tokens: 4000}"], "workload.system_prompts.tokens", "context_max_tokens"),
        (["workload.system_prompts={count: 2}"], "workload.system_prompts", "tokens"),
        (["workload.arrivals=trace"], "workload.trace", "needs a path and a format"),
        ([TRACE], "workload.arrivals", "expected trace"),
        ([*REPLAYED, "workload.trace.path=none.csv"], "workload.trace", "no file none.csv in the experiment's folder"),
        ([*REPLAYED, "workload.trace.format=azure"], "workload.trace", "mooncake.jsonl: line 1: no column TIMESTAMP"),
        ([*REPLAYED, "workload.trace.speed=1"], "workload.trace", "less than rate_min, 20/s"),
        ([*REPLAYED, "workload.trace.pace=1"], "workload.trace.pace", "no such field; there is path"),
        ([*REPLAYED, "workload.think_s=1"], "workload.think_s", "has no use for it"),
        (
            [*REPLAYED, "workload.trace.scale_tokens=1", "policy.worker.context_max_tokens=900"],
            "workload.trace.scale_tokens",
            "line 4 and the chat template can take 2401 tokens, policy.worker.context_max_tokens is 900",
        ),
        (["workload.plugin=pears"], "workload.plugin", "no entry point named 'pears'"),
        (["workload.plugin=pairs", "phases.fault.load={burst: 5}"], "phases.fault.load", "a plugin makes the load"),
        (["workload.plugin=pairs", "workload.ramp=[1, 2]"], "workload.ramp", "has no use for it"),
        (["workload.options={a: 1}"], "workload.options", "only a plugin"),
    ],
)
@pytest.mark.usefixtures("installed")
def test_a_wrong_load_is_refused_by_its_field(settings: list[str], field: str, what: str) -> None:
    with pytest.raises(ExperimentError) as refused:
        resolve(*settings)
    told = str(refused.value)
    assert f": {field}: " in told
    assert what in told
    assert "\n" not in told


def test_a_trace_is_looked_for_beside_the_experiment_and_then_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder, lines in ((beside, 24), (here, 12)):
        folder.mkdir()
        text = (DATA / "mooncake.jsonl").read_text().splitlines(keepends=True)[:lines]
        (folder / "t.jsonl").write_text("".join(text))
    (beside / "mine.yaml").write_text(find("network_partition").read_text())
    monkeypatch.chdir(here)
    settings = ["workload.arrivals=trace", "workload.trace={path: t.jsonl, format: mooncake}"]
    found = load(beside / "mine.yaml", settings).workload.trace
    assert found is not None
    assert found.path == str(beside / "t.jsonl")
    found = resolve(*settings).workload.trace
    assert found is not None
    assert found.path == str(here / "t.jsonl")


def test_a_speed_settles_the_rate() -> None:
    workload = resolve(*REPLAYED, "workload.trace.speed=2", "workload.rate_min=null").workload
    assert workload.rate == "3.00692901/s"


@pytest.mark.simulated
@pytest.mark.parametrize(
    "settings",
    [
        ("workload.arrivals=gamma", "workload.burstiness=2.5", "workload.ramp=[0.5, 1.5]"),
        ("workload.think_s={kind: lognormal, mean: 2, cv: 1, most: 9}", "workload.turns_max=4"),
        ("workload.system_prompts={count: 3, tokens: 60}", "workload.prompt_tokens={kind: choices, values: [9, 40]}"),
        REPLAYED,
        ("workload.plugin=pairs",),
    ],
    ids=["gamma ramp", "think", "system prompts", "trace", "plugin"],
)
@pytest.mark.usefixtures("installed")
def test_a_run_offers_it(tmp_path: Path, settings: tuple[str, ...]) -> None:
    done = conduct(tmp_path / "out", *settings)
    assert done.verdict.verdict == "pass", done.failed_rows()
    assert len(done.history.requests) == pytest.approx(30 * 40, rel=0.3)
