"""Where models come from: `tiny`, `smollm2-135m`, a directory in mlx-lm's format, or a hub id."""

import functools
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from cluster.engine.tokenizer import AddedToken, byte_level, byte_level_bpe

TINY_VERSION = 1
"""Raised whenever anything below changes what `tiny` computes: caches are keyed by it."""

SMOLLM2 = "smollm2-135m"
SMOLLM2_VERSION = 1
"""Raised whenever the conversion writes other files: an older one in the cache is then not taken for it."""

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
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


class ModelUnavailable(Exception):
    """A model cannot be had. The message is one line."""


class UnknownModel(ModelUnavailable):
    """The name is none of a model: whoever gave it has to give another one."""


def cache_home() -> Path:
    """The per-user folder for what can be made again: `$MLX_CHAOS_CACHE`, else `~/.cache/mlx-chaos`."""
    return Path(os.environ.get("MLX_CHAOS_CACHE") or Path.home() / ".cache" / "mlx-chaos")


def built_directory(name: str, version: int) -> Path:
    """Where a model that this project makes itself is, once it has been made."""
    return cache_home() / "models" / f"{name}-{version}"


def model_directory(name: str, *, download: bool = True) -> Path:
    """The directory of a model in mlx-lm's format.

    name: `tiny` (built on first use), `smollm2-135m` (after `python -m cluster.models pull smollm2-135m`), a local
    directory, or a hub id `owner/model`. download: a hub id that is not in the hub's local cache may be fetched.
    Raises ModelUnavailable, and of that UnknownModel for a name that no download would help.
    """
    if name == "tiny":
        return _tiny()
    if name == SMOLLM2:
        directory = built_directory(SMOLLM2, SMOLLM2_VERSION)
        if not directory.is_dir():
            # Never fetched from here: nobody who starts a cluster asked for a download.
            raise ModelUnavailable(f"{name} is not there yet; run: python -m cluster.models pull {name}")
        return directory
    local = Path(name).expanduser()
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise UnknownModel(f"{name} is not a model directory: it has no config.json")
        return local.resolve()
    if not _HUB_ID.fullmatch(name):
        known = f"`tiny`, `{SMOLLM2}`, a directory, or a hub id owner/model"
        raise UnknownModel(f"no model {name!r}: it has to be {known}")
    return _from_hub(name, download)


def publish(directory: Path, write: Callable[[Path], None]) -> Path:
    """Return `directory`, made by `write` if it is missing; nobody ever sees it half written.

    write: fills the empty folder that it is given, on the same file system. What it raises leaves nothing behind.
    """
    if directory.is_dir():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        write(partial)
        partial.chmod(0o755)
        partial.rename(directory)
    except OSError:
        # Another process was faster: a rename onto a directory with files fails, and theirs has the same bytes.
        if not directory.is_dir():
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory


def weights_bytes(directory: Path) -> int:
    """The bytes of all *.safetensors of a model directory: about what the model takes in memory once it is loaded.

    Raises ModelUnavailable when there are none, or they cannot be read.
    """
    try:
        sizes = [file.stat().st_size for file in directory.glob("*.safetensors")]
    except OSError as error:
        raise ModelUnavailable(f"{directory}: {error.strerror or error}") from error
    if not sizes:
        raise ModelUnavailable(f"{directory} holds no *.safetensors")
    return sum(sizes)


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
        try:
            types |= _data_types(file)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelUnavailable(f"model {directory} does not load: {file.name} is not a safetensors file") from error
    return frozenset(types)


def _data_types(file: Path) -> set[str]:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > _HEADER_BYTES_MAX:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(stream.read(length))
    return {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}


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


def _from_hub(name: str, download: bool) -> Path:
    # Imported here because it costs a second, and only hub ids need it.
    from mlx_lm.utils import _download, hf_repo_to_path

    try:
        directory = Path(_download(name) if download else hf_repo_to_path(name))
    except Exception as error:
        # The hub's client lets through what the libraries below it raise, and they have no common ancestor.
        if not download:
            raise ModelUnavailable(f"{name} is not there yet; run: python -m cluster.models pull {name}") from error
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelUnavailable(f"cannot download {name}: {lines[0]}") from error
    if not (directory / "config.json").is_file() or not any(directory.glob("*.safetensors")):
        # Files of another format; or, without a network, what an interrupted download has left.
        raise ModelUnavailable(f"{name}: what came from the hub lacks config.json or *.safetensors")
    return directory


def _tiny() -> Path:
    return publish(built_directory("tiny", TINY_VERSION), _write_tiny)


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
    step = byte_level(trim_offsets=False)
    return byte_level_bpe(
        {piece: index for piece, index in vocabulary.items() if piece not in _SPECIAL},
        _merges(),
        [AddedToken(vocabulary[piece], piece) for piece in _SPECIAL],
        pre_tokenizer=step,
        decoder=step,
    )
