"""Progress that people can watch: a panel on a terminal, plain lines anywhere else."""

import codecs
import sys
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

LINE_EVERY_S = 5.0
NAMED_MAX = 8
"""With more nodes than this, states are counted and no longer listed by name."""

_COLOURS = {
    "ready": "green",
    "closed": "green",
    "warm": "green",
    "joining": "cyan",
    "loading": "cyan",
    "starting": "cyan",
    "draining": "yellow",
    "suspected": "yellow",
    "half_open": "yellow",
    "dead": "bold red",
    "open": "bold red",
    "failed": "bold red",
}


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """How a run stands. Seconds since the run began, seconds left of the phase (None: nobody knows), and counts.

    latency_*: of requests that completed in the last `guard.window_s` seconds, None without any. workers and breakers:
    node to state. faults: names of those in force.
    What the guard judges, see workloads.lately: ended_lately and bad_lately count the ended requests of the window and
    those that are overdue; waited_p99_s is over `waited` requests, ended or in flight, None without any.
    """

    elapsed_s: float
    phase: str
    left_s: float | None = None
    offered: int = 0
    completed: int = 0
    failed: int = 0
    refused: int = 0
    in_flight: int = 0
    latency_p50_s: float | None = None
    latency_p95_s: float | None = None
    ended_lately: int = 0
    bad_lately: int = 0
    waited: int = 0
    waited_p99_s: float | None = None
    workers: dict[str, str] = {}
    breakers: dict[str, str] = {}
    faults: list[str] = []


class Silent:
    """Shows nothing, of a run that nobody watches. See chaos.director.Watcher."""

    def phase(self, name: str, duration_s: float | None = None) -> None:
        """See Watcher."""

    def update(self, snapshot: Snapshot) -> None:
        """See Watcher."""

    def note(self, text: str) -> None:
        """See Watcher."""


def phase_line(name: str, duration_s: float | None) -> str:
    """The line that announces a phase."""
    return f"phase {name}" if duration_s is None else f"phase {name} ({duration_s:.0f} s)"


def snapshot_line(snapshot: Snapshot) -> str:
    """A snapshot as one plain line."""
    left = "" if snapshot.left_s is None else f" ({max(0.0, snapshot.left_s):.0f} s left)"
    parts = [f"{snapshot.elapsed_s:6.1f} s  {snapshot.phase}{left}", _counts(snapshot), _latency(snapshot)]
    for title, states in (("workers", snapshot.workers), ("breakers", snapshot.breakers)):
        if states:
            parts.append(f"{title}: {', '.join(text for text, _ in _states(states))}")
    if snapshot.faults:
        parts.append(f"FAULT: {', '.join(snapshot.faults)}")
    return " | ".join(parts)


def snapshot_panel(snapshot: Snapshot, duration_s: float | None) -> RenderableType:
    """A snapshot as a compact panel. duration_s: length of the phase, None when nobody knows it."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column()
    rows.add_row("phase", _phase(snapshot, duration_s))
    rows.add_row("requests", Text(_counts(snapshot)))
    rows.add_row("latency", Text(_latency(snapshot)))
    for title, states in (("workers", snapshot.workers), ("breakers", snapshot.breakers)):
        if states:
            rows.add_row(title, Text("  ").join(Text(text, style=colour) for text, colour in _states(states)))
    if snapshot.faults:
        rows.add_row("fault", Text(", ".join(snapshot.faults), style="bold red"))
    border = "red" if snapshot.faults else "dim"
    return Panel(rows, title=Text(f"{snapshot.elapsed_s:.0f} s"), title_align="right", border_style=border)


def _phase(snapshot: Snapshot, duration_s: float | None) -> RenderableType:
    if snapshot.left_s is None or not duration_s:
        return Text(snapshot.phase, style="bold")
    left_s = min(max(0.0, snapshot.left_s), duration_s)
    caption = Text.assemble((snapshot.phase, "bold"), f"  {left_s:.0f} s left")
    return Group(caption, ProgressBar(total=duration_s, completed=duration_s - left_s, width=40))


def _counts(snapshot: Snapshot) -> str:
    return (
        f"offered {snapshot.offered}, completed {snapshot.completed}, failed {snapshot.failed}, "
        f"refused {snapshot.refused}, in flight {snapshot.in_flight}"
    )


def _latency(snapshot: Snapshot) -> str:
    if snapshot.latency_p50_s is None or snapshot.latency_p95_s is None:
        return "no latency yet"
    return f"p50 {snapshot.latency_p50_s * 1000:.0f} ms, p95 {snapshot.latency_p95_s * 1000:.0f} ms"


def _states(states: dict[str, str]) -> list[tuple[str, str]]:
    """Texts with their colours: every node while they are few, else how many are in each state."""
    if len(states) <= NAMED_MAX:
        return [(f"{node} {state}", _COLOURS.get(state, "default")) for node, state in sorted(states.items())]
    counted = Counter(states.values())
    return [(f"{count} {state}", _COLOURS.get(state, "default")) for state, count in sorted(counted.items())]


class Progress:
    """Shows a run to whoever watches. A watcher that goes away (a closed pipe or terminal) never disturbs the run.

    stream: standard output unless given. clock: seconds, monotonic; paces the plain lines. Use it in a `with`, or
    close it: a terminal's cursor is hidden meanwhile.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock
        self._watched = True
        self._closed = False
        self._phase: str | None = None
        self._duration_s: float | None = None
        self._next_line = 0.0
        self._last: Snapshot | None = None
        self._last_shown: Snapshot | None = None
        self._live = _live(self._stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def phase(self, name: str, duration_s: float | None = None) -> None:
        """A phase begins; it lasts `duration_s` seconds, None when nobody knows.

        Plain lines first show how the phase before ended.
        """
        self._show_last()
        self._phase, self._duration_s = name, duration_s
        self._next_line = self._clock() + LINE_EVERY_S
        self._say(phase_line(name, duration_s))

    def update(self, snapshot: Snapshot) -> None:
        """Show how the run stands. As a plain line at most every LINE_EVERY_S; a phase that is new shows at once."""
        if self._live is not None:
            if self._watched and not self._closed:
                self._guarded(lambda: self._draw(snapshot))
            return
        if snapshot.phase != self._phase:
            self.phase(snapshot.phase)
        self._last = snapshot
        if self._clock() >= self._next_line:
            self._next_line = self._clock() + LINE_EVERY_S
            self._last_shown = snapshot
            self._say(snapshot_line(snapshot))

    def note(self, text: str) -> None:
        """Something worth a line of its own."""
        self._say(text)

    def close(self) -> None:
        """Leave the last state on the screen and give the terminal back. More calls do nothing."""
        if self._closed:
            return
        if self._live is not None:
            # Also when nobody watches: it gives sys.stdout and sys.stderr back.
            self._guarded(self._live.stop)
        self._show_last()
        self._closed = True

    def _show_last(self) -> None:
        """As a plain line, the last state that came too soon after another to be shown."""
        if self._live is None and self._last is not None and self._last is not self._last_shown:
            self._last_shown = self._last
            self._say(snapshot_line(self._last))

    def _draw(self, snapshot: Snapshot) -> None:
        if self._live is None:
            return
        self._live.start()
        self._live.update(snapshot_panel(snapshot, self._duration_s), refresh=True)

    def _say(self, text: str) -> None:
        if not self._watched or self._closed:
            return
        encoding = self._stream.encoding or "ascii"
        line = text.encode(encoding, "replace").decode(encoding)
        if self._live is not None:
            console = self._live.console
            self._guarded(lambda: console.print(Text(line), soft_wrap=True))
        else:
            self._guarded(lambda: print(line, file=self._stream, flush=True))

    def _guarded(self, show: Callable[[], object]) -> None:
        """Show something, and note when nobody can see it: the run matters more than its display."""
        try:
            show()
        except OSError:
            self._watched = False
        except ValueError:
            # Python's way of saying that the stream has been closed; anything else is a mistake of ours.
            if not self._stream.closed:
                raise
            self._watched = False


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Fall silent. Rich would end the whole process."""
        self.quiet = True


def _live(stream: TextIO) -> Live | None:
    """The display of a terminal that can show panels, else None."""
    # In less than UTF-8 rich still cuts long words with an ellipsis, which then fails. FORCE_COLOR makes rich take a
    # file for a terminal, and a CI log would fill with panels.
    if not stream.isatty() or codecs.lookup(stream.encoding or "ascii").name != "utf-8":
        return None
    console = _Console(file=stream, highlight=False, markup=False, emoji=False)
    if console.is_dumb_terminal:
        return None
    # Refreshed by us: an error in a thread of rich would be nobody's to catch.
    return Live(console=console, auto_refresh=False)
