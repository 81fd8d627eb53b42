"""`python -m tests.determinism [--seeds N]`: does a seed give the same rows, whichever process plays it?

Each seed is a simulated run: experiments of the catalogue take turns, and every fourth run is a random plan of a
search. It is played in two new processes with different PYTHONHASHSEED and in a task of a Ray cluster, which plays many
in one process. The digests of all files of rows must be equal, and no two seeds may have the same.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hypothesis
import msgspec
import pyarrow as pa
from hypothesis import HealthCheck, Phase, Verbosity, given, settings

from chaos.digest import file_digests
from chaos.experiment import Experiment, find
from chaos.resolve import load
from chaos.results import ResultsDirectory
from chaos.run import prepare_ray
from chaos.searching.plans import Plan, plans
from chaos.session import play_simulated
from tests.chaos.simulated_runs import Quiet
from tests.processes import ROOT

# Those that take two seconds or three, with every kind of trouble among them.
TURNS: tuple[str, ...] = (
    *("network_partition", "message_loss", "broker_restart", "worker_failure", "controller_restart", "slow_network"),
    *("frozen_worker", "memory_pressure", "rolling_restart", "sticky_sessions", "flapping_link", "engine_death"),
    *("retry_storm", "slow_worker", "hot_session", "host_failure", "scalability"),
)
PLAN_EVERY = 4
_PLANS_DRAWN = 8
_HASH_SEEDS = ("1", "4242")
_PLAY_S_MAX = 600.0
_RAY_CPUS = 2
_PROBE = "what a dictionary of strings is ordered by"


class Told(msgspec.Struct, frozen=True):
    """What a play has left. files: digests of its rows. hashed: of a fixed text, by the process that played."""

    files: dict[str, str]
    rows: int
    hashed: int


Player = Callable[[Plan], Told]


def play(plan: Plan) -> Told:
    """In this process, through the real director, recorder and merge."""
    with tempfile.TemporaryDirectory(prefix="determinism-") as folder:
        results = ResultsDirectory(Path(folder), plan.experiment, "simulated", plan.seed)
        play_simulated(plan.experiment, plan.seed, results, Quiet())
        rows = sum(pa.ipc.open_stream(path).read_all().num_rows for path in results.raw.glob("*.arrow"))
        return Told(file_digests(results.raw), rows, hash(_PROBE))


def in_a_new_process(hash_seed: str) -> Player:
    """A player in a process of its own with this PYTHONHASHSEED."""

    def played(plan: Plan) -> Told:
        ended = subprocess.run(
            [sys.executable, "-m", "tests.determinism", "--play"],
            input=msgspec.json.encode(plan),
            capture_output=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            timeout=_PLAY_S_MAX,
            check=False,
        )
        if ended.returncode != 0:
            raise RuntimeError(f"it did not play: {ended.stderr.decode()[-1_000:]}")
        return msgspec.json.decode(ended.stdout.splitlines()[-1], type=Told)

    return played


def on_ray() -> Player:
    """A player in tasks of a Ray cluster of our own, which ends with us."""
    prepare_ray(None)
    import ray

    from cluster.live.actors import connect

    # By its module's name and not from the main program, of which Ray would send a copy.
    from tests.determinism import played_there

    connect(None, include_dashboard=False, _node_ip_address="127.0.0.1", num_cpus=_RAY_CPUS)
    path = ":".join([str(ROOT), *(part for part in sys.path if part)])
    task: Any = ray.remote(num_cpus=1, max_retries=0, runtime_env={"env_vars": {"PYTHONPATH": path}})(played_there)

    def played(plan: Plan) -> Told:
        told: bytes = ray.get(task.remote(msgspec.json.encode(plan)), timeout=_PLAY_S_MAX)
        return msgspec.json.decode(told, type=Told)

    return played


def played_there(plan: bytes) -> bytes:
    """`play` between processes."""
    return msgspec.json.encode(play(msgspec.json.decode(plan, type=Plan)))


def plan_of(seed: int, turns: Sequence[str] = TURNS) -> tuple[str, Plan]:
    """What a seed plays, and its name for people."""
    turn = seed - 1
    if turn % PLAN_EVERY == PLAN_EVERY - 1:
        plan = drawn(load(find("network_partition")), seed)
        return " + ".join(fault.kind for fault in plan.experiment.faults.values()), plan
    name = turns[(turn - turn // PLAN_EVERY) % len(turns)]
    return name, Plan(load(find(name)), seed)


def drawn(base: Experiment, seed: int) -> Plan:
    """A random plan of a search. Not the first: Hypothesis begins with the simplest there is."""
    found: list[Plan] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=_PLANS_DRAWN,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(plans(base))
    def draw(plan: Plan) -> None:
        found.append(plan)

    draw()
    return found[-1]


def differences(told: dict[str, Told]) -> list[str]:
    """What is not as it should be among the plays of one seed, by the name of each player."""
    problems = [f"{name}: no rows at all" for name, each in told.items() if not each.rows]
    first, *others = told.items()
    for name, each in others:
        files = sorted(first[1].files.keys() | each.files.keys())
        wrong = [file for file in files if first[1].files.get(file) != each.files.get(file)]
        if wrong:
            problems.append(f"{name} and {first[0]}: other rows in {', '.join(wrong[:3])} ({len(wrong)} files)")
    if len({each.hashed for each in told.values()}) < 2:
        problems.append("all of them hash alike, so they show nothing")
    return problems


def examine(seeds: Sequence[int], players: dict[str, Player], jobs: int) -> Iterator[tuple[str, int, list[str]]]:
    """For each seed its name, how many rows each play has left, and what is wrong."""
    seen: dict[str, str] = {}

    def one(seed: int) -> tuple[str, dict[str, Told]]:
        name, plan = plan_of(seed)
        return f"{seed} {name}", {player: playing(plan) for player, playing in players.items()}

    with ThreadPoolExecutor(jobs) as pool:
        for name, told in pool.map(one, seeds):
            problems = differences(told)
            digest = repr(next(iter(told.values())).files)
            if digest in seen:
                problems.append(f"the same rows as of {seen[digest]}")
            seen[digest] = name
            yield name, next(iter(told.values())).rows, problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when every seed gave the same rows everywhere."""
    parser = argparse.ArgumentParser(prog="python -m tests.determinism", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, metavar="N", help="how many (default 100)")
    parser.add_argument("--first-seed", type=int, default=1, metavar="N")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="seeds at once (default 1)")
    parser.add_argument("--play", action="store_true", help="play the plan on standard input, and say what it left")
    options = parser.parse_args(arguments)
    if options.play:
        print(played_there(sys.stdin.buffer.read()).decode())
        return 0
    began_s = time.monotonic()
    players = {f"PYTHONHASHSEED={hash_seed}": in_a_new_process(hash_seed) for hash_seed in _HASH_SEEDS}
    players["in a task of Ray"] = on_ray()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    rows_sum = wrong = 0
    for name, rows, problems in examine(seeds, players, options.jobs):
        rows_sum += rows
        wrong += bool(problems)
        print(f"seed {name}: {'; '.join(problems) or f'{rows} rows, the same'}", flush=True)
    print(
        f"{options.seeds - wrong} of {options.seeds} seeds gave identical digests in each of {len(players)} plays "
        f"({rows_sum} rows a play); {time.monotonic() - began_s:.0f} s"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
