"""`python -m chaos.replay RESULTS`: play every node of a run again from the record of what it decided.

A node is made anew, hears the same events at the same times, and has to give the same commands. Where it does not,
its code has changed since, or it depends on something that it may not depend on. Times are those of the run's report.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.salvage import origin_s
from chaos.code import code_digest
from cluster.record import Record, RecordError, Step, records
from cluster.replay import Answer, Difference, Replay, recorded_answer, replay

EXIT_DIFFERENT = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
_SHOWN_MAX = 400
_LIST_MAX = 6
_TEXT_MAX = 60
_INDENT = "    "


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Exit code 0 when every node decides again what it decided, 1 when one does not."""
    options = _parser().parse_args(arguments)
    try:
        return _replay_all(options)
    except RecordError as error:
        print(f"chaos.replay: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("chaos.replay: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _replay_all(options: argparse.Namespace) -> int:
    results: Path = options.results
    found = [Record(path) for path in records(results / "raw")]
    if not found:
        raise RecordError(f"{results}: holds no record of what its nodes decided; chaos.run --record-policy makes one")
    chosen = [record for record in found if options.node in (None, record.opening.birth.name)]
    if not chosen:
        names = dict.fromkeys(record.opening.birth.name for record in found)
        raise RecordError(f"--node {options.node}: not among those recorded: {', '.join(names)}")
    if _other_code(results):
        print("the run was made by other code than this: a difference may be what has changed since")
    replays = []
    for record in chosen:
        zero_s = _zero_s(results, record)
        window = None if options.around is None else _Window(options.around, options.within, zero_s)
        done = replay(record, None if window is None else window.see)
        replays.append(done)
        _print(done, zero_s, window)
    return _summed_up(replays)


def _summed_up(replays: list[Replay]) -> int:
    different = sum(one.difference is not None for one in replays)
    events, commands = sum(one.events for one in replays), sum(one.commands for one in replays)
    same = f"{len(replays) - different} of {len(replays)} nodes decide again what they decided"
    print(f"{same}: {events} events, {commands} commands")
    return EXIT_DIFFERENT if different else 0


class _Window:
    """The events around an instant, for people. At most so many of them are kept."""

    def __init__(self, around_s: float, within_s: float, zero_s: float) -> None:
        self.lines: list[str] = []
        self.left_out = 0
        self._from_s, self._to_s, self._zero_s = around_s - within_s, around_s + within_s, zero_s

    def see(self, number: int, step: Step) -> None:
        """Keep it if it is near."""
        time_s = step.time_s - self._zero_s
        if not self._from_s <= time_s <= self._to_s:
            return
        if len(self.lines) >= _SHOWN_MAX:
            self.left_out += 1
            return
        self.lines.append(f"{_INDENT}{time_s:.6f} s, event {number}: {told(step.event)}")
        self.lines += [f"{_INDENT}{_INDENT}{line}" for line in _lines(recorded_answer(step), self._zero_s)]


def _print(done: Replay, zero_s: float, window: _Window | None) -> None:
    said = "the same" if done.difference is None else f"DIFFERENT at event {done.difference.number}"
    end = f"; {done.end}" if done.end else ""
    print(f"{done.node}.{done.incarnation}: {done.events} events, {done.commands} commands, {said}{end}")
    if window is not None:
        print("\n".join(window.lines) or f"{_INDENT}nothing then")
        if window.left_out:
            print(f"{_INDENT}and {window.left_out} more events; --within shows fewer at a time")
    if done.difference is not None:
        print("\n".join(_shown(done.difference, zero_s)))


def _shown(difference: Difference, zero_s: float) -> list[str]:
    lines = [f"{_INDENT}at {difference.time_s - zero_s:.6f} s: {told(difference.event)}"]
    for name, answer in (("recorded", difference.recorded), ("replayed", difference.replayed)):
        lines += [f"{_INDENT}{name}: {line}" for line in _lines(answer, zero_s)]
    return lines


def _lines(answer: Answer, zero_s: float) -> list[str]:
    if answer.raised:
        return [f"raised {answer.raised}"]
    wake = "never" if answer.wake_s is None else f"at {answer.wake_s - zero_s:.6f} s"
    return [*(told(command) for command in answer.commands), f"next wake {wake}"]


def told(value: Any) -> str:
    """For people: structs by name, without what is as usual; long lists and texts cut short."""
    match value:
        case msgspec.Struct():
            usual = {field.name: field.default for field in msgspec.structs.fields(value)}
            parts = msgspec.structs.asdict(value).items()
            inside = ", ".join(f"{name}={told(part)}" for name, part in parts if part != usual[name])
            return f"{type(value).__name__}({inside})"
        case list() | tuple():
            shown = ", ".join(told(part) for part in value[:_LIST_MAX])
            return f"[{shown}, ... {len(value)} in all]" if len(value) > _LIST_MAX else f"[{shown}]"
        case str() if len(value) > _TEXT_MAX:
            return repr(f"{value[:_TEXT_MAX]}...")
    return repr(value)


def _other_code(results: Path) -> bool:
    try:
        environment = msgspec.json.decode((results / "environment.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        return False
    return environment.get("code") not in (None, code_digest())


def _zero_s(results: Path, record: Record) -> float:
    """What the node's clock showed at time zero of the run.

    By its own first row, which is in its host's clock in the raw file and in the run's in the table.
    """
    birth, ahead_s = record.opening.birth, record.opening.clock_ahead_s
    own = (("node", "=", birth.name), ("incarnation", "=", birth.incarnation), ("sequence", "=", 0))
    try:
        raw = pa.ipc.open_stream(results / "raw" / f"events.{birth.name}.{birth.incarnation}.arrow").read_next_batch()
        merged = pq.read_table(results / "events.parquet", columns=["time_s"], filters=list(own))
        return float(raw["time_s"][0].as_py() - merged["time_s"][0].as_py()) + ahead_s
    except (OSError, pa.ArrowInvalid, IndexError, StopIteration):
        # Killed before its rows were written, or before they were merged.
        return origin_s(results / "raw") + ahead_s


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chaos.replay",
        description=__doc__,
        epilog="exit codes: 0 the same, 1 a difference, 2 usage or no record",
    )
    parser.add_argument("results", type=Path, help="a results directory")
    parser.add_argument("--node", help="this node only")
    parser.add_argument("--around", type=float, metavar="SECONDS", help="print what happened around this time")
    parser.add_argument("--within", type=float, default=0.5, metavar="SECONDS", help="how far around (default 0.5)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
