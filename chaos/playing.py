"""Runs of a suite: each experiment is played in a process of its own, and not again where it has its verdict."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import yaml

from analysis.history import UnreadableError
from analysis.judge import read_verdict
from chaos.experiment import catalogue
from chaos.robustness import shown_by

INTERRUPTED = "interrupted"
_INTERRUPTED_CODE = 130
NO_VERDICT = {2: "usage", 5: "infrastructure", _INTERRUPTED_CODE: INTERRUPTED}
"""What there is instead of a verdict, by exit code of the run."""


class Play(msgspec.Struct, frozen=True):
    """What is to be run. settings, profile: as for chaos.run. label: tells its folder from others."""

    experiment: str
    policy: str
    world: str
    seed: int
    settings: tuple[str, ...] = ()
    profile: str = ""
    label: str = ""


class Line(msgspec.Struct, frozen=True):
    """A play and what came of it. verdict: of the run, or why there is none. results: its folder, below the suite's.

    robustness: the failures of chaos.robustness that the experiment asks about; shown: those that its verdict shows.
    """

    experiment: str
    policy: str
    world: str
    seed: int
    verdict: str
    reason: str
    robustness: tuple[int, ...]
    results: str
    shown: tuple[int, ...] = ()

    @property
    def has_verdict(self) -> bool:
        """Whether the run came to one."""
        return self.verdict not in NO_VERDICT.values()


def play(what: Play, out: Path) -> Line:
    """Run it below `out`, unless it has its verdict there."""
    parts = (what.experiment, Path(what.policy).stem, *filter(None, (what.label,)), what.world, str(what.seed))
    folder = out / ".".join(parts)
    found = _line(what, out, folder, 0)
    if found is not None:
        return found
    command = [sys.executable, "-m", "chaos.run", what.experiment, "--policy", what.policy, "--world", what.world]
    command += ["--seed", str(what.seed), "--out", str(folder)]
    if what.profile:
        command += ["--profile", what.profile]
    for setting in what.settings:
        command += ["--set", setting]
    print(f"{what.experiment} under {what.policy}{what.label and f' with {what.label}'}: running", flush=True)
    code = run_to_its_end(command)
    return _line(what, out, folder, code) or _missing(what, folder, code)


def run_to_its_end(command: Sequence[str]) -> int:
    """The exit code of a program, 130 when somebody asked for the end meanwhile; it is told then, and waited for.

    subprocess.run would kill it a quarter of a second later, in the midst of its healing.
    """
    interrupted = False
    with subprocess.Popen(command) as process:
        while True:
            try:
                code = process.wait()
                return _INTERRUPTED_CODE if interrupted else code
            except KeyboardInterrupt:
                if not interrupted:
                    process.send_signal(signal.SIGINT)
                interrupted = True


def profile_of(experiment: str, model: str) -> str:
    """The experiment's own profile for a model, empty when it has none: then its limits hold for that model too."""
    profiles: dict[str, dict[str, dict[str, object]]] = (
        yaml.safe_load(catalogue()[experiment].read_text()).get("profiles") or {}
    )
    return next((name for name, over in profiles.items() if (over.get("cluster") or {}).get("model") == model), "")


def _line(what: Play, out: Path, folder: Path, code: int) -> Line | None:
    """From the run's verdict, None when there is none, or when it was interrupted."""
    if code in NO_VERDICT:
        return None
    try:
        verdict = read_verdict(folder / "latest")
    except UnreadableError:
        return None
    if not verdict.complete and code == 0:
        return None
    reason = verdict.reasons[0] if verdict.reasons else ""
    where = str((folder / "latest").resolve().relative_to(out.resolve()))
    return msgspec.structs.replace(_made(what, verdict.verdict.value, reason, where), shown=shown_by(verdict))


def _missing(what: Play, folder: Path, code: int) -> Line:
    return _made(what, NO_VERDICT.get(code, f"exit code {code}"), "no verdict; see the output above", folder.name)


def _made(what: Play, verdict: str, reason: str, results: str) -> Line:
    classes = tuple(yaml.safe_load(catalogue()[what.experiment].read_text()).get("robustness", ()))
    return Line(what.experiment, what.policy, what.world, what.seed, verdict, reason, classes, results)
