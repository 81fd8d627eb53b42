"""A wrong experiment is refused before anything starts, in one line: which file, which field, what was expected."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.experiment import Experiment, ExperimentError, catalogue, find
from chaos.resolve import load
from chaos.run import main
from tests.cluster import QUICK

GOOD = find("network_partition")


def complaint(path: Path, *settings: str, policy: str | None = None) -> str:
    """The one line that a wrong experiment costs."""
    with pytest.raises(ExperimentError) as caught:
        load(path, settings, policy)
    text = str(caught.value)
    assert text.isprintable(), f"more than one line, or something that a terminal would obey: {text!r}"
    return text


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("name", sorted(catalogue()))
def test_the_whole_catalogue_is_valid(name: str) -> None:
    assert isinstance(load(find(name)), Experiment)


def test_settings_are_laid_over_the_file() -> None:
    experiment = load(GOOD, ["cluster.workers=5", "faults.cut.targets=[controller]", "policy.retry.max_attempts=1"])
    assert experiment.cluster.workers == 5
    assert experiment.faults["cut"].targets == ("controller",)
    assert experiment.policy.retry.max_attempts == 1
    assert experiment.policy.retry.backoff_s == load(GOOD).policy.retry.backoff_s


def test_an_experiments_own_policy_is_laid_over_the_profile(tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text("retry: {max_attempts: 7, backoff_s: 0.5}\n")
    experiment = load(GOOD, ["policy.retry.max_attempts=2"], str(profile))
    assert experiment.policy.retry.backoff_s == 0.5
    assert experiment.policy.retry.max_attempts == 2


def test_an_unknown_experiment_names_the_catalogue() -> None:
    for name in ("network_partitoin", "", "../etc/passwd", "no/such/file.yaml"):
        with pytest.raises(ExperimentError, match=r"no such (experiment; the catalogue has .*network_partition|file)"):
            find(name)


@pytest.mark.parametrize(
    ("setting", "field", "expectation"),
    [
        ("faults.cut.repeat={times: 2}", "faults.cut.repeat", "expected one of every_s and within_s"),
        ("faults.cut.repeat={times: 2, every_s: 3}", "faults.cut.repeat.every_s", "at least the fault's duration"),
        ("faults.cut.repeat={times: 2, within_s: 30}", "faults.cut.repeat.within_s", "2 strikes take at least 70 s"),
        ("faults.cut.repeat={times: 2, every_s: 35}", "faults.cut.duration_s", "ends 71 s into fault"),
        ("faults.cut.when={state: asleep, within_s: 1}", "faults.cut.when.state", "expected one of stream_token"),
        ("faults.cut.when={state: half_open, within_s: 1}", "faults.cut.when.node", "a state of a controller"),
        ("faults.cut.when={state: prefill, within_s: 20}", "faults.cut.duration_s", "ends 56 s into fault"),
        ("faults.cut.targets=[worker-0, worker-1, worker-2]", "faults.cut.targets", "guard.last_worker: true allows"),
        ("guard.targets_max=0", "guard.targets_max", ">= 1"),
        ("clutser.workers=3", "clutser", "did you mean cluster?"),
        ("cluster.wrokers=3", "cluster.wrokers", "did you mean workers?"),
        ("faults.cut.mod=stall", "faults.cut.mod", "did you mean mode?"),
        ("policy.retry.attempts_max=3", "policy.retry.attempts_max", "did you mean max_attempts?"),
        ("expectations.detection.at_mots=3", "expectations.detection.at_mots", "did you mean at_most?"),
        ("phases.fault.length=3", "phases.fault.length", "there is duration_s"),
        ("cluster.workers=three", "cluster.workers", "expected int"),
        ("cluster.workers=0", "cluster.workers", ">= 1"),
        ("cluster.workers=-1", "cluster.workers", ">= 1"),
        ("cluster.workers=1000000", "cluster.workers", "<= 10000"),
        ("cluster.workers=2.5", "cluster.workers", "expected int"),
        ("cluster.broker_port=70000", "cluster.broker_port", "<= 65535"),
        ("phases.fault.duration_s=-3", "phases.fault.duration_s", "> 0"),
        ("phases.fault.duration_s=.nan", "phases.fault.duration_s", "expected"),
        ("phases.fault.duration_s=.inf", "phases.fault.duration_s", "<= 86400"),
        ("faults.cut.start_s=.nan", "faults.cut.start_s", "expected"),
        ("expectations.detection.at_most=.nan", "expectations.detection.at_most", "expected"),
        ("workload.rate=fast", "workload.rate", "expected a positive rate such as 12/s or 60%"),
        ("workload.rate=0/s", "workload.rate", "positive rate"),
        ("workload.rate=-3/s", "workload.rate", "positive rate"),
        ("workload.rate=999999999/s", "workload.rate", "at most"),
        ("workload.arrivals=bursty", "workload.arrivals", "bursty"),
        ("faults.cut.duration_s=300", "faults.cut.duration_s", "into fault, which lasts"),
        ("faults.cut.start_s=36", "faults.cut.duration_s", "into fault, which lasts"),
        ("faults.cut.ttl_s=1", "faults.cut.ttl_s", "at least the fault's duration"),
        (
            "faults.cut.targets=[worker-7]",
            "faults.cut.targets",
            "no node named 'worker-7'; there is controller, worker-0",
        ),
        ("faults.cut.targets=[]", "faults.cut.targets", "at least one node"),
        ("faults.cut.targets=[worker-0, worker-0]", "faults.cut.targets", "named twice"),
        ("faults.cut.targets=worker-0", "faults.cut.targets", "expected array"),
        ("faults.cut.mode=sideways", "faults.cut.mode", "expected one of refuse, reset, stall"),
        ("faults.cut.kind=meteor", "faults.cut.kind", "expected one of partition"),
        ("faults.cut.phase=lunch", "faults.cut.phase", "no phase named 'lunch'; there is warm_up, baseline"),
        ("faults.cut.options={a: 1}", "faults.cut.options", "partition has no a; it has none"),
        ("faults.cut=7", "faults.cut", "expected object"),
        ("faults=7", "faults", "expected a mapping"),
        ("phases=[1]", "phases", "expected a mapping"),
        ("expectations.detection.metric=speed", "expectations.detection.metric", "no metric named 'speed'"),
        ("expectations.detection.phase=lunch", "expectations.detection.phase", "no phase named"),
        ("expectations.detection.at_most=null", "expectations.detection", "expected one of at_least and at_most"),
        ("expectations.detection.confidence=1", "expectations.detection.confidence", "< 1"),
        ("expectations.detection.when_target=moon", "expectations.detection.when_target", "no role named 'moon'"),
        ("steady_state.latency.metric=speed", "steady_state.latency.metric", "no metric named 'speed'"),
        ("baseline_phase=lunch", "baseline_phase", "no phase named"),
        ("name=Not A Name", "name", "matching regex"),
        ("policy.timeout.first_token_s=0", "policy.timeout.first_token_s", "> 0"),
        ("policy=7", "policy", "expected object"),
        ("workload.prompt_tokens=[24, 9000]", "workload.prompt_tokens", "context_max_tokens is 4096"),
        ('cluster="\\ud800"', "the file", "expected Unicode"),
        ("recovery_limit_s=null", "recovery_limit_s", "expected float"),
        ("faults.cut.start_s=.inf", "faults.cut.start_s", "expected a finite number, got inf"),
        ("cluster.costs.step_s=.nan", "cluster.costs.step_s", "expected a finite number, got nan"),
        ("guard.latency_p99_s_max=.nan", "guard.latency_p99_s_max", "expected float > 0.0"),
        ("policy.link.ping_s=.inf", "policy.link.ping_s", "expected float <= 86400.0"),
    ],
)
def test_a_wrong_field_costs_one_line_that_names_it_and_what_was_right(
    setting: str, field: str, expectation: str
) -> None:
    text = complaint(GOOD, setting)
    assert text.startswith(f"network_partition.yaml with --set {setting}: {field}: "), text
    assert expectation in text


@pytest.mark.parametrize(
    ("setting", "expectation"),
    [
        ("nonsense", "expected path.to.field=value"),
        ("=3", "expected path.to.field=value"),
        ("a..b=3", "expected path.to.field=value"),
        ("cluster.workers=[", "the value is not YAML"),
        ("cluster.workers.deep=3", "workers is not a section"),
        ("recovery_limit_s=2024-99-99", "the value is not YAML"),
        ("faults={cut: {enabled: false}, cut: {}}", "the key 'cut' is there twice"),
        ("recovery_limit_s=" + "9" * 5_000, "the value is not YAML"),
        ("recovery_limit_s=" + "[" * 20_000, "the value is not YAML"),
    ],
)
def test_a_wrong_setting_is_quoted(setting: str, expectation: str) -> None:
    text = complaint(GOOD, setting)
    assert text.startswith("--set ")
    assert expectation in text


@pytest.mark.parametrize(
    ("text", "expectation"),
    [
        ("", "expected a mapping of fields, got NoneType"),
        ("- a\n- b\n", "expected a mapping of fields, got list"),
        ("just words", "expected a mapping of fields, got str"),
        ("a: [1, 2", "not YAML"),
        ("a: 1\nb: {c: 2,\n  c: 3}\n", "line 3: the key 'c' is there twice"),
        ("a: 1\n b: 2\n", "not YAML"),
        ("a: !!python/object/apply:os.system ['false']", "not YAML"),
        ("a: *nobody", "not YAML"),
        ("when: 2024-13-45", "not YAML"),
        ("a: !!int ''", "not YAML"),
        ("a: " + "9" * 5_000, "not YAML"),
        ("a: " + "[" * 20_000, "not YAML"),
        ("? {a: 1}\n: 2\n", "not YAML"),
        (b"\xff\xfe\x00\x01", "not YAML"),
        (b"a: \x00", "not YAML"),
        ("1: 2\n", "mine.yaml"),
        ("null: 2\n", "mine.yaml"),
        ('"a\\nb": 1\n', "mine.yaml"),
        ('"a\\x1b[31m": 1\n', "mine.yaml"),
        ("title: 3\n", "mine.yaml"),
        ("{}", "name"),
        ("phases: {1: {duration_s: 3}}\n", "mine.yaml"),
        ("phases: {a: null}\n", "phases.a"),
        ("a: &a {b: *a}\n", "mine.yaml"),
        ("phases: &a {b: *a}\n", "phases.b"),
        ("policy: &a {retry: *a}\n", "policy.retry"),
    ],
)
def test_hostile_files_cost_one_line_too(tmp_path: Path, text: str | bytes, expectation: str) -> None:
    said = complaint(written(tmp_path, text))
    assert "mine.yaml" in said
    assert expectation in said
    assert len(said) < 500, "the line must be readable"


def test_a_bomb_of_references_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    text = complaint(written(tmp_path, "\n".join([*lines, "faults: *a29"])))
    assert "expected a mapping" in text


def test_a_policy_that_is_no_mapping_is_refused_with_a_profile_too(tmp_path: Path) -> None:
    for value in ("[1]", "7", "words"):
        path = written(tmp_path, GOOD.read_text() + f"\npolicy: {value}\n")
        assert "policy: expected object" in complaint(path, policy="default")


def test_unknown_profiles_name_the_known_ones(tmp_path: Path) -> None:
    assert "no policy profile 'yolo'; there is default" in complaint(GOOD, policy="yolo")
    assert "nowhere.yaml: cannot be read" in complaint(GOOD, policy=str(tmp_path / "nowhere.yaml"))


def test_a_directory_is_not_an_experiment(tmp_path: Path) -> None:
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    with pytest.raises(ExperimentError, match="no such file"):
        find(str(folder))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
PLACES = st.sampled_from(
    [
        *("name", "title", "cluster", "cluster.workers", "workload", "workload.rate", "workload.output_tokens"),
        *("phases", "phases.fault", "phases.fault.duration_s", "faults", "faults.cut", "faults.cut.targets"),
        *("faults.cut.options", "steady_state", "steady_state.latency", "expectations.detection", "policy"),
        *("policy.retry", "policy.retry.backoff_s", "recovery_limit_s", "baseline_phase", "new", "faults.new"),
    ]
)


@QUICK
@given(PLACES, VALUES)
def test_any_value_anywhere_is_either_taken_or_costs_one_line(place: str, value: object) -> None:
    said = ""
    try:
        load(GOOD, [f"{place}={json.dumps(value)}"])
    except ExperimentError as error:
        said = str(error)
    assert said.isprintable()


def test_the_command_says_the_line_on_stderr_starts_nothing_and_ends_with_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    assert main(["network_partition", "--out", str(out), "--set", "cluster.wrokers=3"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "cluster.wrokers: no such field; did you mean workers?" in said.err
    assert not out.exists()


def test_the_resolved_experiment_is_an_experiment_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["network_partition", "--dry-run", "--set", "cluster.workers=4"]) == 0
    assert load(written(tmp_path, capsys.readouterr().out)) == load(GOOD, ["cluster.workers=4"])


@pytest.mark.parametrize(
    ("name", "setting", "expected"),
    [
        ("sticky_sessions", "arms.moved.worker=worker-7", "arms.moved.worker: no worker named 'worker-7'"),
        ("sticky_sessions", "cluster.workers=1", "arms.moved.worker: there is no other worker"),
        ("sticky_sessions", "arms.moved.before=[evict]", "arms.moved.before: before has a meaning only with"),
        ("sticky_sessions", "arms.moved.closed=3", "arms.moved.closed: closed has a meaning only with"),
        ("sticky_sessions", "arms.sticky.prefix=some", "arms.sticky.prefix: "),
        ("sticky_sessions", "arms.sticky.wroker=a", "did you mean worker"),
        ("sticky_sessions", "comparison=null", "comparison: arms are compared in a phase"),
        ("sticky_sessions", "comparison.phase=later", "comparison.phase: no phase named 'later'"),
        ("sticky_sessions", "comparison.prefix_tokens=[9, 3]", "comparison.prefix_tokens: expected [least, most]"),
        ("sticky_sessions", "expectations.hit_rate.arm=nobody", "expectations.hit_rate.arm: no arm named 'nobody'"),
        ("sticky_sessions", "expectations.success.versus=moved", "expectations.success.versus: expected another arm"),
        ("sticky_sessions", "expectations.hit_rate.versus=moved", "compare by blocks"),
        ("sticky_sessions", "expectations.hit_rate.metric=breaker_trips", "is not about requests"),
        ("continuous_batching", "arms.limit_1.worker=away", "arms.limit_1.worker: worker: away has a meaning only"),
        ("continuous_batching", "arms.limit_1.worker=worker-1", "arms.limit_1.policy: a policy needs a named worker"),
        ("continuous_batching", "arms.limit_1.policy.worker.batch_max=0", "arms.limit_1.policy.worker.batch_max: "),
        (
            "continuous_batching",
            "arms.limit_1.policy.worker.batch=1",
            "arms.limit_1.policy.worker.batch: no such field",
        ),
        ("continuous_batching", "comparison.settle_s=9", "comparison.settle_s: nothing of a block"),
        ("pre_warming", "arms.cold.worker=''", "arms.cold.before: expected an arm that names its worker"),
        ("retry_value", "arms.once.controller=controller", "arms.once.controller: no controller named 'controller'"),
        ("retry_value", "arms.once.controller=controller-0", "controller: expected one that no other arm has"),
        ("retry_value", "arms.once.controller=''", "arms.once.controller: expected one, for other arms have"),
        ("retry_value", "arms.once.closed=4", "arms.once.controller: a closed arm has none"),
        ("retry_value", "workload.generators=3", "workload.generators: 2 arms with controllers need equally many"),
        ("retry_value", "arms.once.policy.retry.max_attempts=0", "arms.once.policy.retry.max_attempts: "),
        ("retry_value", "comparison.by=sessions", "controller has a meaning only with comparison.by: blocks"),
        ("network_partition", "arms={a: {}, b: {}}", "comparison: arms are compared in a phase"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused_by_its_field(name: str, setting: str, expected: str) -> None:
    assert expected in complaint(find(name), setting)


def test_an_arms_policy_is_that_of_its_own_worker_alone() -> None:
    experiment = load(find("continuous_batching"))
    assert [experiment.policy_of(name).worker.batch_max for name in experiment.worker_names()] == [1, 2, 4, 8, 16]
    assert experiment.policy_of("controller") == experiment.policy
    assert experiment.policy_of("worker-0").routing.outstanding_max == experiment.policy.routing.outstanding_max


def test_an_arms_policy_is_that_of_its_own_controller_and_of_the_clients_that_speak_to_it_alone() -> None:
    experiment = load(find("retry_value"), ["workload.generators=4"])
    tries = {name: experiment.policy_of(name).retry.max_attempts for name in experiment.node_names()}
    assert {name for name, most in tries.items() if most == 1} == {"controller-1", "client-1", "client-3"}
    asked = [experiment.policy_of(f"client-{number}").client.controller for number in range(4)]
    assert asked == ["controller-0", "controller-1"] * 2
    assert load(GOOD).policy_of("client-0").client.controller is None
