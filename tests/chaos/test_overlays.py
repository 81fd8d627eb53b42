"""Profiles of an experiment: what is laid over what, and how a wrong one is refused."""

from pathlib import Path

import pytest
import yaml

from chaos.experiment import ExperimentError, catalogue, find
from chaos.overlays import with_profile
from chaos.resolve import load
from workloads.plan import PhaseLoad

FILE = {"title": "t", "phases": {"a": {"duration_s": 1}}, "profiles": {"big": {"phases": {"a": {"duration_s": 9}}}}}


def test_a_profile_is_laid_over_the_file_and_the_section_is_gone() -> None:
    assert with_profile(FILE, None, "x.yaml") == {"title": "t", "phases": {"a": {"duration_s": 1}}}
    assert with_profile(FILE, "big", "x.yaml") == {"title": "t", "phases": {"a": {"duration_s": 9}}}
    assert FILE["phases"] == {"a": {"duration_s": 1}}


@pytest.mark.parametrize(
    ("document", "profile", "said"),
    [
        (FILE, "small", "x.yaml: no profile 'small'; there is big"),
        ({"title": "t"}, "small", "x.yaml: no profile 'small'; this experiment has none"),
        ({"profiles": [1]}, None, "x.yaml: profiles: expected a mapping from name to fields, got list"),
        ({"profiles": {"big": 3}}, None, "x.yaml: profiles.big: expected fields, got int"),
    ],
)
def test_a_wrong_profile_is_refused_in_one_line(document: dict[str, object], profile: str | None, said: str) -> None:
    with pytest.raises(ExperimentError) as refused:
        with_profile(document, profile, "x.yaml")
    assert str(refused.value) == said


def test_settings_have_the_last_word_and_errors_name_the_profile() -> None:
    path = find("load_spike")
    assert load(path, profile="prd").phases["spike"].load == PhaseLoad(rate="100/s")
    assert load(path, ["phases.spike.load.rate=3x"], profile="prd").phases["spike"].load == PhaseLoad(rate="3x")
    with pytest.raises(
        ExperimentError, match=r"load_spike\.yaml with --profile prd --set phases\.spike\.load\.rate=fast:"
    ):
        load(path, ["phases.spike.load.rate=fast"], profile="prd")


@pytest.mark.parametrize("name", list(catalogue()))
def test_every_profile_of_the_catalogue_is_a_whole_experiment(name: str) -> None:
    for profile in yaml.safe_load(Path(find(name)).read_text()).get("profiles") or {}:
        load(find(name), profile=profile)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("phases.spike.load.rate=fast", "phases.spike.load.rate: expected a positive rate such as 10x, 50/s or 120%"),
        (
            "phases.spike.load.burst=5",
            "phases.spike.load: expected one of rate, burst, closed and closed_per_worker, got rate and burst",
        ),
        ("phases.spike.load={burst: 0}", "phases.spike.load.burst: expected int >= 1"),
        ("phases.spike.load={bursts: 5}", "phases.spike.load.bursts: no such field; did you mean burst?"),
        ("phases.spike.load=nothing", "phases.spike.load: "),
        ("phases.spike.load=7", "phases.spike.load: expected "),
    ],
)
def test_a_wrong_load_of_a_phase_is_refused_by_field(setting: str, said: str) -> None:
    with pytest.raises(ExperimentError) as refused:
        load(find("load_spike"), [setting])
    text = str(refused.value)
    assert said in text, text
    assert "\n" not in text
