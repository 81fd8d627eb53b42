"""Between text and tokens: chat templates, incremental detokenising, stop strings."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from cluster.protocol import Token

_HELD_TOKENS_MAX = 16
"""More tokens than any character is made of: what is no character by then is not going to become one."""
_CHARACTER_BYTES_MAX = 4
_UNKNOWN = "\ufffd"
_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


class ChatUnavailable(Exception):
    """A model directory has no usable tokenizer or chat template. One line."""


class ChatTokenizer:
    """The tokenizer and the chat template of a model directory in mlx-lm's format. Knows no model and no MLX.

    Raises ChatUnavailable. A model without a chat template completes texts only; `chat` then raises ValueError.
    """

    def __init__(self, directory: Path) -> None:
        try:
            self._tokenizer = _load(directory)
            config = _read(directory / "tokenizer_config.json")
            self._template = _template(directory, config)
            size = int(self._tokenizer.get_vocab_size(with_added_tokens=True))
            self.vocabulary_size = min(size, int(_read(directory / "config.json").get("vocab_size") or size))
        except (OSError, ValueError, TypeError, KeyError, jinja2.TemplateError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ChatUnavailable(f"{directory}: no usable tokenizer: {reason}") from error
        self._special = {name: _content(config.get(name)) for name in _SPECIAL_TOKENS}

    def chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[Token, ...]:
        """The prompt that asks for the next answer in a chat of (role, content).

        Raises ValueError, one line, when the template does not take such a chat.
        """
        if self._template is None:
            raise ValueError("the model has no chat template; use /v1/completions")
        try:
            text = self._template.render(messages=list(messages), add_generation_prompt=True, **self._special)
        except (jinja2.TemplateError, ValueError, TypeError, LookupError, ArithmeticError) as error:
            # A template is a program of the model's makers, and what it stumbles over is the chat that it was given.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"the model's chat template does not take these messages: {reason}") from error
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def text(self, text: str) -> tuple[Token, ...]:
        """A text to be continued, with the token that the model wants before every text, if it wants one."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=True).ids)

    def decode(self, tokens: Sequence[Token]) -> str:
        """The text of tokens, special ones left out. Bytes that are no UTF-8 become U+FFFD."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def detokenizer(self) -> "Detokenizer":
        """For one stream."""
        return Detokenizer(self.decode)


class Detokenizer:
    """Turns a stream of tokens into a stream of text, and never gives out a part of a character.

    What a token means can depend on its neighbours (a space at the beginning, a character of several tokens), so new
    tokens are decoded together with some that went before, and what those give alone is taken off.
    """

    def __init__(self, decode: Callable[[Sequence[Token]], str]) -> None:
        self._decode = decode
        self._before: list[Token] = []
        self._held: list[Token] = []

    def push(self, tokens: Sequence[Token]) -> str:
        """The text that is certain now."""
        self._held += tokens
        # An unfinished character is a matter of the last few bytes, and a token has at least one.
        for unfinished in range(min(_CHARACTER_BYTES_MAX, len(self._held))):
            certain = len(self._held) - unfinished
            text = self._text(self._held[:certain])
            if not text.endswith(_UNKNOWN):
                return self._give(certain, text)
        if len(self._held) <= _HELD_TOKENS_MAX:
            return ""
        certain = len(self._held) - _CHARACTER_BYTES_MAX
        return self._give(certain, self._text(self._held[:certain]))

    def end(self) -> str:
        """The rest; a character that was never finished shows as U+FFFD."""
        return self._give(len(self._held), self._text(self._held))

    def _text(self, tokens: list[Token]) -> str:
        if not tokens:
            return ""
        known = self._decode(self._before) if self._before else ""
        whole = self._decode([*self._before, *tokens])
        # Only broken characters make a longer text begin differently; then the new tokens stand for themselves.
        return whole[len(known) :] if whole.startswith(known) else self._decode(tokens)

    def _give(self, count: int, text: str) -> str:
        given, self._held = self._held[:count], self._held[count:]
        if given:
            # Tokens without text say nothing about how the next one begins, so they do not replace those that do.
            self._before = given if text else [*self._before, *given][-_HELD_TOKENS_MAX:]
        return text


class StopFinder:
    """Ends a text before the first stop string in it, however the text arrives.

    Of several the one that is complete first counts, as if the text came letter by letter.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.found = False

    @property
    def sought(self) -> bool:
        """Whether there is any stop string."""
        return bool(self._stops)

    def push(self, text: str) -> str:
        """What may be given out of the text so far: all but what could be the beginning of a stop string."""
        if self.found or not text:
            return ""
        buffer = self._held + text
        hits = [(at + len(stop), at) for stop in self._stops if (at := buffer.find(stop)) >= 0]
        if hits:
            self.found = True
            self._held = ""
            return buffer[: min(hits)[1]]
        keep = max((_overlap(buffer, stop) for stop in self._stops), default=0)
        self._held = buffer[len(buffer) - keep :]
        return buffer[: len(buffer) - keep]

    def end(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins, without being complete."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[len(text) - length :]):
            return length
    return 0


def _load(directory: Path) -> Tokenizer:
    path = directory / "tokenizer.json"
    if path.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            # The library raises nothing more special than Exception for a damaged file.
            raise ValueError(str(error)) from error
    else:
        # Imported here because it costs seconds; few models come without the file above.
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True).backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_bytes()) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{path.name}: expected an object")
    return found


def _content(token: Any) -> str:
    """A special token of a tokenizer's configuration: its text, or an object that holds it."""
    return str(token.get("content", "") if isinstance(token, dict) else token or "")


class _Generation(Extension):
    """`{% generation %}` marks what the model said, for those who train it; here it is nothing."""

    tags = {"generation"}  # noqa: RUF012 - so jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Keep what is inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _template(directory: Path, config: Mapping[str, Any]) -> jinja2.Template | None:
    file = directory / "chat_template.jinja"
    source = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    if isinstance(source, list):
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    if source is None:
        return None
    # As transformers does it: templates are written for these options and helpers. Sandboxed, for they are foreign.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
