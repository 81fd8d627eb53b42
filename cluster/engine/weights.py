"""Where models come from: `tiny`, a directory in mlx-lm's format, or a hub id."""

import functools
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

TINY_VERSION = 1
"""Raised whenever anything below changes what `tiny` computes: caches are keyed by it."""

_SEED = 2
_LAYERS = 4
_HIDDEN = 128
_HEADS = 4
_INTERMEDIATE = 344
_VOCABULARY = 512
_CONTEXT = 8192
_HEADER_BYTES_MAX = 64 * 2**20
_SCALE = 2.0  # with the usual scale a random model repeats one token for ever, and every check of a stream is vacuous
_SPECIAL = ("<|system|>", "<|user|>", "<|assistant|>", "<|pad|>", "<|end|>")
_PAD = _VOCABULARY - 2
_END = _VOCABULARY - 1
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class ModelUnavailable(Exception):
    """A model cannot be had. The message is one line."""


def cache_home() -> Path:
    """The per-user folder for what can be made again: `$MLX_CHAOS_CACHE`, else `~/.cache/mlx-chaos`."""
    return Path(os.environ.get("MLX_CHAOS_CACHE") or Path.home() / ".cache" / "mlx-chaos")


def model_directory(name: str) -> Path:
    """The directory of a model in mlx-lm's format.

    name: `tiny` (built on first use), a local directory, or a hub id `owner/model` (downloaded on first use).
    Raises ModelUnavailable.
    """
    if name == "tiny":
        return _tiny()
    local = Path(name).expanduser()
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise ModelUnavailable(f"{name} is not a model directory: it has no config.json")
        return local.resolve()
    if not _HUB_ID.fullmatch(name):
        raise ModelUnavailable(f"no model {name!r}: neither `tiny`, nor a directory, nor a hub id owner/model")
    return _download(name)


def fingerprint(directory: Path) -> str:
    """32 hex digits that name what a model computes: a hash of its configuration, tokenizer and weights.

    A file is read again only when its size or its time of change is another one, also across processes.
    Raises ModelUnavailable when the directory holds no weights.
    """
    files = sorted([*directory.glob("*.json"), *directory.glob("*.safetensors")])
    if not any(file.suffix == ".safetensors" for file in files):
        raise ModelUnavailable(f"{directory} holds no *.safetensors")
    stats = [(str(file.resolve()), file.stat()) for file in files]
    return _fingerprint(tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats))


def data_types(directory: Path) -> frozenset[str]:
    """The element types of a model's weights, as safetensors names them: `F32`, `BF16`, `U32` when quantised.

    Raises ModelUnavailable for a damaged file.
    """
    types: set[str] = set()
    for file in directory.glob("*.safetensors"):
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > _HEADER_BYTES_MAX:
                raise ModelUnavailable(f"model {directory} does not load: {file.name} is not a safetensors file")
            header = json.loads(stream.read(length))
        types |= {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    return frozenset(types)


@functools.lru_cache(maxsize=64)
def _fingerprint(files: tuple[tuple[str, int, int], ...]) -> str:
    key = hashlib.blake2b(repr(files).encode(), digest_size=16).hexdigest()
    remembered = cache_home() / "fingerprints" / key
    if remembered.is_file():
        return remembered.read_text()
    digest = hashlib.blake2b(digest_size=16)
    for path, size, _ in files:
        digest.update(f"{Path(path).name}\0{size}\0".encode())
        with open(path, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    remembered.parent.mkdir(parents=True, exist_ok=True)
    partial = remembered.with_name(f"{key}.{os.getpid()}")
    partial.write_text(digest.hexdigest())
    partial.replace(remembered)
    return digest.hexdigest()


def _download(name: str) -> Path:
    # Imported here because it costs seconds, and only hub ids need it.
    from mlx_lm.utils import _download

    try:
        return Path(_download(name))
    except (OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelUnavailable(f"cannot download {name}: {lines[0]}") from error


def _tiny() -> Path:
    home = cache_home() / "models"
    directory = home / f"tiny-{TINY_VERSION}"
    if directory.is_dir():
        return directory
    home.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".tiny-", dir=home))
    try:
        _write_tiny(partial)
        partial.chmod(0o755)
        partial.rename(directory)
    except OSError:
        # Another process was faster: a rename onto a directory with files fails, and theirs has the same bytes.
        if not directory.is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory


def _write_tiny(directory: Path) -> None:
    def write(name: str, content: dict[str, Any]) -> None:
        (directory / name).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")

    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": _HIDDEN,
        "num_hidden_layers": _LAYERS,
        "intermediate_size": _INTERMEDIATE,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": _VOCABULARY,
        "max_position_embeddings": _CONTEXT,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "eos_token_id": _END,
        "pad_token_id": _PAD,
    }
    write("config.json", config)
    write("tokenizer.json", _tokenizer())
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "model_max_length": _CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }
    write("tokenizer_config.json", tokenizer_config)
    save_file(_weights(), directory / "model.safetensors", metadata={"format": "mlx"})


def _weights() -> dict[str, NDArray[np.float32]]:
    # RandomState's stream is frozen for ever, and neither uniform numbers nor square roots depend on the libm: every
    # host makes the same bytes.
    random = np.random.RandomState(_SEED)

    def matrix(rows: int, columns: int, bound: float) -> NDArray[np.float32]:
        return (_SCALE * random.uniform(-bound, bound, (rows, columns))).astype(np.float32)

    def linear(rows: int, columns: int) -> NDArray[np.float32]:
        return matrix(rows, columns, 1 / math.sqrt(columns))

    ones = np.ones(_HIDDEN, np.float32)
    tensors = {"model.embed_tokens.weight": matrix(_VOCABULARY, _HIDDEN, math.sqrt(3 / _HIDDEN))}
    for layer in range(_LAYERS):
        prefix = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{prefix}.self_attn.{name}.weight"] = linear(_HIDDEN, _HIDDEN)
        tensors[f"{prefix}.mlp.gate_proj.weight"] = linear(_INTERMEDIATE, _HIDDEN)
        tensors[f"{prefix}.mlp.up_proj.weight"] = linear(_INTERMEDIATE, _HIDDEN)
        tensors[f"{prefix}.mlp.down_proj.weight"] = linear(_HIDDEN, _INTERMEDIATE)
        tensors[f"{prefix}.input_layernorm.weight"] = ones
        tensors[f"{prefix}.post_attention_layernorm.weight"] = ones
    tensors["model.norm.weight"] = ones
    head = linear(_VOCABULARY, _HIDDEN)
    # A row of zeros gives the logit 0, and of hundreds of random logits the best is never below it. So the end token
    # does not come, and every completion is printable ASCII.
    unwanted = [_byte_alphabet()[byte] for byte in range(256) if not 32 <= byte < 127] + list(_SPECIAL)
    vocabulary = _vocabulary()
    head[[vocabulary[piece] for piece in unwanted]] = 0
    tensors["lm_head.weight"] = head
    return tensors


def _byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = itertools.count(256)
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _merges() -> list[tuple[str, str]]:
    space = _byte_alphabet()[32]
    pairs = itertools.product(f"{space}etaoinshrdlcumwfgypb", "etaoinshrdlcu")
    return list(itertools.islice(pairs, _VOCABULARY - 256 - len(_SPECIAL)))


def _vocabulary() -> dict[str, int]:
    pieces = [*_byte_alphabet(), *(left + right for left, right in _merges()), *_SPECIAL]
    return {piece: index for index, piece in enumerate(pieces)}


def _tokenizer() -> dict[str, Any]:
    vocabulary = _vocabulary()
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary[piece], "content": piece, **flags} for piece in _SPECIAL],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {piece: index for piece, index in vocabulary.items() if piece not in _SPECIAL},
            "merges": [list(pair) for pair in _merges()],
        },
    }
