"""The scheduler's decisions: by examples, and under random kills, clock jumps, long runs and dead webhooks."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chaos.scheduling import machine as module
from chaos.scheduling.calendar import Blackout, Cron
from chaos.scheduling.machine import Command, End, Finish, Machine, Start, Tell, Tidy, Write
from chaos.scheduling.plan import Plan
from chaos.scheduling.records import Change, Ended, JournalDamaged, Missed, Record, Started, State, Told
from tests.chaos.scheduling.plans import changes, plan, unaccounted

T0 = 1_800_000_000  # a whole minute
MINUTELY = "* * * * *"


class Desk:
    """A machine and its records: what it writes is durable, what it starts runs until told otherwise."""

    def __init__(self, of: Plan, state: State | None = None, now_s: float = T0) -> None:
        self.machine = Machine(of, state or State())
        self.records: list[Record] = []
        self.starts: list[Start] = []
        self.others: list[Command] = []
        self.take(self.machine.begin(now_s))

    def take(self, commands: list[Command]) -> list[Command]:
        for command in commands:
            match command:
                case Write(record):
                    self.records.append(record)
                case Start():
                    self.starts.append(command)
                case _:
                    self.others.append(command)
        return commands

    def tick(self, now_s: float, mono_s: float | None = None) -> list[Command]:
        return self.take(self.machine.tick(now_s, now_s if mono_s is None else mono_s))

    def end(self, now_s: float, verdict: str = "pass", complete: bool = True) -> None:
        self.take(self.machine.ended(Finish(complete, verdict, "because", "a/run"), now_s))

    def missed(self) -> list[Missed]:
        return [record for record in self.records if isinstance(record, Missed)]


def again(records: list[Record]) -> State:
    """What a restart reads."""
    state = State()
    for record in records:
        state.apply(msgspec.json.decode(msgspec.json.encode(record), type=Record))
    return state


def test_a_slot_is_written_down_before_it_is_started() -> None:
    desk = Desk(plan(MINUTELY))
    assert desk.tick(T0 + 59.9) == []
    commands = desk.tick(T0 + 60.2)
    assert commands == [Write(Started(entry="a", slot_s=T0 + 60, at_s=T0 + 60.2)), Start("a", T0 + 60)]
    assert desk.tick(T0 + 61) == []


def test_two_entries_of_the_same_minute_take_turns_and_never_overlap() -> None:
    desk = Desk(plan(MINUTELY, MINUTELY))
    for second in range(60, 400):
        desk.tick(T0 + second)
        if second % 25 == 24 and desk.machine._state.running:
            desk.end(T0 + second)
    order = [start.entry for start in desk.starts]
    assert order[:6] == ["a", "b"] * 3
    assert not desk.missed()


def test_a_slot_that_another_run_outlasts_is_missed_and_says_whose() -> None:
    desk = Desk(plan(MINUTELY, MINUTELY))
    desk.tick(T0 + 60)
    desk.tick(T0 + 121)
    assert [(each.entry, each.until_s - T0, each.reason) for each in desk.missed()] == [("b", 60, "a still ran")]


def test_what_was_due_while_nobody_was_there_is_missed_in_one_line_but_the_last_slot_still_begins() -> None:
    before = Desk(plan("*/10 * * * *", start_within_s=300.0))
    desk = Desk(plan("*/10 * * * *", start_within_s=300.0), again(before.records), T0 + 86_400 + 120)
    desk.tick(T0 + 86_400 + 120)
    (missed,) = desk.missed()
    assert (missed.slots, missed.reason, missed.exact) == (143, module.ABSENT, True)
    assert desk.starts == [Start("a", T0 + 86_400)]


def test_a_very_long_absence_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COUNTED_MAX", 100)
    desk = Desk(plan(MINUTELY))
    desk.tick(T0 + 40 * 365 * 86_400)
    assert next((each.slots, each.exact) for each in desk.missed()) == (100, False)
    desk.tick(T0 + 60)
    assert len(desk.starts) == 1, "a clock that is set back must not bring slots again"


def test_a_run_of_an_earlier_life_is_interrupted_and_its_slot_not_started_again() -> None:
    before = Desk(plan(MINUTELY))
    before.tick(T0 + 60)
    desk = Desk(plan(MINUTELY), again(before.records), T0 + 70)
    desk.tick(T0 + 70)
    assert not desk.starts
    desk.end(T0 + 75, verdict="", complete=False)
    ended = desk.records[-1]
    assert isinstance(ended, Ended)
    assert (ended.outcome, ended.reason, ended.verdict) == ("interrupted", module.KILLED, "")
    desk.tick(T0 + 76)
    assert not desk.starts


def test_a_run_of_an_earlier_life_that_had_come_to_its_verdict_has_run() -> None:
    before = Desk(plan(MINUTELY))
    before.tick(T0 + 60)
    desk = Desk(plan(MINUTELY), again(before.records), T0 + 70)
    desk.end(T0 + 75, verdict="fail")
    ended = desk.records[-1]
    assert isinstance(ended, Ended)
    assert (ended.outcome, ended.verdict, ended.quarantine) == ("ran", "fail", True)


def test_a_failure_stops_the_entry_until_that_very_failure_is_acknowledged() -> None:
    desk = Desk(plan(MINUTELY))
    desk.tick(T0 + 60)
    desk.end(T0 + 70, "fail")
    desk.tick(T0 + 120)
    desk.tick(T0 + 180)
    assert [each.reason.split(":")[0] for each in desk.missed()] == ["quarantined", "quarantined"]
    assert desk.machine.acknowledge("a", T0, T0 + 181) == [], "another failure's"
    desk.take(desk.machine.acknowledge("a", T0 + 60, T0 + 190))
    desk.tick(T0 + 240)
    assert [start.slot_s - T0 for start in desk.starts] == [60, 240]


def test_an_entry_may_do_without_quarantine() -> None:
    desk = Desk(plan(MINUTELY, quarantine=False))
    for minute in (1, 2):
        desk.tick(T0 + 60 * minute)
        desk.end(T0 + 60 * minute + 5, "fail")
    assert len(desk.starts) == 2


def test_a_run_past_its_deadline_is_told_to_end_once_and_that_is_news() -> None:
    desk = Desk(plan(MINUTELY, deadline_s=30.0))
    desk.tick(T0 + 60, mono_s=0.0)
    desk.tick(T0 + 4_000, mono_s=29.0)
    assert not desk.others, "only the clock was set forward"
    desk.tick(T0 + 4_001, mono_s=30.0)
    desk.tick(T0 + 4_002, mono_s=31.0)
    assert desk.others == [End("deadline: not over after 30 s")]
    desk.end(T0 + 4_003, "crashed", complete=False)
    assert [(change.verdict, change.before) for change in desk.machine._state.changes] == [("deadline", "")]


def test_nothing_begins_in_a_blackout_and_what_runs_is_ended_by_it() -> None:
    # T0 is 2027-01-15 08:00 UTC, a Friday.
    window = Blackout(why="office hours", begin="08:02", end="08:04", days=("fri",))
    desk = Desk(plan(MINUTELY, blackouts=(window,)))
    desk.tick(T0 + 60)
    desk.tick(T0 + 120)
    desk.tick(T0 + 121)
    assert desk.others == [End("a blackout began: office hours")]
    desk.end(T0 + 122, "crashed", complete=False)
    ended = desk.machine._state.entries["a"].recent[-1]
    assert isinstance(ended, Ended)
    assert ended.verdict == "", "it says nothing about what was tested"
    for minute in (3, 4):
        desk.tick(T0 + 60 * minute)
    assert [each.reason for each in desk.missed()] == ["blackout: office hours"] * 2
    assert [start.slot_s - T0 for start in desk.starts] == [60, 240]


def test_jitter_is_the_same_after_a_restart_and_never_pushes_a_slot_into_the_next() -> None:
    of = plan(MINUTELY, jitter_s=3_600.0)
    first = [due for due, _ in zip(Desk(of).machine.slots("a", T0), range(50), strict=False)]
    second = [due for due, _ in zip(Desk(of).machine.slots("a", T0), range(50), strict=False)]
    assert first == second
    assert all(due.slot_s <= due.due_s < due.slot_s + 30 and due.until_s <= due.slot_s + 60 for due in first)
    assert len({due.due_s - due.slot_s for due in first}) > 40


def test_only_changes_are_told_and_the_first_pass_is_none() -> None:
    desk = Desk(plan(MINUTELY, quarantine=False))
    told = []
    for minute, verdict in enumerate(("pass", "pass", "fail", "fail", "invalid", "pass"), 1):
        desk.tick(T0 + 60 * minute)
        desk.end(T0 + 60 * minute + 5, verdict)
        for command in desk.tick(T0 + 60 * minute + 6):
            if isinstance(command, Tell):
                told.append((command.change.before, command.change.verdict))
                desk.take(desk.machine.told(command.change, "", T0, T0))
    assert told == [("pass", "fail"), ("fail", "invalid"), ("invalid", "pass")]


def test_what_cannot_be_told_is_tried_again_ever_more_rarely_and_given_up_after_days() -> None:
    desk = Desk(plan("0 0 1 1 *", quarantine=False))
    state = desk.machine._state
    state.changes.append(
        Change(entry="a", slot_s=T0, at_s=T0, verdict="fail", before="", reason="", results="", quarantined=False)
    )
    tries = []
    mono_s = 0.0
    while state.changes:
        for command in desk.tick(T0 + mono_s, mono_s):
            if isinstance(command, Tell):
                tries.append(mono_s)
                desk.take(desk.machine.told(command.change, "no answer", T0 + mono_s, mono_s))
        mono_s += 5.0
    gaps = [after - before for before, after in pairwise(tries)]
    assert gaps[:4] == [5.0, 10.0, 20.0, 40.0]
    assert max(gaps) == module.TELL_MAX_S
    assert tries[-1] == pytest.approx(module.TELL_FOR_S, abs=module.TELL_MAX_S)
    assert [told.problem for told in state.undelivered] == ["no answer"]


def test_a_changed_line_of_the_file_counts_from_now_and_the_old_one_is_accounted_for() -> None:
    before = Desk(plan(MINUTELY, MINUTELY))
    desk = Desk(plan("0 * * * *"), again(before.records), T0 + 600)
    assert [(each.entry, each.slots) for each in desk.missed()] == [("a", 10), ("b", 10)]
    desk.tick(T0 + 601)
    assert len(desk.missed()) == 2
    assert again([*before.records, *desk.records]).entries["b"].open is False


def test_records_that_contradict_each_other_are_refused() -> None:
    desk = Desk(plan(MINUTELY))
    desk.tick(T0 + 60)
    with pytest.raises(JournalDamaged, match="twice"):
        again([*desk.records, desk.records[-1]])
    ended = Ended(entry="a", slot_s=T0 + 120, at_s=T0, outcome="ran", verdict="pass", reason="", results="")
    with pytest.raises(JournalDamaged, match="not started"):
        again([*desk.records, ended])


ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe")
# Around the ends of summer time in Berlin and New York, and its begin.
BEGINS = (1_792_879_200, 1_793_491_200, 1_774_742_400, T0)


class Scheduling(RuleBasedStateMachine):
    """The shell as it may go wrong: killed between any two commands, on a clock that jumps, with runs of any length.

    A kill takes the machine and what it has not written yet; the run dies with it, or had just come to its end.
    """

    @initialize(
        zone=st.sampled_from(ZONES),
        begins=st.sampled_from(BEGINS),
        crons=st.lists(
            st.sampled_from((MINUTELY, "*/7 * * * *", "30 2 * * *", "*/20 1-3 * * *", "0 0,2,3 * * *")),
            min_size=1, max_size=3,
        ),
        jitter_s=st.sampled_from((0.0, 20.0, 900.0)),
        within_s=st.sampled_from((30.0, 600.0, 7_200.0)),
        quarantine=st.booleans(),
    )  # fmt: skip
    def open(
        self, zone: str, begins: int, crons: list[str], jitter_s: float, within_s: float, quarantine: bool
    ) -> None:
        self.plan = plan(
            *crons, timezone=zone, jitter_s=jitter_s, start_within_s=within_s, deadline_s=900.0, quarantine=quarantine
        )
        self.now_s, self.mono_s = float(begins), 0.0
        self.records: list[Record] = []
        self.process: Start | None = None
        self.started: list[tuple[str, int]] = []
        self.told: list[str] = []
        self.telling: Change | None = None
        self.restart()

    def restart(self) -> None:
        self.telling = None
        self.machine = Machine(self.plan, again(self.records))
        self.obey(self.machine.begin(self.now_s), None)

    def obey(self, commands: list[Command], killed_after: int | None) -> bool:
        """Do them, but only so many when it is killed there; whether it lives."""
        for place, command in enumerate(commands):
            if killed_after is not None and place >= killed_after:
                return False
            match command:
                case Write(record):
                    self.records.append(record)
                case Start():
                    assert self.process is None, "two runs at once"
                    self.process = command
                    self.started.append((command.entry, command.slot_s))
                case Tell(change):
                    assert self.telling is None
                    self.telling = change
                case End() | Tidy():
                    pass
        return True

    def step(self, commands: list[Command], killed_after: int | None) -> None:
        if not self.obey(commands, killed_after):
            self.process = None
            self.restart()

    kills = st.sampled_from((None, None, None, 0, 1, 1, 2))

    @rule(seconds=st.sampled_from((0.5, 1.0, 20.0, 61.0, 600.0, 3_700.0, 90_000.0)), killed=kills)
    def time_passes(self, seconds: float, killed: int | None) -> None:
        self.now_s += seconds
        self.mono_s += seconds
        self.step(self.machine.tick(self.now_s, self.mono_s), killed)

    @rule(killed=kills)
    def a_minute_passes(self, killed: int | None) -> None:
        self.time_passes(61.0, killed)

    @rule(seconds=st.sampled_from((-90_000.0, -3_600.0, -61.0, -1.0, 61.0, 3_600.0, 90_000.0)))
    def clock_jumps(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(
        verdict=st.sampled_from(("pass", "pass", "fail", "inconclusive", "crashed")),
        killed=kills,
    )
    def the_run_ends(self, verdict: str, killed: int | None) -> None:
        running = self.machine._state.running
        if not running:
            return
        # Of an earlier life: nothing runs, and its results say what came of it.
        complete = verdict != "crashed"
        self.process = None
        self.step(self.machine.ended(Finish(complete, verdict, "why", "x"), self.now_s), killed)

    @rule(arrived=st.booleans())
    def told_or_not(self, arrived: bool) -> None:
        change = self.telling
        if change is None:
            return
        self.telling = None
        if arrived:
            self.told.append(change.id)
        problem = "" if arrived else "no answer"
        self.step(self.machine.told(change, problem, self.now_s, self.mono_s), None)

    @rule(killed=st.integers(0, 1))
    def killed_in_its_sleep(self, killed: int) -> None:
        self.process = None
        self.restart()

    @rule(name=st.sampled_from("abc"))
    def somebody_acknowledges(self, name: str) -> None:
        state = self.machine._state.entries.get(name)
        if state is not None and state.quarantined_s is not None:
            self.step(self.machine.acknowledge(name, state.quarantined_s, self.now_s), None)

    @invariant()
    def no_slot_is_started_twice(self) -> None:
        started = getattr(self, "started", [])
        assert len(started) == len(set(started))
        written = [(each.entry, each.slot_s) for each in getattr(self, "records", []) if isinstance(each, Started)]
        assert len(written) == len(set(written))
        assert set(started) <= set(written), "started without having been written down"

    @invariant()
    def what_is_on_disk_is_what_is_in_memory(self) -> None:
        if hasattr(self, "machine"):
            assert again(self.records) == self.machine._state

    def teardown(self) -> None:
        if not hasattr(self, "machine"):
            return
        if self.machine._state.running:
            self.obey(self.machine.ended(Finish(False, "crashed", "", ""), self.now_s), None)
        for name in self.plan.entries:
            assert not unaccounted(self.records, name, self.plan.cron_of(name))
        due = changes(self.records)
        assert set(self.told) <= set(due), "told what was no change"
        given_up = [f"{each.entry}@{each.slot_s}" for each in self.records if isinstance(each, Told)]
        waiting = [change.id for change in self.machine._state.changes]
        assert sorted(due) == sorted({*given_up, *waiting}), "a change is neither told nor waits"


Scheduling.TestCase.settings = settings(
    max_examples=20, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestScheduling = pytest.mark.simulated(Scheduling.TestCase)


def test_an_account_with_a_slot_twice_or_without_a_fate_is_seen() -> None:
    desk = Desk(plan(MINUTELY))
    for minute in (1, 2, 3):
        desk.tick(T0 + 60 * minute)
        desk.end(T0 + 60 * minute + 5)
    cron = Cron(MINUTELY, "UTC")
    assert not unaccounted(desk.records, "a", cron)
    second = [record for record in desk.records if isinstance(record, Ended)][1]
    without = [record for record in desk.records if record is not second]
    assert unaccounted(without, "a", cron) == [f"a@{T0 + 120}: nothing"]
    assert unaccounted([*desk.records, second], "a", cron)
    starts = [record for record in desk.records if isinstance(record, Started)]
    assert "started 2 times" in unaccounted([*desk.records, starts[0]], "a", cron)[0]
