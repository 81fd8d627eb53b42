from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chaos import client_limits
from chaos.client_limits import CLIENTS, LIMITS, busiest, limits_lines
from workloads.roofline import Roofline
from workloads.stub_process import StubFailed

ROOFLINE = Roofline(
    100.0, 64, 16, 0.9, 0.4, 200.0, 150, 0.002, 0.001, 0.004, 0.0, 0.001, 0.002, 0, 1.0, 2_000.0, "NATS"
)


def requests(folder: Path, sent_s: list[float], tokens: int = 10) -> None:
    columns = {"sent_s": sent_s, "ended_s": [time_s + 1 for time_s in sent_s], "token_count": [tokens] * len(sent_s)}
    pq.write_table(pa.table(columns), folder / "requests.parquet")


def test_the_busiest_seconds_are_set_beside_what_the_clients_can_do(tmp_path: Path) -> None:
    requests(tmp_path, [0.1 * i for i in range(50)] + [20.0 + 0.01 * i for i in range(500)])
    assert busiest(tmp_path) == pytest.approx((100.0, 1_000.0))
    lines = limits_lines({LIMITS: msgspec.to_builtins(ROOFLINE), CLIENTS: 2}, tmp_path)
    assert lines[-1] == ("  the run's busiest 5 s offered 100.0 requests/s over 2 clients: 50.0% of it")
    assert "NATS client roofline on this host: 100 requests/s or 2000 tokens/s at most" in lines[0]


def test_a_run_without_requests_offered_none(tmp_path: Path) -> None:
    requests(tmp_path, [])
    assert busiest(tmp_path) == (0.0, 0.0)


def test_what_could_not_be_measured_is_said_and_a_simulated_world_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Roofline:
        raise StubFailed("no nats-server")

    monkeypatch.setattr(client_limits, "nats_roofline", fail)
    told = client_limits.client_limits()
    assert limits_lines({LIMITS: told, CLIENTS: 1}, tmp_path) == [
        "the load clients' roofline was not measured: no nats-server"
    ]
    assert limits_lines({}, tmp_path) == []
