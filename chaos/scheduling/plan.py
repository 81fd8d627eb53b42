"""The schedule file: what it may say, and how a wrong one is refused, wholly and before anything starts."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from chaos.experiment import ExperimentError, find
from chaos.resolve import load as load_experiment
from chaos.scheduling.calendar import Blackout, CalendarError, Cron, covering, zone
from cluster.numbers import demand_finite
from cluster.yaml_file import YamlError, read_yaml

ENTRIES_MAX = 100
DAY_S = 86_400
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$?\.?(?P<path>[^`]*)`)?$", re.DOTALL)

Span = Annotated[float, msgspec.Meta(ge=0, le=DAY_S)]
"""Seconds, a day at most."""


class ScheduleError(Exception):
    """The schedule file is wrong. The message is one line: which file, which field, what was expected."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Retention(_Section, frozen=True):
    """Which results of an entry stay: the newest `runs` of them, none older than `days`."""

    runs: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    days: Annotated[float, msgspec.Meta(gt=0)] = 90.0


class Notify(_Section, frozen=True):
    """Where changes of a verdict are posted: the URL itself, or the name of the variable that holds it."""

    webhook: str | None = None
    webhook_env: str | None = None


class Entry(_Section, frozen=True, rename={"settings": "set"}):
    """One experiment and when it is run. world to seed: as for chaos.run; seed `slot`: another one for each slot.

    jitter_s: each slot begins up to so much later, at most half the time to the next. start_within_s: a slot that
    cannot begin within so many seconds is missed. deadline_s: a run that takes longer is ended. quarantine: whether a
    `fail` stops the entry until somebody acknowledges it.
    """

    experiment: str
    cron: str
    timezone: str | None = None
    world: Literal["live", "simulated", "staging"] = "live"
    target: str | None = None
    address: str | None = None
    policy: str | None = None
    profile: str | None = None
    model: str | None = None
    settings: dict[str, Any] = {}
    seed: Annotated[int, msgspec.Meta(ge=0)] | Literal["slot"] = 1
    jitter_s: Span = 0.0
    start_within_s: Annotated[float, msgspec.Meta(ge=5, le=DAY_S)] = 600.0
    deadline_s: Annotated[float, msgspec.Meta(gt=0, le=DAY_S)] = 3600.0
    blackouts: tuple[Blackout, ...] = ()
    retention: Retention | None = None
    quarantine: bool = True
    enabled: bool = True

    def arguments(self, slot_s: int) -> list[str]:
        """Of chaos.run, but for where the results go."""
        words = [self.experiment, "--world", self.world, "--seed", str(slot_s if self.seed == "slot" else self.seed)]
        options = ("target", "address", "policy", "profile", "model")
        words += [word for name in options if (value := getattr(self, name)) for word in (f"--{name}", value)]
        return words + [word for setting in self.overrides() for word in ("--set", setting)]

    def overrides(self) -> list[str]:
        """`path=value` for --set."""
        written = {
            path: value if isinstance(value, str) else json.dumps(value) for path, value in self.settings.items()
        }
        return [f"{path}={value}" for path, value in written.items()]


class Plan(_Section, frozen=True):
    """A whole schedule. Relative paths are of the folder in which the scheduler is started, as for chaos.run."""

    name: str
    entries: dict[str, Entry]
    timezone: str = "UTC"
    results: str | None = None
    baselines: str = "baselines"
    retention: Retention = Retention()
    notify: Notify = Notify()
    blackouts: tuple[Blackout, ...] = ()

    @property
    def folder(self) -> Path:
        """Where all results go."""
        return Path(self.results or f"results/{self.name}")

    def timezone_of(self, name: str) -> str:
        """Of an entry."""
        return self.entries[name].timezone or self.timezone

    def cron_of(self, name: str) -> Cron:
        """Of an entry."""
        return Cron(self.entries[name].cron, self.timezone_of(name))

    def retention_of(self, name: str) -> Retention:
        """Of an entry."""
        return self.entries[name].retention or self.retention

    def blackout(self, name: str, unix_s: float) -> str:
        """Why the entry may not run at a time; empty when it may."""
        windows = (*self.blackouts, *self.entries[name].blackouts)
        return covering(windows, self.cron_of(name).local(unix_s)) if windows else ""

    def webhook(self) -> str | None:
        """The URL for notifications; None for none. Raises ScheduleError when the variable is not set, or no URL."""
        notify = self.notify
        if notify.webhook_env:
            url = os.environ.get(notify.webhook_env, "").strip()
            if not url:
                raise ScheduleError(f"notify.webhook_env: the environment has no {notify.webhook_env}")
        else:
            url = notify.webhook or ""
        if not url:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            # Not shown: whoever knows it can post there.
            raise ScheduleError("notify: expected the webhook to be an http or https URL")
        return url


def load(path: Path) -> Plan:
    """The schedule in a file, fully checked, with every experiment that it names. Raises ScheduleError."""
    try:
        document = read_yaml(path)
    except YamlError as error:
        raise ScheduleError(str(error)) from None
    if not isinstance(document, dict):
        raise ScheduleError(f"{path}: expected a mapping of fields, got {type(document).__name__}")
    try:
        plan = _convert(document)
        _check(plan)
    except ScheduleError as error:
        raise ScheduleError(f"{path}: {error}") from None
    return plan


def _convert(document: dict[str, Any]) -> Plan:
    whole = {"name": "schedule", **document}
    entries = whole.get("entries")
    if isinstance(entries, dict):
        for name in entries:
            if not isinstance(name, str):
                # YAML has made a number, or of `on` and `off` a truth, of what was meant as a name.
                raise ScheduleError(f"entries: expected names, got {name!r}; put it in quotes")
        whole["entries"] = {name: _typed(f"entries.{name}", value, Entry) for name, value in entries.items()}
    plan: Plan = _typed("", whole, Plan)
    return plan


def _typed(prefix: str, value: object, kind: type[Any]) -> Any:
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, CalendarError) as error:
        match = _AT.match(str(error))
        assert match is not None
        field = ".".join(part for part in (prefix, match["path"] or "") if part)
        raise ScheduleError(f"{field + ': ' if field else ''}{_line(match['what'])}") from None


def _check(plan: Plan) -> None:
    try:
        demand_finite(plan)
    except ValueError as error:
        raise ScheduleError(str(error)) from None
    for what, name in (("name", plan.name), *((f"entries.{name}", name) for name in plan.entries)):
        if _NAME.fullmatch(name) is None:
            raise ScheduleError(f"{what}: expected a name of letters, digits, _ and -, 64 at most, got {name[:80]!r}")
    if not 0 < len(plan.entries) <= ENTRIES_MAX:
        raise ScheduleError(f"entries: expected 1 to {ENTRIES_MAX}, got {len(plan.entries)}")
    if plan.notify.webhook and plan.notify.webhook_env:
        raise ScheduleError("notify: expected webhook or webhook_env, got both")
    _calendar("timezone", lambda: zone(plan.timezone))
    for name, entry in plan.entries.items():
        _calendar(f"entries.{name}.timezone", lambda name=name: zone(plan.timezone_of(name)))
        _calendar(f"entries.{name}.cron", lambda name=name: plan.cron_of(name))
        _check_entry(f"entries.{name}", entry)


def _check_entry(field: str, entry: Entry) -> None:
    if (entry.target is not None) != (entry.world == "staging"):
        raise ScheduleError(f"{field}.target: expected a target's file with world: staging, and with no other world")
    if entry.address is not None and entry.world != "live":
        raise ScheduleError(f"{field}.address: expected a Ray cluster's address with world: live, and with no other")
    if entry.target is not None and not Path(entry.target).is_file():
        raise ScheduleError(f"{field}.target: {entry.target}: no such file")
    overrides: Sequence[str] = entry.overrides()
    if entry.model is not None:
        overrides = [*overrides, f"cluster.model={entry.model}"]
    try:
        load_experiment(find(entry.experiment), overrides, entry.policy, entry.profile)
    except ExperimentError as error:
        raise ScheduleError(f"{field}.experiment: {_line(error)}") from None


def _calendar(field: str, make: Any) -> None:
    try:
        make()
    except CalendarError as error:
        raise ScheduleError(f"{field}: {error}") from None


def _line(error: object) -> str:
    return " ".join(str(error).split())[:400]
