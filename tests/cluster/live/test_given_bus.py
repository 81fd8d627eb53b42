"""A NATS server that runs already: where each node reaches it, and what is wrong with an option."""

import pytest

from cluster.live.given_bus import GivenBus, given_bus
from cluster.serve import main


def test_each_node_goes_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_LOGIN", "ops:a b@c")
    bus = given_bus("nats://10.0.0.5", "NATS_LOGIN", ["worker-0=127.0.0.1:5222", "gateway=[::1]:5223"])
    assert bus is not None
    assert bus.url("worker-1") == "nats://ops:a%20b%40c@10.0.0.5:4222"
    assert bus.url("worker-0") == "nats://ops:a%20b%40c@127.0.0.1:5222"
    assert bus.url("gateway") == "nats://ops:a%20b%40c@[::1]:5223"


def test_without_credentials_and_with_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    assert given_bus("nats://[::1]:9", None, []) == GivenBus("[::1]:9")
    assert GivenBus("h:1").url("x") == "nats://h:1"
    assert GivenBus("h:1", "token").url("x") == "nats://token@h:1"
    assert given_bus(None, None, []) is None


@pytest.mark.parametrize(
    ("url", "variable", "links", "said"),
    [
        (None, None, ["a=b:1"], "only with --nats-url"),
        (None, "X", [], "only with --nats-url"),
        ("http://h:1", None, [], "expected nats://host:port"),
        ("nats://h:x", None, [], "--nats-url nats://h:x"),
        ("nats://u:p@h:1", None, [], "holds credentials"),
        ("nats://h:1", "NOT_SET", [], "NOT_SET: this environment variable is not set"),
        ("nats://h:1", None, ["worker-0"], "expected NODE=HOST:PORT"),
        ("nats://h:1", None, ["worker-0=h"], "expected NODE=HOST:PORT"),
        ("nats://h:1", None, ["worker-0=h:99999"], "expected NODE=HOST:PORT"),
    ],
)
def test_mistakes(url: str | None, variable: str | None, links: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", "\\(")):
        given_bus(url, variable, links)


def test_the_command_says_it_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nats-url", "nats://127.0.0.1:9", "--link", "worker-7=h:1"]) == 2
    assert (
        capsys.readouterr().err == "cluster.serve: --link: no node worker-7; there is controller-0, worker-0, gateway\n"
    )
