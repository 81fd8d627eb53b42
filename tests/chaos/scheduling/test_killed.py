"""A whole scheduler in its process, at many times the speed, killed -9 in the middle."""

from pathlib import Path

import pytest

from chaos.scheduling.records import Ended
from tests.chaos.scheduling import stub_run
from tests.chaos.scheduling.killed import MINUTES, Ten, webhook
from tests.chaos.scheduling.plans import changes
from tests.schedule_cases import running

SCHEDULE = """
name: ten
results: {results}
notify: {{webhook_env: TEST_WEBHOOK}}
entries:
  one: {{experiment: network_partition, cron: "* * * * *", world: simulated, seed: slot, quarantine: false}}
  two: {{experiment: slow_network, cron: "* * * * *", world: simulated, seed: slot, quarantine: false}}
"""


@pytest.mark.verify
def test_ten_minutes_with_a_kill_in_the_middle_are_accounted_for_slot_by_slot(tmp_path: Path) -> None:
    (tmp_path / "schedule.yaml").write_text(SCHEDULE.format(results=tmp_path / "results"))
    with webhook() as hook:
        ten = Ten(tmp_path, 150.0, stub_run.__file__, hook.url)
        try:
            ten.start()
            # Killed while a run goes on, whatever the machine's speed.
            assert ten.until(lambda: ten.minute() > MINUTES / 2 and running(ten), 120), ten.lines
            ten.kill()
            alive_before = running(ten)
            ten.start()
            assert ten.until(lambda: ten.minute() > MINUTES + 1 and not running(ten), 120), ten.lines
            assert ten.until(lambda: len(hook.posted) >= len(changes(ten.records())), 10), ten.lines
            assert ten.stop() == 0, ten.lines
            assert not ten.problems(hook.posted), ten.lines
            assert alive_before, "the kill hit no run, so it proved nothing"
            ends = [each for each in ten.records() if isinstance(each, Ended)]
            assert sum(each.outcome == "ran" for each in ends) >= 2, ten.figures()
            assert changes(ten.records())
        finally:
            ten.family.end()
    assert not ten.family.alive()
