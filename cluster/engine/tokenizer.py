"""Byte-level BPE tokenizers, written as the tokenizers library's tokenizer.json."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec


class AddedToken(msgspec.Struct, frozen=True):
    """A token that text is split at before anything else. special: decoding can leave it out."""

    index: int
    content: str
    special: bool = True


def byte_level_bpe(
    vocabulary: Mapping[str, int],
    merges: Iterable[tuple[str, str]],
    added: Iterable[AddedToken],
    *,
    pre_tokenizer: dict[str, Any],
    decoder: dict[str, Any],
) -> dict[str, Any]:
    """The content of tokenizer.json. merges: most wanted first; what they make must be in the vocabulary.

    An added token has the index that it has in the vocabulary; those that it lacks are counted on behind its end.
    """
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": each.index, "content": each.content, **flags, "special": each.special} for each in added
        ],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(vocabulary),
            "merges": [list(pair) for pair in merges],
        },
    }


def byte_level(*, trim_offsets: bool) -> dict[str, Any]:
    """The step that turns text into printable stand-ins for its bytes (GPT-2's), and back."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": trim_offsets, "use_regex": True}
