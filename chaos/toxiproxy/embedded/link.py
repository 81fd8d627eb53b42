"""One direction of one connection: a source, the toxics that act on it, and a sink."""

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Protocol

from chaos.toxiproxy.embedded.frame_stage import FrameStage
from chaos.toxiproxy.embedded.nats_frames import ConnectionTap, Frame, FrameKind, FrameParser
from chaos.toxiproxy.embedded.stages import CHUNK_BYTES_MAX, Chunk, Stage
from chaos.toxiproxy.embedded.toxic import Direction, Toxic


class Source(Protocol):
    """Where a link's bytes come from: it can be told to wait."""

    def hold(self) -> None:
        """Read no more."""

    def go_on(self) -> None:
        """Read again."""


class Sink(Protocol):
    """Where a link's bytes go."""

    writable: bool

    def write(self, data: bytes) -> None:
        """Send, or keep until it can be sent."""

    def close(self) -> None:
        """Close once everything is sent, or with RST where that was asked for."""


class Placement:
    """A toxic as it is built into one direction of one connection. acts: whether it has hold of it now."""

    def __init__(self, toxic: Toxic, seed: str) -> None:
        self.toxic = toxic
        self.stage = toxic.make_stage(f"{seed}/{toxic.name}/stage")
        self.acts = False
        self.chosen = False
        self._draws = random.Random(f"{seed}/{toxic.name}/toxicity")
        self.draw()

    def draw(self) -> None:
        """Decide by toxicity whether the connection is hit: when it begins, and whenever the stage starts anew."""
        self.chosen = self._draws.random() < self.toxic.toxicity


class Link:
    """Moves bytes from source to sink through the stages of the toxics that act on this connection.

    With none of them the bytes go straight through. It never waits and holds a bounded amount: each stage has a
    capacity, and the source is held while the first one is full. Taking a toxic away passes on what it held whatever
    there is room for, so it takes no time.
    """

    def __init__(
        self, direction: Direction, source: Source, sink: Sink, seed: str, on_name: Callable[[str], None] | None
    ) -> None:
        """on_name: told the NATS client name once, after the bytes that say it have been passed on."""
        self.direction: Direction = direction
        self.received_bytes = 0
        self.sent_bytes = 0
        self.closed = False
        """Whether the sink has been closed: whatever still comes is dropped."""
        self.tap = ConnectionTap(direction)
        self._on_name = on_name
        self._source, self._sink, self._seed = source, sink, f"{seed}/{direction}"
        self._loop = asyncio.get_running_loop()
        self._placements: list[Placement] = []
        self._chain: list[Stage] = []
        self._intake: deque[Chunk] = deque()
        self._input_ended = False
        self._source_held = False
        self._parser: FrameParser | None = None
        """Cuts the input into frames, while a message toxic acts."""
        self._timer: asyncio.TimerHandle | None = None

    # --- bytes ---

    def feed(self, data: bytes) -> None:
        """Bytes from the source."""
        self.received_bytes += len(data)
        self.tap.feed(data)
        if not self._chain:
            if not self.closed:
                self._send(data)
                if not self._sink.writable:
                    self._hold_source()
        else:
            self._feed_chain(data)
        if self._on_name is not None and self.tap.client_name is not None:
            on_name, self._on_name = self._on_name, None
            on_name(self.tap.client_name)

    def _feed_chain(self, data: bytes) -> None:
        now_s = self._loop.time()
        if self._parser is not None:
            self._intake.extend(Chunk(frame.raw, now_s, frame) for frame in self._parser.feed(data))
        else:
            self._intake.extend(_split(Chunk(data, now_s)))
        self.pump()

    def end_input(self) -> None:
        """The source has ended: nothing comes any more."""
        if not self._input_ended:
            self._input_ended = True
            if not self.closed:
                self._give_up_frame(self._loop.time())
            self.pump()

    def sink_gone(self) -> None:
        """The sink's socket is closed; what was on its way to it is lost."""
        self._end()

    def pump(self) -> None:
        """Move whatever can move now, and see to it that it goes on when more can."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.closed:
            return
        now_s = self._loop.time()
        while self._move(now_s):
            pass
        if not self.closed:
            self._set_timer(now_s)
            self._set_reading()

    # --- toxics ---

    def placements(self) -> Sequence[Placement]:
        """Its toxics in the order in which they were added."""
        return self._placements

    def add(self, toxic: Toxic, client: str | None) -> None:
        """A new toxic, also for a connection that has long been open. client: the connection's NATS client name."""
        if self._placements:
            self._placements[-1].draw()
        self._placements.append(Placement(toxic, self._seed))
        self.arrange(client)

    def update(self, toxic: Toxic, client: str | None) -> None:
        """The toxic's attributes, toxicity or clients have changed."""
        for placement in self._placements:
            if placement.toxic is toxic:
                if placement.acts:
                    now_s = self._loop.time()
                    for chunk in placement.stage.restart(now_s):
                        self._pass_on(chunk, self._after(placement.stage), now_s)
                placement.draw()
        self.arrange(client)

    def remove(self, toxic: Toxic, client: str | None) -> None:
        """The toxic is gone. What its stage held goes on at once; a stage that dropped bytes ends the connection."""
        index = next((index for index, placement in enumerate(self._placements) if placement.toxic is toxic), None)
        if index is None:
            return
        placement = self._placements.pop(index)
        if isinstance(placement.stage, FrameStage):
            toxic.counts += placement.stage.counts
        closes = placement.stage.must_close() and toxic.concerns(client)
        if index > 0:
            self._placements[index - 1].draw()
        if placement.acts:
            self._take_out(placement)
        self.arrange(client)
        if closes and not self.closed:
            self._close_sink()

    def arrange(self, client: str | None) -> None:
        """Let those toxics act, and only those, that concern this client and whose toxicity has chosen it."""
        now_s = self._loop.time()
        closes = False
        for placement in self._placements:
            concerned = placement.toxic.concerns(client)
            acts = placement.chosen and concerned
            if placement.acts and not acts:
                self._take_out(placement)
                closes = closes or (not concerned and placement.stage.must_close())
            elif acts and not placement.acts and not self.closed:
                self._put_in(placement, now_s)
        self.pump()
        if closes and not self.closed:
            self._close_sink()

    def abandon(self) -> None:
        """The connection is over: no timer stays, and the counts of message toxics are kept with the toxic."""
        self._end()
        for placement in self._placements:
            if isinstance(placement.stage, FrameStage):
                placement.toxic.counts += placement.stage.counts
        self._placements.clear()

    def counts(self, toxic: Toxic) -> Counter[str]:
        """What a message toxic has seen, matched and affected here."""
        found: Counter[str] = Counter()
        for placement in self._placements:
            if placement.toxic is toxic and isinstance(placement.stage, FrameStage):
                found += placement.stage.counts
        return found

    # --- the chain ---

    def _put_in(self, placement: Placement, now_s: float) -> None:
        placement.acts = True
        placement.stage.begin(now_s)
        if isinstance(placement.stage, FrameStage) and self._parser is None:
            # It begins in the middle of a frame, if need be: the rest of that one passes unjudged.
            self._parser = self.tap.parser()
            while self._intake:
                self._pass_on(self._intake.popleft(), self._after_messages(), now_s)
        # Messages are judged before bytes are cut and slowed: after a slicer there would be none left to judge.
        acting = [other.stage for other in self._placements if other.acts]
        acting.sort(key=lambda stage: not isinstance(stage, FrameStage))
        self._chain.insert(acting.index(placement.stage), placement.stage)

    def _take_out(self, placement: Placement) -> None:
        placement.acts = False
        if self.closed:
            return
        now_s = self._loop.time()
        stage = placement.stage
        after = self._after(stage)
        last_of_messages = isinstance(stage, FrameStage) and self._message_stages() == 1
        for chunk in stage.flush():
            self._pass_on(chunk, after, now_s)
        self._chain.remove(stage)
        if last_of_messages:
            while self._intake:
                self._pass_on(self._intake.popleft(), after, now_s)
            self._give_up_frame(now_s)
        if stage.input_ended and not stage.end_passed:
            self._pass_end(after, now_s)

    def _give_up_frame(self, now_s: float) -> None:
        """Cut no more frames: what there is of an unfinished one goes on, behind the frames before it."""
        if self._parser is None:
            return
        rest = self._parser.flush()
        self._parser = None
        if rest and self._message_stages():
            self._intake.append(Chunk(rest, now_s, Frame(rest, FrameKind.OPAQUE)))
        elif rest:
            self._pass_on(Chunk(rest, now_s), self._after_messages(), now_s)

    def _message_stages(self) -> int:
        return sum(isinstance(stage, FrameStage) for stage in self._chain)

    def _after_messages(self) -> Stage | None:
        count = self._message_stages()
        return self._chain[count] if count < len(self._chain) else None

    def _after(self, stage: Stage) -> Stage | None:
        index = self._chain.index(stage) + 1
        return self._chain[index] if index < len(self._chain) else None

    def _move(self, now_s: float) -> bool:
        """One pass over the stages, from the last to the first, to make room before it is needed."""
        chain = self._chain
        moved = False
        for index in range(len(chain) - 1, -1, -1):
            stage, after = chain[index], chain[index + 1] if index + 1 < len(chain) else None
            room: Callable[[], bool] = after.has_room if after is not None else self._sink_has_room
            if isinstance(stage, FrameStage) and not isinstance(after, FrameStage):
                moved = self._leave_messages(stage, after, room, now_s) or moved
            while room() and (chunk := stage.pop(now_s)) is not None:
                self._pass_on(chunk, after, now_s)
                moved = True
            if not stage.end_passed and stage.is_closed(now_s):
                stage.end_passed = True
                self._pass_end(after, now_s)
                moved = True
                if self.closed:
                    return False
        if not chain:
            while self._intake:
                self._send(self._intake.popleft().data)
        else:
            while self._intake and chain[0].has_room():
                chain[0].take(self._intake.popleft(), now_s)
                moved = True
        if self._input_ended and not self._intake:
            if not chain:
                self._close_sink()
            elif not chain[0].input_ended:
                chain[0].end_input(now_s)
                moved = True
        return moved and not self.closed

    def _leave_messages(self, stage: FrameStage, after: Stage | None, room: Callable[[], bool], now_s: float) -> bool:
        """Frames that came together go on together: a write, or a place in a buffer, for each would be dear."""
        moved = False
        while room():
            frames: list[bytes] = []
            size, stamp_s = 0, 0.0
            while size < CHUNK_BYTES_MAX and (chunk := stage.pop(now_s)) is not None:
                frames.append(chunk.data)
                size, stamp_s = size + len(chunk.data), chunk.stamp_s
            if not frames:
                break
            self._pass_on(Chunk(b"".join(frames), stamp_s), after, now_s)
            moved = True
        return moved

    def _pass_on(self, chunk: Chunk, after: Stage | None, now_s: float) -> None:
        if after is None:
            self._send(chunk.data)
        elif isinstance(after, FrameStage):
            after.take(chunk, now_s)
        else:
            for part in _split(chunk):
                after.take(part, now_s)

    def _pass_end(self, after: Stage | None, now_s: float) -> None:
        if after is None:
            self._close_sink()
        elif not after.input_ended:
            after.end_input(now_s)

    # --- both ends ---

    def _sink_has_room(self) -> bool:
        return self._sink.writable

    def _send(self, data: bytes) -> None:
        self.sent_bytes += len(data)
        self._sink.write(data)

    def _close_sink(self) -> None:
        self._end()
        self._sink.close()

    def _end(self) -> None:
        self.closed = True
        self._intake.clear()
        self._chain.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # Bytes that are read and dropped lead to the end of the source, which is how a connection gets to its own.
        self._go_on_source()

    def _set_timer(self, now_s: float) -> None:
        dues_s = [due_s for stage in self._chain if (due_s := stage.due_s()) is not None and due_s > now_s]
        if dues_s:
            self._timer = self._loop.call_at(min(dues_s), self.pump)

    def _set_reading(self) -> None:
        room = not self._intake and (self._chain[0].has_room() if self._chain else self._sink.writable)
        if room:
            self._go_on_source()
        else:
            self._hold_source()

    def _hold_source(self) -> None:
        if not self._source_held:
            self._source_held = True
            self._source.hold()

    def _go_on_source(self) -> None:
        if self._source_held:
            self._source_held = False
            self._source.go_on()


def _split(chunk: Chunk) -> list[Chunk]:
    data = chunk.data
    if len(data) <= CHUNK_BYTES_MAX:
        return [chunk]
    cuts = range(0, len(data), CHUNK_BYTES_MAX)
    return [Chunk(data[start : start + CHUNK_BYTES_MAX], chunk.stamp_s) for start in cuts]
