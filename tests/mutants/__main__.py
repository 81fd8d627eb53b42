"""`python -m tests.mutants [--only NAME ...] [--list] [--seeds N]`: is every planted bug caught, and nothing else?"""

import argparse
import sys
import time
from collections.abc import Sequence

from analysis.verdict import Outcome
from tests.mutants.canary import canaries
from tests.mutants.plants import MUTANTS
from tests.mutants.play import Caught, hunt, play, refuted_by
from tests.mutants.scenarios import SCENARIOS

_BY_MAX = 110


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when all mutants are caught, the sound cluster passes the same runs, and the canaries fail."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these mutants")
    parser.add_argument("--list", action="store_true", help="list the mutants, one line each")
    parser.add_argument("--seeds", type=int, metavar="N", help="play the unmutated code with N seeds, and no mutant")
    options = parser.parse_args(arguments)
    if options.seeds is not None:
        return _quiet_seeds(options.seeds)
    unknown = sorted(set(options.only or ()) - MUTANTS.keys())
    if unknown:
        parser.error(f"no mutant named {', '.join(unknown)} (--list names all)")
    chosen = [mutant for name, mutant in MUTANTS.items() if not options.only or name in options.only]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name:34} {mutant.what} [{', '.join(mutant.scenarios)}]")
        return 0
    began_s = time.monotonic()
    used = dict.fromkeys(scenario for mutant in chosen for scenario in mutant.scenarios)
    sound = [_sound(scenario) for scenario in used]
    found = [_hunted(hunt(mutant)) for mutant in chosen]
    quiet = [_canary(name, problem) for name, problem in canaries()]
    caught = sum(each.fine for each in found)
    print(
        f"{caught} of {len(found)} mutants caught; the unmutated code passes {sum(sound)} of {len(sound)} runs; "
        f"{sum(quiet)} of {len(quiet)} canaries as they should be; {time.monotonic() - began_s:.0f} s"
    )
    return 0 if caught == len(found) and all(sound) and all(quiet) else 1


def _quiet_seeds(count: int) -> int:
    """Each seed plays one scenario, in turn; 0 when nothing in the unmutated code was called a bug."""
    names = list(SCENARIOS)
    flagged = 0
    for seed in range(1, count + 1):
        scenario = names[seed % len(names)]
        verdict = play(scenario, seed=seed).verdict
        if by := refuted_by(verdict):
            flagged += 1
            print(f"FLAGGED {scenario}, seed {seed}: {by}", flush=True)
    print(f"{flagged} of {count} seeds of the unmutated code flagged")
    return 1 if flagged else 0


def _sound(scenario: str) -> bool:
    played = play(scenario)
    passed = played.verdict.verdict is Outcome.PASS
    said = "pass" if passed else f"{played.verdict.verdict}: {'; '.join(played.verdict.reasons[:3])}"
    print(f"without a mutant: {scenario:24} {said} ({played.seconds:.1f} s)", flush=True)
    return passed


def _hunted(caught: Caught) -> Caught:
    how = f"{caught.scenario} | {caught.by[:_BY_MAX]}" if caught.by else f"SURVIVED {caught.scenario}"
    how = f"ERROR {caught.problem}" if caught.problem else how
    print(f"{caught.mutant.name:34} | {caught.mutant.what} | {how} | {caught.seconds:.1f} s", flush=True)
    return caught


def _canary(name: str, problem: str) -> bool:
    print(f"canary {name}: {problem or 'as it should be'}", flush=True)
    return not problem


if __name__ == "__main__":
    sys.exit(main())
