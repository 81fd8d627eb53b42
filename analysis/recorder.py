"""The recorder: each process appends its rows to its own Arrow files while the run goes on."""

import os
from pathlib import Path

import pyarrow as pa

from analysis.schema import ROW_TYPES, Row
from analysis.tables import SCHEMAS, Stamped, to_batch

# How an Arrow IPC stream says that it ends on purpose: a continuation marker and a message of length zero.
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class RecorderError(Exception):
    """The history cannot be written any more (full disk, say). The message is one line for the user."""


class _Stream:
    """One Arrow IPC stream file, unbuffered: a batch goes to the operating system whole, or is taken back."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        try:
            self._file = open(path, "xb", buffering=0)  # noqa: SIM115 - lives as long as the recorder
        except OSError as error:
            raise self._failure(error) from error
        self._size = 0
        self.write(schema.serialize().to_pybytes())

    def write(self, payload: bytes) -> None:
        """Append all of it or nothing. Raises RecorderError."""
        left = memoryview(payload)
        try:
            while left:
                left = left[self._file.write(left) or 0 :]
        except OSError as error:
            # A file that ends between two messages is a readable stream; half a message would cost a warning later.
            self._file.truncate(self._size)
            self._file.seek(self._size)
            raise self._failure(error) from error
        self._size += len(payload)

    def close(self) -> None:
        """Close the file without the end marker."""
        self._file.close()

    def _failure(self, error: OSError) -> RecorderError:
        return RecorderError(f"{self._path}: cannot record: {error.strerror or error}")


class MetricsCollector:
    """Writes the rows of one incarnation of one node, one `<table>.<node>.<incarnation>.arrow` per table.

    A file is an Arrow IPC stream, created with its first row and handed to the operating system when `flush_rows`
    rows wait or the oldest has waited `flush_s` seconds, so a killed process leaves all but the rows still waiting.
    At most `flush_rows` rows are ever held. Not for use by two threads. After a RecorderError it takes nothing more:
    `append` and `flush` raise it again, and what was written before stays readable.
    """

    def __init__(
        self, directory: Path, node: str, incarnation: int, *, flush_rows: int = 256, flush_s: float = 0.5
    ) -> None:
        if "/" in node or os.sep in node or not node:
            raise ValueError(f"a node's name becomes part of a file name, {node!r} cannot")
        if flush_rows < 1:
            raise ValueError(f"flush_rows: at least 1, got {flush_rows}")
        self._directory = directory
        self._node = node
        self._incarnation = incarnation
        self._flush_rows = flush_rows
        self._flush_s = flush_s
        self._sequence = 0
        self._waiting = 0
        self._oldest_s = 0.0
        self._rows: dict[str, list[Stamped]] = {row_type.TABLE: [] for row_type in ROW_TYPES}
        self._streams: dict[str, _Stream] = {}
        self._failure: RecorderError | None = None
        self._closed = False

    def append(self, row: Row, now: float) -> None:
        """Stamp and keep a row; `now` in seconds of any one clock decides about flushing. Raises RecorderError."""
        self._check_open()
        if not self._waiting:
            self._oldest_s = now
        self._rows[row.TABLE].append((self._sequence, row))
        self._sequence += 1
        self._waiting += 1
        if self._waiting >= self._flush_rows or now - self._oldest_s >= self._flush_s:
            self.flush()

    def flush(self) -> None:
        """Hand all waiting rows to the operating system. Raises RecorderError."""
        self._check_open()
        try:
            for table, rows in self._rows.items():
                if rows:
                    self._write(table, rows)
                    rows.clear()
        except RecorderError as error:
            self._failure = error
            raise
        self._waiting = 0

    def close(self) -> None:
        """Flush and end the files properly, once. Raises RecorderError; the files are closed all the same."""
        if self._closed:
            return
        try:
            if self._failure is None:
                self.flush()
                for stream in self._streams.values():
                    stream.write(END_OF_STREAM)
        finally:
            self._closed = True
            for stream in self._streams.values():
                stream.close()

    def _write(self, table: str, rows: list[Stamped]) -> None:
        if table not in self._streams:
            path = self._directory / f"{table}.{self._node}.{self._incarnation}.arrow"
            self._streams[table] = _Stream(path, SCHEMAS[table])
        batch = to_batch(table, self._node, self._incarnation, rows)
        self._streams[table].write(batch.serialize().to_pybytes())

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise RecorderError(f"the recorder of {self._node} is closed")
