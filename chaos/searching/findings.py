"""What searches have found: one folder, an experiment file for each finding, and a list that is kept up to date."""

from collections.abc import Iterator
from enum import StrEnum
from itertools import count
from pathlib import Path

import msgspec
import yaml

from analysis.whole_file import write_whole
from chaos.searching.breach import CRASH
from chaos.searching.classes import label, told
from chaos.searching.hunt import Prey, Signature
from chaos.searching.oracle import Judged

LIST = "findings.json"


class State(StrEnum):
    """new: found by this search. known: found before, and still so. fixed: not so any more. regressed: so again."""

    NEW = "new"
    KNOWN = "known"
    FIXED = "fixed"
    REGRESSED = "regressed"

    @property
    def stands(self) -> bool:
        """Whether the plan breaks something now."""
        return self is not State.FIXED


class Finding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A plan that breaks something. file: the experiment, beside the list; it is run with `seed`.

    signature: its class, or what else tells it from others. kinds: of its faults, sorted. faults: how many it needs.
    found_after: plans of that search up to the one that showed it. plays: what it took to make it as small as it is.
    digest: of the rows of its run, see chaos.searching.oracle.
    """

    file: str
    seed: int
    policy: str
    signature: Signature
    kinds: tuple[str, ...]
    faults: int
    what: str
    found_after: int
    plays: int
    digest: str
    state: State


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
            raise FindingsError(f"{self._list}: expected a list of findings of this version: {error}") from error

    def path(self, finding: Finding) -> Path:
        """Its experiment file."""
        return self._folder / finding.file

    def of(self, policy: str) -> list[Finding]:
        """Those of a policy."""
        return [finding for finding in self.known if finding.policy == policy]

    def add(self, prey: Prey, policy: str, found_after: int) -> Finding:
        """Keep a finding, with its experiment as a file that `chaos.run` takes."""
        plan, number = prey.plan, prey.signature.number
        shown = label(number) if number is not None else f"{label(None)}_{prey.signature.by.replace(' ', '_')}"
        stem = f"found_{policy}_{shown}"[:58]
        taken = {finding.file for finding in self.known}
        name = next(name for name in _names(stem) if f"{name}.yaml" not in taken)
        finding = Finding(
            file=f"{name}.yaml",
            seed=plan.seed,
            policy=policy,
            signature=prey.signature,
            kinds=plan.kinds,
            faults=len(plan.experiment.faults),
            what=prey.breach.what,
            found_after=found_after,
            plays=prey.plays,
            digest=prey.digest,
            state=State.NEW,
        )
        whole = msgspec.structs.replace(plan.experiment, name=name, robustness=() if number is None else (number,))
        head = f"# {told(number)}\n# {_one_line(prey.breach.what)}\n# --world simulated --seed {plan.seed}\n"
        self._write(finding.file, head + yaml.safe_dump(msgspec.to_builtins(whole), sort_keys=False))
        self.known.append(finding)
        self._save()
        return finding

    def retried(self, finding: Finding, judged: Judged) -> Finding:
        """What has become of a finding of an earlier search, by what its plan has shown now."""
        broken = any(
            # A plan that makes our own code raise is not mended, whatever it broke before.
            breach.by == CRASH or finding.signature.is_like(Signature.of(breach))
            for breach in judged.breaches
        )
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


def _names(stem: str) -> Iterator[str]:
    yield stem
    for number in count(2):
        yield f"{stem}_{number}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
