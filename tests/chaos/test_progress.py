"""What people see of a run, on every kind of terminal and on none."""

import io
import sys
from collections.abc import Callable

import pytest
from rich.console import Console

from chaos.progress import NAMED_MAX, Progress, Snapshot, phase_line, snapshot_line, snapshot_panel

CALM = Snapshot(
    elapsed_s=12.34,
    phase="baseline",
    left_s=7.6,
    offered=340,
    completed=330,
    failed=1,
    refused=2,
    in_flight=7,
    latency_p50_s=0.1204,
    latency_p95_s=0.34,
    workers={"worker-1": "ready", "worker-0": "ready"},
    breakers={"worker-0": "closed"},
)
CUT = Snapshot(
    elapsed_s=30, phase="fault", left_s=-0.2, workers={"worker-0": "dead"}, faults=["cut: black_hole worker-0"]
)
CROWD = Snapshot(elapsed_s=1, phase="fault", workers={f"w{n}": "dead" if n < 3 else "ready" for n in range(1000)})


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Screen(io.TextIOWrapper):
    """A terminal (or not) that keeps what was written to it."""

    def __init__(self, *, terminal: bool, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True, newline="")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def shown(self) -> str:
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode(self.encoding)


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_a_line_says_it_all() -> None:
    assert snapshot_line(CALM) == (
        "  12.3 s  baseline (8 s left) | offered 340, completed 330, failed 1, refused 2, in flight 7 | "
        "p50 120 ms, p95 340 ms | workers: worker-0 ready, worker-1 ready | breakers: worker-0 closed"
    )
    assert snapshot_line(CUT) == (
        "  30.0 s  fault (0 s left) | offered 0, completed 0, failed 0, refused 0, in flight 0 | no latency yet | "
        "workers: worker-0 dead | FAULT: cut: black_hole worker-0"
    )


def test_many_workers_are_counted() -> None:
    assert len(CROWD.workers) > NAMED_MAX
    assert "workers: 3 dead, 997 ready" in snapshot_line(CROWD)


def test_a_phase_of_unknown_length_says_none() -> None:
    assert phase_line("fault", 32) == "phase fault (32 s)"
    assert phase_line("start", None) == "phase start"


@pytest.mark.parametrize("snapshot", [CALM, CUT, CROWD])
@pytest.mark.parametrize("duration_s", [None, 0.0, 20.0])
@pytest.mark.parametrize("width", [1, 10, 40, 120])
def test_a_panel_fits_any_width(snapshot: Snapshot, duration_s: float | None, width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    with console.capture() as capture:
        console.print(snapshot_panel(snapshot, duration_s))
    assert capture.get()


def test_a_panel_shows_states_in_their_colours() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard", _environ={})
    with console.capture() as capture:
        console.print(snapshot_panel(CUT, 32))
    assert "\x1b[1;31mworker-0 dead" in capture.get()
    assert "\x1b[1;31mcut: black_hole worker-0" in capture.get()


def test_plain_lines_come_at_phases_and_every_five_seconds() -> None:
    screen, clock = Screen(terminal=False), Clock()
    with Progress(screen, clock) as progress:
        progress.phase("baseline", 14)
        for _ in range(24):
            progress.update(CALM)
            clock.now += 0.5
        progress.note("reference completions ready")
        progress.update(CUT)
    kinds = [line.split("|")[0].strip() for line in screen.shown().splitlines()]
    assert kinds == [
        "phase baseline (14 s)",
        "12.3 s  baseline (8 s left)",
        "12.3 s  baseline (8 s left)",
        "reference completions ready",
        "phase fault",
        "30.0 s  fault (0 s left)",
    ]


def test_closing_says_nothing_twice() -> None:
    screen, clock = Screen(terminal=False), Clock()
    progress = Progress(screen, clock)
    progress.phase("baseline", 14)
    clock.now += 6
    progress.update(CALM)
    progress.close()
    progress.close()
    progress.note("too late")
    assert len(screen.shown().splitlines()) == 2


def test_a_terminal_gets_a_panel_and_its_cursor_back() -> None:
    screen = Screen(terminal=True)
    with Progress(screen) as progress:
        progress.phase("fault", 32)
        progress.update(CUT)
        progress.note("fault [verified]")
        progress.update(CUT)
    shown = screen.shown()
    assert "╭" in shown
    assert "fault [verified]" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_colour_forced_on_a_file_makes_no_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    screen = Screen(terminal=False)
    with Progress(screen) as progress:
        progress.update(CUT)
    assert "\x1b" not in screen.shown()


@pytest.mark.parametrize("terminal", [True, False])
def test_what_cannot_be_encoded_becomes_a_question_mark(terminal: bool) -> None:
    screen = Screen(terminal=terminal, encoding="ascii")
    with Progress(screen) as progress:
        progress.note("déjà vu")
        progress.update(CUT)
    assert screen.shown().startswith("d?j? vu")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_closed_stream_does_not_disturb_the_run(terminal: bool) -> None:
    screen = Screen(terminal=terminal)
    with Progress(screen) as progress:
        progress.update(CUT)
        screen.close()
        progress.note("still here")
        progress.phase("recovery", 20)
        progress.update(CALM)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("use", [lambda p: p.note("x"), lambda p: p.update(CUT), lambda p: p.phase("fault", 3)])
def test_a_broken_pipe_does_not_disturb_the_run(
    terminal: bool, use: Callable[[Progress], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    screen = Screen(terminal=terminal)
    monkeypatch.setattr(screen, "write", broken)
    before = sys.stdout, sys.stderr
    with Progress(screen) as progress:
        use(progress)
        use(progress)
    assert (sys.stdout, sys.stderr) == before


def test_a_terminal_that_hangs_up_gives_the_streams_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(text: str) -> int:
        raise OSError(5, "Input/output error")

    screen = Screen(terminal=True)
    before = sys.stdout, sys.stderr
    with Progress(screen) as progress:
        progress.update(CUT)
        monkeypatch.setattr(screen, "write", gone)
        progress.update(CALM)
        progress.note("still here")
    assert (sys.stdout, sys.stderr) == before
