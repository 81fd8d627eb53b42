"""In place of chaos.run, where only the scheduler is tested: a verdict at once, by the minute that is its seed."""

import json
import os
import sys
import time

VERDICTS = ("pass", "pass", "fail", "fail", "pass", "inconclusive", "pass", "pass", "fail", "pass")
CODES = {"pass": 0, "fail": 1, "inconclusive": 3}


def main(arguments: list[str]) -> int:
    out, seed = (arguments[arguments.index(option) + 1] for option in ("--out", "--seed"))
    verdict = VERDICTS[int(seed) // 60 % len(VERDICTS)]
    name = f"20270115T080000-{arguments[0]}-simulated-{int(seed) % 10_000:04x}"
    folder = os.path.join(out, name)
    os.mkdir(folder)
    with open(os.path.join(out, "started"), "a") as started:
        started.write("once\n")
    time.sleep(0.05)
    told = {
        "verdict": verdict, "experiment": arguments[0], "world": "simulated", "seed": int(seed), "complete": True,
        "reasons": [f"it is a {verdict}"], "counts": {}, "criteria": [], "invariants": [], "faults": [],
    }  # fmt: skip
    info = {
        "run_id": name, "experiment": arguments[0], "world": "simulated", "seed": int(seed), "complete": True,
        "ended_by": "the last phase", "invariants": [],
    }  # fmt: skip
    for file, content in (("run.json", info), ("verdict.json", told)):
        with open(os.path.join(folder, file), "w") as opened:
            json.dump(content, opened)
    os.symlink(name, os.path.join(out, "latest"))
    return CODES[verdict]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
