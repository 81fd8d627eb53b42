"""A node played again from the record of its decisions: with the same events it has to decide the same."""

from collections.abc import Callable, Sequence
from typing import Any, get_args

import msgspec

from analysis.schema import ROW_TYPES, Row
from cluster.node import AnyEvent, Command, Deliver, DropCache, Insert, Load, ProbeEngine, Record, Remove, Send, Unload
from cluster.record import Record as File
from cluster.record import RecordError, Step, encoded, raised_by

_RowLess = Send | Insert | Remove | DropCache | Load | Unload | ProbeEngine | Deliver
_RECORD = Record.__name__
_any = msgspec.msgpack.Decoder()
_parts = msgspec.msgpack.Decoder(list[msgspec.Raw])
_command = msgspec.msgpack.Decoder(_RowLess)


class Answer(msgspec.Struct, frozen=True):
    """What a node made of an event. raised: instead of commands."""

    commands: tuple[Command, ...] = ()
    wake_s: float | None = None
    raised: str = ""


class Difference(msgspec.Struct, frozen=True):
    """number: of the event, from 1. time_s: of the node's clock."""

    number: int
    time_s: float
    event: AnyEvent
    recorded: Answer
    replayed: Answer


class Replay(msgspec.Struct, frozen=True):
    """events, commands: how many were compared. end: how the record ends, empty when in order.

    difference: the first; what follows it is not compared, for the two have gone separate ways.
    """

    node: str
    role: str
    incarnation: int
    events: int
    commands: int
    end: str
    difference: Difference | None


Watch = Callable[[int, Step], None]
"""Told of each event, by its number."""


def replay(record: File, watch: Watch | None = None) -> Replay:
    """Raises RecordError."""
    birth = record.opening.birth
    try:
        node = birth.node()
    except ValueError as error:
        raise RecordError(f"{record.path.name}: {error}") from error
    events = commands = 0
    difference: Difference | None = None
    for number, step in enumerate(record.steps(), start=1):
        if watch is not None:
            watch(number, step)
        if difference is not None:
            continue
        replayed, same = _answer(node, step)
        events = number
        if same:
            commands += len(replayed.commands)
        else:
            difference = Difference(number, step.time_s, step.event, recorded_answer(step), replayed)
    return Replay(birth.name, birth.role, birth.incarnation, events, commands, record.end, difference)


def _answer(node: Any, step: Step) -> tuple[Answer, bool]:
    """What the node says now, and whether that is what is recorded."""
    try:
        commands: Sequence[Command] = node.handle(step.event, step.time_s)
    except Exception as error:
        # Whatever it is: that the node raised is an answer as well, to be compared with the recorded one.
        raised = raised_by(error)
        return Answer(raised=raised), raised == step.raised
    answer = Answer(tuple(commands), node.next_wake())
    if step.raised or answer.wake_s != step.wake_s:
        return answer, False
    line = encoded(commands)
    # What holds a whole number where a fraction may stand is written otherwise once it has been read.
    return answer, line == bytes(step.commands) or _any.decode(line) == _any.decode(step.commands)


def recorded_answer(step: Step) -> Answer:
    """What the node made of it then."""
    return Answer(tuple(_decoded(part) for part in _parts.decode(step.commands)), step.wake_s, step.raised)


def _decoded(part: msgspec.Raw) -> Command:
    kind, *rest = _any.decode(part)
    if kind != _RECORD:
        command: Command = _command.decode(part)
        return command
    return Record(_row(rest[0]))


def _row(fields: dict[str, Any]) -> Row:
    """Rows bear no tag, but no two kinds have the same fields."""
    for kind in ROW_TYPES:
        if {field.name for field in msgspec.structs.fields(kind)} == fields.keys():
            return msgspec.convert(fields, kind)
    raise RecordError(f"a row of no kind that is known: {', '.join(fields)}")


assert {*get_args(_RowLess), Record} == set(Command.__subclasses__())
