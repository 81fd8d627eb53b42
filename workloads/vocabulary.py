"""How the words of a chat become token ids."""

import os
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from cluster.protocol import Token


class ChatMarkers(msgspec.Struct, frozen=True):
    """The tokens around the messages of a chat.

    A prompt reads: before_first, message, before_reply, reply, before_next, message, before_reply. What comes before
    a reply is also the end of every prompt, so each turn's prompt begins with the whole prompt of the turn before.
    With a system prompt, before_system, the system prompt and after_system come in place of before_first; None: the
    chat template knows no system prompt, and it stands in front of the first message.
    """

    before_first: tuple[Token, ...]
    before_reply: tuple[Token, ...]
    before_next: tuple[Token, ...]
    before_system: tuple[Token, ...] | None = None
    after_system: tuple[Token, ...] = ()

    def opening(self, system: tuple[Token, ...] = ()) -> tuple[Token, ...]:
        """All that comes before the first message of a chat with this system prompt, or with none."""
        if not system:
            return self.before_first
        if self.before_system is None:
            return (*self.before_first, *system)
        return (*self.before_system, *system, *self.after_system)


class PromptVocabulary(Protocol):
    """What a schedule needs to know of a model's tokens."""

    @property
    def markers(self) -> ChatMarkers:
        """The tokens around messages."""

    def content(self, stream: np.random.Generator, count: int) -> tuple[Token, ...]:
        """The text of a message: exactly `count` tokens, drawn from `stream` and nothing else."""


class ByteVocabulary:
    """Random bytes and three role markers. For engines that only count tokens."""

    markers = ChatMarkers(before_first=(259,), before_reply=(261, 260), before_next=(261, 259))

    def content(self, stream: np.random.Generator, count: int) -> tuple[Token, ...]:
        """`count` ids in 3..258."""
        return tuple(stream.integers(3, 259, size=count).tolist())


class TokenizerVocabulary:
    """The tokenizer and chat template of a model directory in mlx-lm's format, with pronounceable nonsense as text.

    Raises ValueError (one line) when the directory has no tokenizer, no chat template, or one that does not take a
    conversation of user and assistant.
    """

    def __init__(self, model_directory: Path) -> None:
        self._tokenizer = _load(model_directory)
        self.markers = self._find_markers(model_directory)

    def content(self, stream: np.random.Generator, count: int) -> tuple[Token, ...]:
        """`count` tokens of invented words; the last word may be cut."""
        # Every word makes at least one token, so `count` words are enough.
        syllables = stream.integers(2, 4, size=count)
        drawn = stream.integers(0, len(_SYLLABLES), size=int(syllables.sum())).tolist()
        words, start = [], 0
        for length in syllables.tolist():
            words.append("".join(_SYLLABLES[index] for index in drawn[start : start + length]))
            start += length
        return self._encode(" ".join(words))[:count]

    def _encode(self, text: str) -> tuple[Token, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def _find_markers(self, model_directory: Path) -> ChatMarkers:
        """Render a chat of marked messages and keep what the template puts between the marks."""
        question, reply, next_question = "qzquestionqz", "qzreplyqz", "qznextqz"
        first = [{"role": "user", "content": question}]
        whole = [*first, {"role": "assistant", "content": reply}, {"role": "user", "content": next_question}]
        opening, found, ending = self._render(model_directory, first).partition(question)
        _, found_reply, rest = self._render(model_directory, whole).partition(reply)
        between, found_next, _ = rest.partition(next_question)
        if not (found and found_reply and found_next):
            raise ValueError(f"{model_directory}: the chat template does not show every message of a conversation")
        # Pieces are encoded one by one: no merge of tokens can then reach over the end of a prompt into the reply.
        markers = (self._encode(opening), self._encode(ending), self._encode(between))
        return ChatMarkers(*markers, *self._find_system(model_directory, first))

    def _find_system(
        self, model_directory: Path, first: list[dict[str, str]]
    ) -> tuple[tuple[Token, ...] | None, tuple[Token, ...]]:
        """What the template puts before and after a system prompt; None when it takes none."""
        system = "qzsystemqz"
        try:
            text = self._render(model_directory, [{"role": "system", "content": system}, *first])
        except ValueError:
            return None, ()
        before, found, rest = text.partition(system)
        after, found_question, _ = rest.partition(first[0]["content"])
        return (self._encode(before), self._encode(after)) if found and found_question else (None, ())

    def _render(self, model_directory: Path, messages: list[dict[str, str]]) -> str:
        # Imported here, as in `_load`: jinja2 comes with transformers, and only real models need either.
        from jinja2 import TemplateError

        try:
            return str(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        except (TemplateError, ValueError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(f"{model_directory}: no usable chat template: {reason}") from error


def _load(model_directory: Path) -> Any:
    if not model_directory.is_dir():
        raise ValueError(f"{model_directory}: no such model directory")
    # Imported here because it costs seconds, and the simulated world needs no tokenizer.
    # It would say that PyTorch is missing, which is true and does not matter.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(model_directory), local_files_only=True)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{model_directory}: no tokenizer: {reason}") from error


_SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")
