"""What searches have found: one folder, an experiment file for each finding, and a list that is kept up to date."""

from enum import StrEnum
from pathlib import Path

import msgspec
import yaml

from analysis.whole_file import write_whole
from chaos.searching.plans import Plan

LIST = "findings.json"


class State(StrEnum):
    """new: found by this search. known: found before, and still so. fixed: not so any more. regressed: so again."""

    NEW = "new"
    KNOWN = "known"
    FIXED = "fixed"
    REGRESSED = "regressed"

    @property
    def stands(self) -> bool:
        """Whether the plan breaks the invariant now."""
        return self is not State.FIXED


class Finding(msgspec.Struct, frozen=True):
    """A plan that breaks an invariant. file: the experiment, beside the list; it is run with `seed`.

    invariant: the lowest number that is broken; 0: our own code raised. kinds: of its faults, sorted. digest: of the
    rows of that run, see chaos.searching.oracle.
    """

    file: str
    seed: int
    policy: str
    invariant: int
    kinds: tuple[str, ...]
    what: str
    digest: str
    state: State

    @property
    def signature(self) -> tuple[str, int, tuple[str, ...]]:
        """What two findings of one cause have in common."""
        return self.policy, self.invariant, self.kinds


class FindingsError(Exception):
    """The folder cannot be read or written. One line."""


class Findings:
    """The findings of a folder. Raises FindingsError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._list = folder / LIST
        try:
            folder.mkdir(parents=True, exist_ok=True)
            whole = self._list.read_bytes() if self._list.exists() else b"[]"
            self.known = msgspec.json.decode(whole, type=list[Finding])
        except OSError as error:
            raise FindingsError(f"{folder}: {error.strerror}") from error
        except msgspec.DecodeError as error:
            raise FindingsError(f"{self._list}: expected a list of findings: {error}") from error

    def path(self, finding: Finding) -> Path:
        """Its experiment file."""
        return self._folder / finding.file

    def add(self, plan: Plan, policy: str, invariant: int, what: str, digest: str) -> Finding:
        """Keep a finding, with its experiment as a file that `chaos.run` takes."""
        name = f"found_{policy}_{invariant}_{'_'.join(plan.kinds)}"[:56]
        taken = {finding.file for finding in self.known}
        number = next(n for n in range(1, len(taken) + 2) if f"{name}_{n}.yaml" not in taken)
        finding = Finding(f"{name}_{number}.yaml", plan.seed, policy, invariant, plan.kinds, what, digest, State.NEW)
        whole = msgspec.to_builtins(msgspec.structs.replace(plan.experiment, name=f"{name}_{number}"))
        self._write(
            finding.file, f"# {what}\n# --world simulated --seed {plan.seed}\n{yaml.safe_dump(whole, sort_keys=False)}"
        )
        self.known.append(finding)
        self._save()
        return finding

    def retried(self, finding: Finding, broken: bool) -> Finding:
        """What has become of a finding of an earlier search."""
        was_fixed = finding.state is State.FIXED
        state = (State.REGRESSED if was_fixed else State.KNOWN) if broken else State.FIXED
        now = msgspec.structs.replace(finding, state=state)
        self.known[self.known.index(finding)] = now
        self._save()
        return now

    def _save(self) -> None:
        self._write(LIST, msgspec.json.format(msgspec.json.encode(self.known), indent=1).decode())

    def _write(self, name: str, text: str) -> None:
        try:
            write_whole(self._folder / name, text)
        except OSError as error:
            raise FindingsError(f"{self._folder / name}: {error.strerror}") from error
