"""Reference completions on disk: one SQLite file for a model, shared by all processes of a user."""

import sqlite3
from array import array
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import msgspec

from cluster.protocol import Token

BYTES_MAX = 256 * 2**20
"""Bytes of tokens in a file; the oldest completions give way."""

_LOCK_WAIT_S = 60.0


class Completion(msgspec.Struct, frozen=True):
    """A greedy completion, end token excluded. ended: an end token came; else it goes on beyond its limit."""

    tokens: tuple[Token, ...]
    ended: bool


class ReferenceCache:
    """Completions by the hash of their prompt. A context manager; for use by one thread."""

    def __init__(self, file: Path, bytes_max: int = BYTES_MAX) -> None:
        """Open the file, and make it and its directory when they are missing. Raises sqlite3.Error."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self._bytes_max = bytes_max
        self._connection = sqlite3.connect(file, timeout=_LOCK_WAIT_S)
        with self._connection:
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS completion"
                " (prompt BLOB UNIQUE, tokens BLOB NOT NULL, ended INTEGER NOT NULL)"
            )

    def __enter__(self) -> "ReferenceCache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()

    def find(self, prompt: bytes, max_tokens: int) -> Completion | None:
        """The completion when it has `max_tokens` or ended before; it may be longer than asked."""
        query = "SELECT tokens, ended FROM completion WHERE prompt = ?"
        row = self._connection.execute(query, (prompt,)).fetchone()
        if row is None:
            return None
        completion = Completion(tuple(array("I", row[0])), bool(row[1]))
        return completion if completion.ended or len(completion.tokens) >= max_tokens else None

    def add(self, completions: Mapping[bytes, Completion]) -> None:
        """Keep these, except where one is there that says as much. Then drop the oldest beyond the limit."""
        rows = [(prompt, array("I", each.tokens).tobytes(), each.ended) for prompt, each in completions.items()]
        with self._connection:
            self._connection.executemany(
                "INSERT INTO completion VALUES (?, ?, ?) ON CONFLICT (prompt) DO UPDATE"
                " SET tokens = excluded.tokens, ended = excluded.ended"
                " WHERE length(excluded.tokens) > length(tokens) OR excluded.ended > ended",
                rows,
            )
            self._connection.execute(
                "DELETE FROM completion WHERE rowid IN (SELECT rowid FROM (SELECT rowid,"
                " sum(length(tokens)) OVER (ORDER BY rowid DESC) AS newer FROM completion) WHERE newer > ?)",
                (self._bytes_max,),
            )
