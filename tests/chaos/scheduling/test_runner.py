"""What a slot's run came to, by its exit code and by what it left behind."""

import asyncio
import sys
from pathlib import Path

import pytest

from chaos.scheduling.journal import FOLDER
from chaos.scheduling.machine import Finish
from chaos.scheduling.plan import Entry, Plan
from chaos.scheduling.runner import Runner

BEGAN = """
import os, sys
import pyarrow as pa
import pyarrow.parquet as pq
out = sys.argv[sys.argv.index("--out") + 1]
os.mkdir(os.path.join(out, "run"))
pq.write_table(pa.table({"kind": KINDS}), os.path.join(out, "run", "events.parquet"))
os.symlink("run", os.path.join(out, "latest"))
print("chaos.run: it went wrong", file=sys.stderr)
sys.exit(5)
"""
REFUSED = 'import sys; print("chaos.run: x.yaml: no such file", file=sys.stderr); sys.exit(2)'


def finish(folder: Path, script: str) -> Finish:
    entry = Entry(experiment="network_partition", cron="* * * * *", world="simulated")
    plan = Plan(name="test", results=str(folder), entries={"one": entry})
    (folder / FOLDER).mkdir(parents=True)
    return asyncio.run(Runner(plan, (sys.executable, "-c", script)).run("one", 1_800_000_000))


def test_a_run_that_was_refused_has_not_started(tmp_path: Path) -> None:
    assert finish(tmp_path, REFUSED) == Finish(True, "usage", "x.yaml: no such file", "", started=False)


@pytest.mark.parametrize(("kinds", "started"), [("['node_started']", False), ("['phase_started']", True)])
def test_a_run_that_went_wrong_has_started_with_its_first_phase(tmp_path: Path, kinds: str, started: bool) -> None:
    got = finish(tmp_path, BEGAN.replace("KINDS", kinds))
    assert (got.complete, got.verdict, got.reason, got.started) == (True, "infrastructure", "it went wrong", started)
