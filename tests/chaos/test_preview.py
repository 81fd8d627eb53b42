"""A look at a load before it is run."""

import pytest

from chaos.preview import describe, main, reused_share
from workloads.request import ScheduledRequest


def request(number: int, time_s: float, *prompt: int) -> ScheduledRequest:
    return ScheduledRequest(f"r{number}", time_s, f"s{number}", 0, f"p{number}", prompt, 3)


def test_reused_tokens_are_those_of_the_longest_earlier_beginning() -> None:
    schedule = [
        request(0, 0.0, 1, 2, 3, 4),
        request(1, 1.0, 1, 2, 9, 9),
        request(2, 2.0, 1, 2, 9, 5),
        request(3, 3.0, 2, 3, 4),
        request(4, 9.5, 1, 2),
    ]
    assert reused_share(schedule) == pytest.approx((2 + 3 + 0 + 2) / 17)
    lines = describe(schedule, 10)
    assert lines[0] == "5 requests in 5 sessions over 10 s"
    assert "2 to 4 tokens, median 4, 17 tokens together" in lines[2]
    assert lines[4].endswith("41% of the prompt tokens begin an earlier prompt too")
    assert describe([], 10) == ["no requests"]


def test_the_command_shows_a_ramp_and_refuses_what_a_run_would_refuse(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["network_partition", "--set", "workload.ramp=[0, 2]", "--capacity", "100"]) == 0
    shown = capsys.readouterr().out
    assert "35.0 requests/s (35%), 35% of the assumed capacity" in shown
    bars = shown.partition("|")[2].partition("|")[0]
    assert len(bars) == 60
    assert bars[0] in " ▁"
    assert "█" in bars[40:]
    assert main(["network_partition", "--set", "workload.ramp=[1]"]) == 2
    assert "workload.ramp: expected array of length 2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["network_partition", "--capacity", "0"])
    assert "--capacity: expected a number, more than 0" in capsys.readouterr().err
