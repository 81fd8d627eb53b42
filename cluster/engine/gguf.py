"""A Llama in a GGUF file, written as a model directory of mlx-lm.

MLX reads the file, in a process of its own (`python -m cluster.engine.gguf`), so that whoever wants a model needs no
MLX in its own process; all that is done to what it has read is plain NumPy.
"""

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from cluster.engine.tokenizer import AddedToken, byte_level, byte_level_bpe

GROUP = 32
"""How many weights share a scale and a bias, in every quantised form that MLX keeps as it is."""

_CONVERSION_S_MAX = 600.0
_NORMAL, _CONTROL = 1, 3  # of tokenizer.ggml.token_type
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INNER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_TENSOR = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<name>\w+)\.(?P<part>weight|scales|biases)")

Array = NDArray[Any]
Form = Literal["float32", "quantised"]
"""float32: every weight as one number. quantised: as few bits as in the file, the rest in float16."""


class ConversionFailed(Exception):
    """The file cannot be made a model directory. The message is one line."""


class Metadata(msgspec.Struct, frozen=True):
    """What a GGUF file says of its model and its tokenizer, where only one answer is understood: that one."""

    architecture: Literal["llama"] = msgspec.field(name="general.architecture")
    layers: int = msgspec.field(name="llama.block_count")
    hidden: int = msgspec.field(name="llama.embedding_length")
    intermediate: int = msgspec.field(name="llama.feed_forward_length")
    context: int = msgspec.field(name="llama.context_length")
    heads: int = msgspec.field(name="llama.attention.head_count")
    kv_heads: int = msgspec.field(name="llama.attention.head_count_kv")
    rms_epsilon: float = msgspec.field(name="llama.attention.layer_norm_rms_epsilon")
    rope_base: float = msgspec.field(name="llama.rope.freq_base")
    bpe: Literal["gpt2"] = msgspec.field(name="tokenizer.ggml.model")
    splitting: Literal["smollm"] = msgspec.field(name="tokenizer.ggml.pre")
    tokens: list[str] = msgspec.field(name="tokenizer.ggml.tokens")
    token_types: list[int] = msgspec.field(name="tokenizer.ggml.token_type")
    merges: list[str] = msgspec.field(name="tokenizer.ggml.merges")
    bos: int = msgspec.field(name="tokenizer.ggml.bos_token_id")
    eos: int = msgspec.field(name="tokenizer.ggml.eos_token_id")
    unknown: int = msgspec.field(name="tokenizer.ggml.unknown_token_id")
    padding: int = msgspec.field(name="tokenizer.ggml.padding_token_id")
    chat_template: str = msgspec.field(name="tokenizer.chat_template")
    adds_bos: bool = msgspec.field(name="tokenizer.ggml.add_bos_token", default=False)
    adds_space: bool = msgspec.field(name="tokenizer.ggml.add_space_prefix", default=False)


def convert(file: Path, directory: Path, form: Form) -> None:
    """Fill an empty directory with the model of a GGUF file. In a child process, for some seconds.

    Raises ConversionFailed; then the directory may hold part of the files.
    """
    command = [sys.executable, "-m", "cluster.engine.gguf", str(file), str(directory), "--form", form]
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_CONVERSION_S_MAX, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConversionFailed(f"converting was not finished after {_CONVERSION_S_MAX:.0f} s") from error
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines() or [f"the converting process ended with {child.returncode}"]
        raise ConversionFailed(f"converting failed: {lines[-1][:300]}")


def write_model(directory: Path, tensors: Mapping[str, Array], facts: Mapping[str, Any], form: Form) -> None:
    """Write config.json, tokenizer.json, tokenizer_config.json and model.safetensors.

    tensors, facts: as `mx.load` gives them for a GGUF file, as NumPy arrays and plain values. Raises ValueError for
    a model that is not understood.
    """
    metadata = _understood(facts)
    weights = rename(tensors, metadata.heads, metadata.kv_heads)
    config = _config(metadata, weights, form)
    weights = dequantised(weights) if form == "float32" else _with_one_float_type(weights)
    for name, content in (
        ("config.json", config),
        ("tokenizer.json", tokenizer(metadata)),
        ("tokenizer_config.json", _tokenizer_config(metadata)),
    ):
        (directory / name).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    save_file(weights, directory / "model.safetensors", metadata={"format": "mlx"})


def rename(tensors: Mapping[str, Array], heads: int, kv_heads: int) -> dict[str, Array]:
    """The tensors under Hugging Face's names, in Hugging Face's order of rows. Raises ValueError for an unknown one."""
    renamed = {}
    for name in sorted(tensors):
        match = _TENSOR.fullmatch(name)
        layer = match and match["layer"]
        inner = (_INNER if layer else _OUTER).get(match["name"]) if match else None
        if match is None or inner is None:
            raise ValueError(f"tensor {name} is none of a Llama's")
        tensor = tensors[name]
        # The rows of scales and biases are those of the weights.
        if match["name"] == "attn_q":
            tensor = undo_permutation(tensor, heads)
        elif match["name"] == "attn_k":
            tensor = undo_permutation(tensor, kv_heads)
        prefix = f"model.layers.{layer}." if layer else ""
        renamed[f"{prefix}{inner}.{match['part']}"] = tensor
    return renamed


def undo_permutation(rows: Array, heads: int) -> Array:
    """Rows of a query or key matrix as Hugging Face has them: all first halves of a head's pairs, then all second ones.

    llama.cpp interleaves the halves, because its rotary embedding turns neighbours and not halves against each other.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))


def dequantised(weights: Mapping[str, Array]) -> dict[str, Array]:
    """Every matrix in float32: scale * stored number + bias, a group at a time. Raises ValueError for odd widths."""
    plain: dict[str, Array] = {}
    for name, tensor in weights.items():
        stem, _, part = name.rpartition(".")
        if part != "weight":
            continue
        scales = weights.get(f"{stem}.scales")
        if scales is None:
            plain[name] = tensor.astype(np.float32)
            continue
        numbers = _unpack(tensor, _bits(tensor, scales)).reshape(*scales.shape, GROUP)
        # A product of 11 and at most 8 significant bits is exact in float32, so every host rounds once, to one result.
        scaled = numbers * scales.astype(np.float32)[..., None]
        plain[name] = (scaled + weights[f"{stem}.biases"].astype(np.float32)[..., None]).reshape(scales.shape[0], -1)
    return plain


def tokenizer(metadata: Metadata) -> dict[str, Any]:
    """The content of tokenizer.json. Raises ValueError for tokens or merges that are not understood."""
    vocabulary = {token: index for index, token in enumerate(metadata.tokens)}
    if len(vocabulary) != len(metadata.tokens) or len(metadata.token_types) != len(metadata.tokens):
        raise ValueError("the tokens are not all different, or not all of them have a type")
    if odd := set(metadata.token_types) - {_NORMAL, _CONTROL}:
        raise ValueError(f"tokens of the types {sorted(odd)} are not understood")
    special = [
        AddedToken(index, token)
        for index, (token, kind) in enumerate(zip(metadata.tokens, metadata.token_types, strict=True))
        if kind == _CONTROL
    ]
    merges = []
    for merge in metadata.merges:
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    digits = {"type": "Digits", "individual_digits": True}
    return byte_level_bpe(
        vocabulary,
        merges,
        special,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [digits, byte_level(trim_offsets=True)]},
        decoder=byte_level(trim_offsets=True),
    )


def _understood(facts: Mapping[str, Any]) -> Metadata:
    if scaled := sorted(key for key in facts if key.startswith("llama.rope.scaling")):
        raise ValueError(f"{scaled[0]} is not understood")
    try:
        metadata = msgspec.convert(facts, type=Metadata)
    except msgspec.ValidationError as error:
        raise ValueError(f"the file's metadata is not understood: {error}") from error
    if metadata.adds_bos or metadata.adds_space:
        raise ValueError("a tokenizer that puts something in front of every text is not understood")
    return metadata


def _config(metadata: Metadata, weights: Mapping[str, Array], form: Form) -> dict[str, Any]:
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": metadata.hidden,
        "num_hidden_layers": metadata.layers,
        "intermediate_size": metadata.intermediate,
        "num_attention_heads": metadata.heads,
        "num_key_value_heads": metadata.kv_heads,
        "rms_norm_eps": _shortest(metadata.rms_epsilon),
        "rope_theta": _shortest(metadata.rope_base),
        "vocab_size": len(metadata.tokens),
        "max_position_embeddings": metadata.context,
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "torch_dtype": "float32" if form == "float32" else "float16",
        "bos_token_id": metadata.bos,
        "eos_token_id": metadata.eos,
        "pad_token_id": metadata.padding,
    }
    if form == "quantised":
        config["quantization"] = _quantization(weights)
    return config


def _quantization(weights: Mapping[str, Array]) -> dict[str, Any]:
    """Bits for all, and after them the matrices that have others."""
    stems = [name.removesuffix(".scales") for name in weights if name.endswith(".scales")]
    bits = {stem: _bits(weights[f"{stem}.weight"], weights[f"{stem}.scales"]) for stem in stems}
    if not bits:
        raise ValueError("the file is not quantised")
    ((usual, _),) = Counter(bits.values()).most_common(1)
    others = {stem: {"group_size": GROUP, "bits": each} for stem, each in bits.items() if each != usual}
    return {"group_size": GROUP, "bits": usual, **others}


def _with_one_float_type(weights: Mapping[str, Array]) -> dict[str, Array]:
    # A float32 norm among float16 scales would make MLX compute everything behind it in float32.
    return {name: each.astype(np.float16) if each.dtype == np.float32 else each for name, each in weights.items()}


def _tokenizer_config(metadata: Metadata) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": metadata.tokens[metadata.bos],
        "eos_token": metadata.tokens[metadata.eos],
        "pad_token": metadata.tokens[metadata.padding],
        "unk_token": metadata.tokens[metadata.unknown],
        "model_max_length": metadata.context,
        "clean_up_tokenization_spaces": False,
        "chat_template": metadata.chat_template,
    }


def _shortest(value: float) -> float:
    """The number that somebody wrote, of which the file has the nearest float32."""
    return float(str(np.float32(value)))


def _bits(packed: Array, scales: Array) -> int:
    # `bits` words of 32 bits hold the 32 numbers of a group.
    bits, rest = divmod(int(packed.shape[-1]), int(scales.shape[-1]))
    if packed.dtype != np.uint32 or rest or bits not in (4, 8):
        raise ValueError(f"a matrix of {packed.dtype}, {packed.shape[-1]} wide with {scales.shape[-1]} scales")
    return bits


def _unpack(packed: Array, bits: int) -> NDArray[np.uint8]:
    octets = np.ascontiguousarray(packed).astype("<u4", copy=False).view(np.uint8)
    if bits == 8:
        return octets
    return np.stack([octets & 15, octets >> 4], axis=-1).reshape(octets.shape[0], -1)


def _load(file: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    import mlx.core as mx

    loaded: Any = mx.load(str(file), return_metadata=True)
    tensors, facts = loaded
    plain = {key: value.tolist() if isinstance(value, mx.array) else value for key, value in facts.items()}
    return {name: np.array(tensor) for name, tensor in tensors.items()}, plain


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m cluster.engine.gguf", description=__doc__)
    parser.add_argument("file", type=Path, help="a GGUF file")
    parser.add_argument("directory", type=Path, help="an empty directory for the model")
    parser.add_argument("--form", choices=["float32", "quantised"], default="float32")
    options = parser.parse_args()
    try:
        tensors, facts = _load(options.file)
        write_model(options.directory, tensors, facts, options.form)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(" ".join(str(error).split()))


if __name__ == "__main__":
    _main()
