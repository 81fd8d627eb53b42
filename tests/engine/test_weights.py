import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from cluster.engine import weights

BUILD = "from cluster.engine.weights import *; print(fingerprint(model_directory('tiny')))"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_CHAOS_CACHE", str(tmp_path_factory.mktemp("cache")))
        return weights.model_directory("tiny")


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny / "tokenizer.json"))


def test_concurrent_builds_end_in_one_directory(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path))
    builders = [subprocess.Popen([sys.executable, "-c", BUILD], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    fingerprints = {builder.communicate()[0].strip() for builder in builders}
    assert fingerprints == {weights.fingerprint(tiny)}
    assert [each.name for each in (tmp_path / "models").iterdir()] == [tiny.name]


def test_loser_of_a_race_takes_the_winners_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path))
    winner = tmp_path / "models" / f"tiny-{weights.TINY_VERSION}"
    write = weights._write_tiny

    def overtaken(directory: Path) -> None:
        write(directory)
        winner.mkdir()
        (winner / "config.json").write_text("{}")

    monkeypatch.setattr(weights, "_write_tiny", overtaken)
    assert weights.model_directory("tiny") == winner
    assert (winner / "config.json").read_text() == "{}"
    assert list((tmp_path / "models").iterdir()) == [winner]


def test_the_bytes_of_tiny_are_pinned(tiny: Path) -> None:
    """A failure means: raise TINY_VERSION with the change, because caches and recorded results depend on it."""
    assert (weights.TINY_VERSION, weights.fingerprint(tiny)) == (1, "362a5a6283fb8d9c34bae09cf5234e74")


def test_fingerprint_follows_weights_and_configuration(tmp_path: Path, tiny: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tiny.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert weights.fingerprint(copy) == weights.fingerprint(tiny)
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    changed = weights.fingerprint(copy)
    assert changed != weights.fingerprint(tiny)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"eos_token_id": 7}))
    assert weights.fingerprint(copy) not in (changed, weights.fingerprint(tiny))


def test_data_types(tiny: Path) -> None:
    assert weights.data_types(tiny) == {"F32"}


def test_a_file_of_rubbish_has_no_data_types(tmp_path: Path) -> None:
    for content in (b"rubbish" * 100, b"", (20).to_bytes(8, "little") + b"not json", (2).to_bytes(8, "little") + b"[]"):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(weights.ModelUnavailable, match=r"model\.safetensors is not a safetensors file"):
            weights.data_types(tmp_path)


def test_weights_bytes_are_those_of_all_files_of_weights(tmp_path: Path, tiny: Path) -> None:
    assert weights.weights_bytes(tiny) == (tiny / "model.safetensors").stat().st_size
    with pytest.raises(weights.ModelUnavailable, match=r"holds no \*\.safetensors"):
        weights.weights_bytes(tmp_path)
    for number, size in enumerate((3, 40)):
        (tmp_path / f"model-{number}.safetensors").write_bytes(bytes(size))
    (tmp_path / "config.json").write_text("{}")
    assert weights.weights_bytes(tmp_path) == 43


def test_a_model_that_would_be_a_download_is_not_fetched_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path))
    with pytest.raises(weights.ModelUnavailable, match=r"run: python -m cluster\.models pull smollm2-135m$") as caught:
        weights.model_directory("smollm2-135m")
    assert not isinstance(caught.value, weights.UnknownModel)
    assert list(tmp_path.iterdir()) == []
    made = tmp_path / "models" / f"smollm2-135m-{weights.SMOLLM2_VERSION}"
    made.mkdir(parents=True)
    assert weights.model_directory("smollm2-135m") == made
    with pytest.raises(weights.ModelUnavailable, match=r"run: python -m cluster\.models pull nobody/nothing-at-all$"):
        weights.model_directory("nobody/nothing-at-all", download=False)


@pytest.mark.parametrize("error", [OSError("no network\nat all"), RuntimeError("no network"), ValueError("no network")])
def test_whatever_the_hub_says_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr("mlx_lm.utils._download", fail)
    with pytest.raises(weights.ModelUnavailable, match=r"^cannot download owner/model: no network$"):
        weights.model_directory("owner/model")


def test_what_came_from_the_hub_has_to_be_a_model(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx_lm.utils._download", lambda name: tmp_path if name == "an/adapter" else tiny)
    assert weights.model_directory("a/model") == tiny
    with pytest.raises(weights.ModelUnavailable, match=r"lacks config\.json"):
        weights.model_directory("an/adapter")


def test_a_local_directory_is_itself(tiny: Path) -> None:
    assert weights.model_directory(str(tiny)) == tiny.resolve()


@pytest.mark.parametrize("name", ["no-such-model", "a/b/c", "", "../x y", "./model", "../model", "a/.b"])
def test_a_name_that_is_no_model(name: str) -> None:
    with pytest.raises(weights.UnknownModel) as caught:
        weights.model_directory(name or "\t")
    assert "\n" not in str(caught.value)


def test_a_directory_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(weights.UnknownModel, match=r"no config\.json"):
        weights.model_directory(str(tmp_path))
    with pytest.raises(weights.ModelUnavailable, match="safetensors"):
        weights.fingerprint(tmp_path)


@given(text=st.text())
def test_any_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text).ids
    assert all(0 <= token < 512 for token in tokens)
    assert tokenizer.decode(tokens, skip_special_tokens=False) == text


def test_merges_shorten_english(tokenizer: Tokenizer) -> None:
    text = "the rest of the letter is as long as it was"
    assert len(tokenizer.encode(text).ids) < 0.7 * len(text)


def test_special_tokens_are_single_and_last(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<|user|>hi<|end|>").ids[-1] == 511
    assert [tokenizer.id_to_token(token) for token in range(507, 512)] == list(weights._SPECIAL)
