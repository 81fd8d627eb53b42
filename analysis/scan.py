"""From the rows of one partition to its summary."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from analysis.history import UnreadableError
from analysis.partitions import Partition, Run, batches
from analysis.schema import PROBE_PREFIX
from analysis.sketch import Floats, Integers, count_distinct, sketches
from analysis.summary import ERROR, SECOND_ERROR, Group, Key, Second, Summary

SECONDS_MAX = 86_400
"""Seconds of a run that are told apart; what lies before the first or after the last counts there."""

TOKENS_MAX = 1_000_000_000
"""Of one row; more counts as this many."""

_DENSE_MAX = 10_000
_NAMES_MAX = 10_000
_NAME_MAX = 200
_SUMMED = {
    "requests": ("prompt_tokens", "cached_tokens", "submissions", "token_count"),
    "attempts": ("tokens", "cached_tokens"),
}
_NO_TOKEN_COUNT = frozenset({"requests without a column token_count: times between tokens only from the attempts"})
_SIDES = {"worker": "attempts", "controller": "dispatches"}


class Arms(msgspec.Struct, frozen=True):
    """Which request has which arm: nine bytes a request, where a hash join would take some hundred.

    hashes: sorted, 64 bits of each request id (SipHash, as pandas has it). Two of ten million ids collide with a
    probability of 3e-6, and then one request may count for another arm.
    """

    names: tuple[str, ...]
    hashes: npt.NDArray[np.uint64]
    numbers: npt.NDArray[np.uint8]

    def of(self, request_ids: Any) -> Integers:
        """The number of each id's arm in `names`; that of the empty name for an id that nobody scheduled."""
        hashes = _hashes(request_ids)
        at = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        found: Integers = np.where(self.hashes[at] == hashes, self.numbers[at], 0).astype(np.int64)
        return found


def arms(schedules: Iterable[Partition]) -> Arms | None:
    """The arms of all requests of these schedules; None where no request has one. Raises UnreadableError."""
    names: list[str] = [""]
    hashes: list[npt.NDArray[np.uint64]] = []
    numbers: list[npt.NDArray[np.uint8]] = []
    for part in schedules:
        for batch in batches(part, named=True):
            if "arm" not in batch.schema.names:
                continue
            codes, found = _coded(batch, "arm", part)
            names += [name for name in found if name not in names]
            if len(names) > 256:
                raise UnreadableError(f"{part.path}: column arm: more than 255 arms")
            hashes.append(_hashes(batch["request_id"]))
            numbers.append(np.array([names.index(name) for name in found], dtype=np.uint8)[codes])
    if len(names) == 1:
        return None
    every, all_numbers = np.concatenate(hashes), np.concatenate(numbers)
    order = np.argsort(every, kind="stable")
    return Arms(tuple(names), every[order], all_numbers[order])


def scan(part: Partition, index: Arms | None = None) -> Summary:
    """The summary of a partition. Raises UnreadableError with one line."""
    total = Summary()
    # An Arrow file is in memory as a whole batch anyway, and may hold the requests of the capacity probe.
    named = index is not None or not part.row_groups or part.table == "events"
    for batch in batches(part, named=named):
        if "request_id" in batch.schema.names:
            batch = batch.filter(pc.invert(pc.starts_with(pc.fill_null(batch["request_id"], ""), PROBE_PREFIX)))
        if batch.num_rows:
            total = total.merge(_SCANS[part.table](_Rows(batch, part, index)))
    return total


class _Rows:
    """A batch with its columns as arrays, times on the clock of the run."""

    def __init__(self, batch: pa.RecordBatch, part: Partition, index: Arms | None) -> None:
        self.batch = batch
        self.part = part
        self.run: Run = part.run
        self._index = index

    def has(self, name: str) -> bool:
        return name in self.batch.schema.names

    def times(self, name: str) -> Floats:
        """Seconds since the run began, NaN where there is none."""
        found: Floats = self.batch[name].to_numpy(zero_copy_only=False).astype(float) - self.run.origin_s
        return found

    def tokens(self, name: str) -> Integers:
        """Numbers of tokens and the like, bounded, 0 where there is none."""
        found = self.batch[name].fill_null(0).to_numpy(zero_copy_only=False)
        bounded: Integers = np.clip(found, 0, TOKENS_MAX).astype(np.int64)
        return bounded

    def names(self, name: str) -> tuple[Integers, list[str]]:
        return _coded(self.batch, name, self.part)

    def arms(self) -> tuple[Integers, list[str]]:
        if self._index is not None and not self.has("arm") and self.has("request_id"):
            return self._index.of(self.batch["request_id"]), list(self._index.names)
        return self.names("arm")

    def phases(self, times_s: Floats) -> tuple[Integers, list[str]]:
        """By time; the rows' own phase where the run has none."""
        if not self.run.phases:
            return self.names("phase")
        starts = np.array([phase.start_s for phase in self.run.phases])
        ends = np.array([phase.end_s for phase in self.run.phases])
        at = np.searchsorted(starts, times_s, side="right") - 1
        inside = (at >= 0) & (times_s < ends[at])
        return np.where(inside, at + 1, 0), ["", *(phase.name[:_NAME_MAX] for phase in self.run.phases)]


class _Grouping:
    """Rows by key: numbers of the groups, and the key of each."""

    def __init__(self, *parts: tuple[Integers, list[str]]) -> None:
        self._names = [names for _, names in parts]
        self.numbers = np.zeros(len(parts[0][0]), dtype=np.int64)
        for codes, names in parts:
            self.numbers = self.numbers * len(names) + codes
        self.present, _ = count_distinct(self.numbers)
        if len(self.numbers) and int(self.present[-1]) >= _DENSE_MAX:
            self.numbers = np.searchsorted(self.present, self.numbers)
        else:
            self.present = np.arange(int(self.present[-1]) + 1 if len(self.present) else 0)

    def name(self, place: int) -> tuple[str, ...]:
        number = int(self.present[place])
        found = []
        for names in reversed(self._names):
            number, code = divmod(number, len(names))
            found.append(names[code])
        return tuple(reversed(found))


def _requests(rows: _Rows) -> Summary:
    intended, ended = rows.times("intended_s"), rows.times("ended_s")
    outcome = rows.names("outcome")
    groups = _Grouping(rows.phases(intended), rows.arms())
    completed = outcome[0] == _index_of(outcome[1], "completed")
    values = {"latency_s": np.where(completed, ended - intended, np.nan)}
    if rows.has("first_token_s"):
        first = np.where(completed, rows.times("first_token_s"), np.nan)
        values["ttft_s"] = first - intended
        if rows.has("token_count"):
            values["inter_token_s"] = _gaps(first, ended, rows.tokens("token_count"))
    if rows.has("sent_s"):
        values["dispatch_lag_s"] = rows.times("sent_s") - intended
    found = _grouped(rows, groups, lambda name: Key("requests", name[0], name[1], ""), outcome, values, "requests")
    offered = Summary() if rows.run.planned else _offered(groups, intended)
    notes = frozenset() if rows.has("token_count") else _NO_TOKEN_COUNT
    seconds = _ended_seconds(ended, outcome, values["latency_s"])
    return found.merge(offered).merge(Summary(seconds=seconds, rows={"requests": len(ended)}, notes=notes))


def _attempts(rows: _Rows) -> Summary:
    begun, ended = rows.times("begun_s"), rows.times("ended_s")
    outcome, side = rows.names("outcome"), rows.names("side")
    groups = _Grouping(side, rows.phases(begun), rows.arms(), rows.names("worker"))
    of_worker = side[0] == _index_of(side[1], "worker")
    completed = of_worker & (outcome[0] == _index_of(outcome[1], "completed"))
    values: dict[str, Floats] = {}
    if rows.has("started_s") and rows.has("first_token_s"):
        started = np.where(of_worker, rows.times("started_s"), np.nan)
        first = np.where(of_worker, rows.times("first_token_s"), np.nan)
        values = {"queue_wait_s": started - begun, "prefill_s": first - started}
        values["decode_s"] = np.where(completed, ended - first, np.nan)
        if rows.has("tokens"):
            values["inter_token_s"] = _gaps(np.where(completed, first, np.nan), ended, rows.tokens("tokens"))

    def key(name: tuple[str, ...]) -> Key:
        return Key(_SIDES.get(name[0], "dispatches"), name[1], name[2], name[3])

    found = _grouped(rows, groups, key, outcome, values, "attempts")
    return found.merge(Summary(rows={"attempts": len(ended)}))


def _schedule(rows: _Rows) -> Summary:
    """What was offered: of an open loop all whose time came before the run ended."""
    intended = rows.times("intended_s")
    due = intended <= rows.run.end_s
    if rows.has("segment"):
        codes, names = rows.names("segment")
        due &= codes == _index_of(names, "")
    groups = _Grouping(rows.phases(intended), rows.arms())
    return _offered(groups, intended, due).merge(Summary(rows={"schedule": len(intended)}))


def _events(rows: _Rows) -> Summary:
    """What was offered: of a closed load all that was really asked."""
    if not rows.run.planned:
        return Summary()
    asked = pc.fill_null(pc.equal(rows.batch["kind"], "request_asked"), False)
    batch = rows.batch.filter(asked)
    if not batch.num_rows:
        return Summary()
    rows = _Rows(batch, rows.part, rows._index)
    asked_s = rows.times("time_s")
    return _offered(_Grouping(rows.phases(asked_s), rows.arms()), asked_s, asked_s <= rows.run.end_s)


_SCANS = {"requests": _requests, "attempts": _attempts, "schedule": _schedule, "events": _events}


def _grouped(
    rows: _Rows, groups: _Grouping, key: Any, outcome: tuple[Integers, list[str]], values: dict[str, Floats], table: str
) -> Summary:
    """Counts, sums and sketches of a batch by group."""
    found: dict[Key, Group] = {}

    def add(number: int, part: Group) -> None:
        name = key(groups.name(number))
        found[name] = found[name].merge(part) if name in found else part

    code = rows.names("code")
    ends = _Grouping(outcome, code)
    kinds = len(ends.present)
    for cell, count in zip(*count_distinct(groups.numbers * kinds + ends.numbers), strict=True):
        number, kind = divmod(int(cell), kinds)
        told, told_code = ends.name(kind)
        add(number, Group(ended={(told, told_code): int(count)}))
    for name in _SUMMED[table]:
        if rows.has(name):
            # Exact: at most BATCH_ROWS times TOKENS_MAX, which a float holds.
            totals = np.bincount(groups.numbers, weights=rows.tokens(name))
            for place in np.flatnonzero(totals):
                add(int(place), Group(sums={name: int(totals[place])}))
    for name, measured in values.items():
        for number, part in sketches(measured, groups.numbers, ERROR):
            add(number, Group(sketches={name: part}))
    return Summary(groups=found)


def _offered(groups: _Grouping, times_s: Floats, which: npt.NDArray[np.bool_] | None = None) -> Summary:
    """So many requests offered by phase and arm, and by second."""
    known = ~np.isnan(times_s) if which is None else which & ~np.isnan(times_s)
    found: dict[Key, Group] = {}
    for number, count in zip(*count_distinct(groups.numbers[known]), strict=True):
        phase, arm = groups.name(int(number))
        part = Group(offered=int(count))
        key = Key("requests", phase, arm, "")
        found[key] = found[key].merge(part) if key in found else part
    seconds = zip(*count_distinct(_seconds(times_s[known])), strict=True)
    return Summary(groups=found, seconds={int(second): Second(offered=int(count)) for second, count in seconds})


def _ended_seconds(ended: Floats, outcome: tuple[Integers, list[str]], latency: Floats) -> dict[int, Second]:
    known = ~np.isnan(ended)
    seconds, codes = _seconds(ended[known]), outcome[0][known]
    found: dict[int, Second] = {}
    kinds = len(outcome[1])
    for cell, count in zip(*count_distinct(seconds * kinds + codes), strict=True):
        second, kind = divmod(int(cell), kinds)
        part = Second(ended={outcome[1][kind]: int(count)})
        found[second] = found[second].merge(part) if second in found else part
    for second, sketch in sketches(latency[known], seconds, SECOND_ERROR):
        found[second] = found[second].merge(Second(latency=sketch))
    return found


def _seconds(times_s: Floats) -> Integers:
    return np.floor(np.clip(times_s, 0, SECONDS_MAX - 1)).astype(np.int64)


def _gaps(first_s: Floats, ended_s: Floats, tokens: Integers) -> Floats:
    """Seconds from one token to the next, the mean of each row; NaN for rows of less than two tokens."""
    several = tokens >= 2
    found: Floats = np.where(several, (ended_s - first_s) / np.where(several, tokens - 1, 1), np.nan)
    return found


def _coded(batch: pa.RecordBatch, name: str, part: Partition) -> tuple[Integers, list[str]]:
    """Numbers and what they stand for; a missing name, or a column that is not there, is the empty name, number 0."""
    if name not in batch.schema.names:
        return np.zeros(batch.num_rows, dtype=np.int64), [""]
    column = batch[name]
    # A dictionary of a file may hold more than these rows use.
    used, codes = np.unique(column.indices.fill_null(-1).to_numpy(zero_copy_only=False), return_inverse=True)
    if len(used) > _NAMES_MAX:
        raise UnreadableError(f"{part.path}: column {name}: more than {_NAMES_MAX} different values")
    said = column.dictionary.take(pa.array(used[used >= 0])).to_pylist()
    texts = [""] * int(len(used) > 0 and used[0] < 0) + [str(text or "")[:_NAME_MAX] for text in said]
    distinct = list(dict.fromkeys(["", *texts]))
    return np.array([distinct.index(text) for text in texts], dtype=np.int64)[codes], distinct


def _index_of(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else -1


def _hashes(request_ids: Any) -> npt.NDArray[np.uint64]:
    texts = np.asarray(pc.fill_null(request_ids, "").to_numpy(zero_copy_only=False), dtype=object)
    found: npt.NDArray[np.uint64] = pd.util.hash_array(texts, categorize=False)
    return found
