"""What is kept of any number of rows: counts, sums and sketches by phase, arm and worker, and by second.

A summary of a whole equals the merge of the summaries of its parts, whichever parts and in whichever order.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec
import pyarrow as pa

from analysis.history import UnreadableError
from analysis.sketch import Sketch

ERROR = 0.01
SECOND_ERROR = 0.02
"""Relative errors of the quantiles of a group, and of those of a single second."""

GROUPS_MAX = 10_000
CODES_MAX = 1_000
NOTES_MAX = 50
K = TypeVar("K")
SHARES: dict[str, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


class Key(NamedTuple):
    """What a group's rows have in common. worker: empty for requests, which may have had several.

    table: requests (as their clients saw them), attempts (as workers did) or dispatches (attempts as controllers did).
    """

    table: str
    phase: str
    arm: str
    worker: str


class Group(msgspec.Struct, frozen=True):
    """offered: requests whose time had come. ended: rows by (outcome, code). sums: of tokens and submissions.

    sketches: seconds by name; of requests latency_s, ttft_s, inter_token_s (of those completed) and dispatch_lag_s, of
    attempts queue_wait_s, prefill_s, decode_s and inter_token_s (of those completed).
    """

    offered: int = 0
    ended: dict[tuple[str, str], int] = {}
    sums: dict[str, int] = {}
    sketches: dict[str, Sketch] = {}

    @property
    def rows(self) -> int:
        """How many rows there were."""
        return sum(self.ended.values())

    @property
    def in_flight(self) -> int:
        """Requests that were offered and of whose end nobody told."""
        return max(0, self.offered - self.rows)

    def outcomes(self) -> dict[str, int]:
        """Rows by outcome."""
        return _totals((outcome, count) for (outcome, _), count in self.ended.items())

    def codes(self) -> dict[str, int]:
        """Rows by error code; those without one are not among them."""
        return _totals((code, count) for (_, code), count in self.ended.items() if code)

    def merge(self, other: "Group") -> "Group":
        """The group of the rows of both. Raises UnreadableError above CODES_MAX kinds of end."""
        ended = _added(self.ended, other.ended)
        if len(ended) > CODES_MAX:
            raise UnreadableError(f"more than {CODES_MAX} different outcomes and codes: these are no rows of ours")
        sketches = dict(self.sketches)
        for name, part in other.sketches.items():
            sketches[name] = sketches[name].merge(part) if name in sketches else part
        return Group(self.offered + other.offered, ended, _added(self.sums, other.sums), sketches)


class Second(msgspec.Struct, frozen=True):
    """One second of the run. offered: by intended time; the others by the time of their end. latency: of completed."""

    offered: int = 0
    ended: dict[str, int] = {}
    latency: Sketch | None = None

    def merge(self, other: "Second") -> "Second":
        """The second of the rows of both."""
        pair = [part for part in (self.latency, other.latency) if part is not None]
        latency = pair[0].merge(pair[1]) if len(pair) == 2 else pair[0] if pair else None
        return Second(self.offered + other.offered, _added(self.ended, other.ended), latency)


class Summary(msgspec.Struct, frozen=True):
    """rows: read, by table. seconds: since the run began; of many runs, all on top of each other."""

    groups: dict[Key, Group] = {}
    seconds: dict[int, Second] = {}
    rows: dict[str, int] = {}
    notes: frozenset[str] = frozenset()

    def merge(self, other: "Summary") -> "Summary":
        """The summary of the rows of both. Raises UnreadableError above GROUPS_MAX groups."""
        groups = _merged(self.groups, other.groups)
        if len(groups) > GROUPS_MAX:
            raise UnreadableError(f"more than {GROUPS_MAX} phases, arms and workers: these are no rows of ours")
        seconds = _merged(self.seconds, other.seconds)
        notes = frozenset(sorted(self.notes | other.notes)[:NOTES_MAX])
        return Summary(groups, seconds, _added(self.rows, other.rows), notes)

    def select(
        self, table: str = "requests", *, phase: str | None = None, arm: str | None = None, worker: str | None = None
    ) -> Group:
        """All rows of a table that have what is asked for; None: whatever it is."""
        found = Group()
        for key, group in self.groups.items():
            asked = (
                key.table == table,
                phase in (None, key.phase),
                arm in (None, key.arm),
                worker in (None, key.worker),
            )
            if all(asked):
                found = found.merge(group)
        return found

    def to_builtins(self) -> dict[str, Any]:
        """What `summary.json` holds. A percentile is null where the sample does not reach that far into the tail."""
        return {
            "rows": self.rows,
            "relative_error": ERROR,
            "relative_error_of_seconds": SECOND_ERROR,
            "notes": sorted(self.notes),
            "groups": [
                {
                    **key._asdict(),
                    "offered": group.offered if key.table == "requests" else None,
                    "in_flight": group.in_flight if key.table == "requests" else None,
                    "outcomes": group.outcomes(),
                    "codes": group.codes(),
                    "sums": group.sums,
                    "values": {name: described(part) for name, part in sorted(group.sketches.items())},
                }
                for key, group in sorted(self.groups.items())
            ],
            "seconds": [
                {
                    "second": number,
                    "offered": second.offered,
                    **{outcome: second.ended.get(outcome, 0) for outcome in ("completed", "failed", "refused")},
                    "latency_s": described(second.latency) if second.latency is not None else None,
                }
                for number, second in sorted(self.seconds.items())
            ],
        }

    def to_table(self) -> pa.Table:
        """The same as one long Arrow table, with the buckets of the sketches, so that it can be merged again.

        A row is a count (name, code, count) or a sketch (name, count, percentiles, buckets) of a group, or of a second.
        """
        rows: list[dict[str, object]] = []
        for key, group in sorted(self.groups.items()):
            place = key._asdict()
            rows.append({**place, "name": "offered", "count": group.offered})
            rows += [
                {**place, "name": outcome, "code": code, "count": count}
                for (outcome, code), count in sorted(group.ended.items())
            ]
            rows += [{**place, "name": name, "count": total} for name, total in sorted(group.sums.items())]
            rows += [{**place, **_sketch_row(name, part)} for name, part in sorted(group.sketches.items())]
        for number, second in sorted(self.seconds.items()):
            place = {"table": "requests", "second": number}
            rows.append({**place, "name": "offered", "count": second.offered})
            rows += [{**place, "name": name, "count": count} for name, count in sorted(second.ended.items())]
            if second.latency is not None:
                rows.append({**place, **_sketch_row("latency_s", second.latency)})
        return pa.Table.from_pylist(rows, schema=TABLE_SCHEMA)


TABLE_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("table", "phase", "arm", "worker")),
        ("second", pa.int64()),
        ("name", pa.string()),
        ("code", pa.string()),
        ("count", pa.int64()),
        *((name, pa.float64()) for name in (*SHARES, "mean", "least", "most", "relative_error")),
        ("first_bucket", pa.int64()),
        ("buckets", pa.list_(pa.int64())),
    ]
)
"""Columns of `summary.arrow`; values in seconds, second: null where it is not about one."""


def described(part: Sketch) -> dict[str, float | int | None]:
    """Samples, percentiles (None where the sample is too small), mean and exact extremes."""
    percentiles = {name: part.percentile(share) for name, share in SHARES.items()}
    return {"samples": part.samples, **percentiles, "mean": part.mean(), "least": part.least, "most": part.most}


def _sketch_row(name: str, part: Sketch) -> dict[str, object]:
    told = described(part)
    return {
        "name": name,
        "count": told.pop("samples"),
        **told,
        "relative_error": part.error,
        "first_bucket": part.first,
        "buckets": part.counts.tolist(),
    }


def _totals(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for name, count in pairs:
        totals[name] = totals.get(name, 0) + count
    return dict(sorted(totals.items()))


def _added(one: Mapping[K, int], other: Mapping[K, int]) -> dict[K, int]:
    return {
        name: one.get(name, 0) + other.get(name, 0) for name in (*one, *(name for name in other if name not in one))
    }


def _merged(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> dict[Any, Any]:
    merged = dict(one)
    for name, part in other.items():
        merged[name] = merged[name].merge(part) if name in merged else part
    return merged
