"""Prompts as plain words, for endpoints whose tokenizer nobody here knows."""

from typing import Literal

import msgspec
import numpy as np

from cluster.protocol import Token
from workloads.vocabulary import ChatMarkers

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_SYLLABLES = tuple(consonant + vowel for consonant in _CONSONANTS for vowel in _VOWELS)
WORDS = tuple(first + last for first in _SYLLABLES for last in _SYLLABLES)
_SYSTEM, _USER, _ASSISTANT = len(WORDS), len(WORDS) + 1, len(WORDS) + 2

Role = Literal["system", "user", "assistant"]
_ROLES: dict[Token, Role] = {_SYSTEM: "system", _USER: "user", _ASSISTANT: "assistant"}


class ChatMessage(msgspec.Struct, frozen=True):
    """As in OpenAI's API."""

    role: Role
    content: str


class WordVocabulary:
    """A PromptVocabulary whose tokens are words, and marks of who speaks.

    So lengths in a schedule are words; how many tokens they are, only the endpoint knows and may tell in its `usage`.
    """

    markers = ChatMarkers((_USER,), (_ASSISTANT,), (_USER,), (_SYSTEM,), (_USER,))

    def content(self, stream: np.random.Generator, count: int) -> tuple[Token, ...]:
        """`count` words."""
        return tuple(stream.integers(0, len(WORDS), size=count).tolist())


def messages(prompt: tuple[Token, ...]) -> list[ChatMessage]:
    """A prompt of WordVocabulary as a conversation, without the reply that is asked for."""
    found: list[ChatMessage] = []
    role: Role | None = None
    words: list[str] = []
    for token in (*prompt, _ASSISTANT):
        if token in _ROLES:
            if role is not None and words:
                found.append(ChatMessage(role, " ".join(words)))
            role, words = _ROLES[token], []
        else:
            words.append(WORDS[token])
    return found


def text(prompt: tuple[Token, ...]) -> str:
    """A prompt of WordVocabulary as one text that ends where the reply begins; each turn's begins with the last's."""
    return "".join(f"{message.role}: {message.content}\n" for message in messages(prompt)) + "assistant:"
