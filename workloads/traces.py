"""Recorded loads: Mooncake, BurstGPT and Azure LLM inference files, read strictly.

- `mooncake`: JSON lines with `timestamp` (milliseconds), `input_length`, `output_length` (tokens) and `hash_ids`, one
  id for each block of 512 tokens that the prompt fills or begins (github.com/kvcache-ai/Mooncake). Equal ids are equal
  beginnings, so equal ids get equal tokens. Without `hash_ids` prompts have nothing in common.
- `burstgpt`: CSV with the columns Timestamp (seconds), Request tokens and Response tokens, and in newer releases
  Session ID, empty for API calls (github.com/HPMLL/BurstGPT). The prompts of a session are beginnings of one text.
- `azure`: CSV with TIMESTAMP (date and time; without a zone UTC), ContextTokens and GeneratedTokens, as published in
  2023 and 2024 (github.com/Azure/AzurePublicDataset). It tells nothing of sessions or shared prefixes.

Other columns and JSON fields are not used. A line that is not as said is an error, never skipped; lengths of 0, which
failed requests have, are replayed as 1. Lines may be out of order in time.
"""

import csv
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TextIO, TypeVar

import msgspec
import numpy as np
from msgspec.structs import replace

from workloads.arrivals import Units
from workloads.spec import PER_S_MAX, TraceSpec, WorkloadSpec

LINE_CHARACTERS_MAX = 1_000_000
TOKENS_RECORDED_MAX = 10_000_000
SLACK = 1.1
"""A trace that is not repeated may end so much before the load does, as a factor of its length."""
Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_RECORDED_MAX)]
T = TypeVar("T")


class TraceError(ValueError):
    """A trace cannot be read or replayed. The message is one line: which file, which line, which field."""


class TracedRequest(msgspec.Struct, frozen=True):
    """One line of a trace. time_s: of the trace's own clock. session: empty for none. hash_ids: None for none known."""

    line: int
    time_s: float
    input_tokens: int
    output_tokens: int
    session: str = ""
    hash_ids: tuple[int, ...] | None = None


class Trace(msgspec.Struct, frozen=True):
    """The requests of a trace in order of time; at least two, and not all at one time."""

    name: str
    requests: tuple[TracedRequest, ...]

    @property
    def span_s(self) -> float:
        """From the first request to the last, seconds."""
        return self.requests[-1].time_s - self.requests[0].time_s

    @property
    def requests_per_s(self) -> float:
        """The mean rate, as recorded."""
        return (len(self.requests) - 1) / self.span_s


def read_trace(spec: TraceSpec) -> Trace:
    """The first `spec.requests` requests of the file. Raises TraceError."""
    path = Path(spec.path)
    try:
        if not path.is_file():
            raise TraceError(f"{path}: no such file")
        # Not universal newlines: the csv module counts lines itself.
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = []
            for request in _READERS[spec.format](_Lines(path.name, file), spec):
                found.append(request)
                if len(found) == spec.requests:
                    break
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TraceError(f"{path.name}: not UTF-8") from None
    trace = Trace(path.name, tuple(sorted(found, key=lambda request: request.time_s)))
    if len(found) < 2 or not trace.span_s > 0:
        raise TraceError(
            f"{path.name}: {len(found)} requests in an instant tell no rate, at least two times are needed"
        )
    return trace


def settle_trace(spec: WorkloadSpec, folder: Path) -> WorkloadSpec:
    """The workload with its trace found and read once, and, if the trace has a speed, its rate set to what comes of it.

    folder: of the experiment file. Raises TraceError.
    """
    if spec.trace is None:
        return spec
    path = next((place for place in (folder / spec.trace.path, Path(spec.trace.path)) if place.is_file()), None)
    if path is None:
        raise TraceError(f"no file {spec.trace.path} in the experiment's folder or here")
    found = replace(spec.trace, path=str(path.resolve()))
    trace = read_trace(found)
    if spec.trace.speed is None:
        return replace(spec, trace=found)
    per_s = trace.requests_per_s * spec.trace.speed
    if not 1e-6 <= per_s <= PER_S_MAX:
        raise TraceError(f"{trace.name}: at speed {spec.trace.speed:g} it makes {per_s:g} requests/s")
    try:
        return replace(spec, trace=found, rate=f"{per_s:.9f}".rstrip("0").rstrip(".") + "/s")
    except ValueError as error:
        raise TraceError(f"{trace.name}: speed {spec.trace.speed:g} does not fit: {error}") from None


def trace_units(trace: Trace, *, repeat: bool) -> Units:
    """The times of the trace with a mean gap of 1, once or without end."""
    times_s = np.array([request.time_s for request in trace.requests])
    units = (times_s - times_s[0]) / trace.span_s * (len(times_s) - 1)
    passed = 0
    while passed == 0 or repeat:
        yield units + passed
        passed += len(times_s)


def check_length(trace: Trace, expected: float) -> None:
    """Raise TraceError when a load of so many requests needs much more than the trace has."""
    if expected > SLACK * len(trace.requests):
        what = f"it holds {len(trace.requests)} requests, the load needs {expected:.0f}"
        raise TraceError(f"{trace.name}: {what}: set trace.repeat, shorten the load, or lower its rate")


class _Lines:
    """Lines of bounded length, counted; iterates over their text, and names what is wrong by file and line."""

    def __init__(self, name: str, file: TextIO) -> None:
        self._name = name
        self._file = file
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        while text := self._file.readline(LINE_CHARACTERS_MAX + 1):
            self.number += 1
            if len(text) > LINE_CHARACTERS_MAX:
                raise self.wrong(f"longer than {LINE_CHARACTERS_MAX} characters")
            yield text

    def wrong(self, what: str) -> TraceError:
        return TraceError(f"{self._name}: line {self.number}: {what}")


class _MooncakeLine(msgspec.Struct, frozen=True):
    timestamp: Annotated[float, msgspec.Meta(ge=0, le=1e15)]
    input_length: Tokens
    output_length: Tokens
    hash_ids: tuple[Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)], ...] | None = None


def _mooncake(lines: _Lines, spec: TraceSpec) -> Iterator[TracedRequest]:
    decoder = msgspec.json.Decoder(_MooncakeLine)
    for text in lines:
        try:
            line = decoder.decode(text)
        except msgspec.MsgspecError as error:
            raise lines.wrong(_explained(str(error))) from None
        blocks = -(-max(1, line.input_length) // spec.block_tokens)
        if line.hash_ids is not None and len(line.hash_ids) != blocks:
            what = (
                f"{line.input_length} tokens are {blocks} blocks of {spec.block_tokens}, got {len(line.hash_ids)} ids"
            )
            raise lines.wrong(f"hash_ids: {what}")
        yield TracedRequest(
            lines.number, line.timestamp / 1000, line.input_length, line.output_length, hash_ids=line.hash_ids
        )


def _explained(text: str) -> str:
    what, at, path = text.rpartition(" - at `$.")
    return f"{path.rstrip('`')}: {what.replace('`', '')}" if at else text.replace("`", "")


def _burstgpt(lines: _Lines, spec: TraceSpec) -> Iterator[TracedRequest]:
    for row in _rows(lines, ("Timestamp", "Request tokens", "Response tokens")):
        yield TracedRequest(
            lines.number,
            _field(lines, row, "Timestamp", _seconds),
            _field(lines, row, "Request tokens", _tokens),
            _field(lines, row, "Response tokens", _tokens),
            row.get("Session ID", "").strip(),
        )


def _azure(lines: _Lines, spec: TraceSpec) -> Iterator[TracedRequest]:
    for row in _rows(lines, ("TIMESTAMP", "ContextTokens", "GeneratedTokens")):
        yield TracedRequest(
            lines.number,
            _field(lines, row, "TIMESTAMP", _moment),
            _field(lines, row, "ContextTokens", _tokens),
            _field(lines, row, "GeneratedTokens", _tokens),
        )


_READERS: dict[str, Callable[[_Lines, TraceSpec], Iterator[TracedRequest]]] = {
    "mooncake": _mooncake,
    "burstgpt": _burstgpt,
    "azure": _azure,
}


def _rows(lines: _Lines, needed: tuple[str, ...]) -> Iterator[dict[str, str]]:
    header: list[str] | None = None
    reader = csv.reader(iter(lines), strict=True)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise lines.wrong(f"not CSV: {error}") from None
        if header is None:
            header = [name.strip() for name in row]
            for name in needed:
                if name not in header:
                    raise lines.wrong(f"no column {name}; there is {', '.join(header)[:200]}")
            continue
        if len(row) != len(header):
            raise lines.wrong(f"expected {len(header)} fields, got {len(row)}")
        yield dict(zip(header, row, strict=True))


def _field(lines: _Lines, row: dict[str, str], name: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(row[name].strip())
    except ValueError:
        raise lines.wrong(f"{name}: expected {_EXPECTED[parse.__name__]}, got {row[name][:80]!r}") from None


def _tokens(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and int(text) <= TOKENS_RECORDED_MAX):
        raise ValueError
    return int(text)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1e12:
        raise ValueError
    return value


def _moment(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


_EXPECTED = {
    "_tokens": f"a whole number of tokens from 0 to {TOKENS_RECORDED_MAX}",
    "_seconds": "seconds from 0 on",
    "_moment": "a time such as 2023-11-16 18:17:03.9799600",
}
