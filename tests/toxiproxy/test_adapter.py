import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from chaos.toxiproxy.adapter import (
    Toxic,
    Toxiproxy,
    ToxiproxyError,
    ToxiproxyGone,
    ToxiproxyMalformed,
    ToxiproxyRefused,
    ToxiproxyTimeout,
    ToxiproxyUnsafe,
    ToxiproxyUnverified,
    check_toxic,
)
from tests.toxiproxy.stub_server import PROXY, Answer, OneProxy, body, stub_server

LATENCY = Toxic("slow", "latency", "upstream", {"latency": 200})
TIMEOUT_PAGE = b"<html><head><title>Timeout</title></head></html>"

CHANGES: dict[str, Callable[[Toxiproxy], object]] = {
    "create": lambda api: api.create_proxy("w", "127.0.0.1:0", "127.0.0.1:8"),
    "delete": lambda api: api.delete_proxy("w"),
    "disable": lambda api: api.set_enabled("w", False),
    "add": lambda api: api.add_toxic("w", LATENCY),
    "list": lambda api: api.proxies(),
    "version": lambda api: api.version(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize(
    ("status", "content", "says"),
    [
        (500, b'{"error": "listen tcp: bind: address already in use", "status": 500}\n', "address already in use"),
        (503, TIMEOUT_PAGE, "Timeout"),
        (403, b"User agent not allowed", "User agent"),
        (302, b"", "status 302"),
    ],
)
def test_any_error_status_raises_with_one_line(
    change: Callable[[Toxiproxy], object], status: int, content: bytes, says: str
) -> None:
    with stub_server(lambda method, path: (status, content)) as (url, _), pytest.raises(ToxiproxyRefused) as caught:
        change(Toxiproxy(url))
    assert caught.value.status == status
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("content", [b'{"name": "w", "li', b"[1]", b"\xff\xfe", b""])
def test_an_answer_of_another_shape_is_malformed(change: Callable[[Toxiproxy], object], content: bytes) -> None:
    with stub_server(lambda method, path: (200, content)) as (url, _), pytest.raises(ToxiproxyMalformed) as caught:
        change(Toxiproxy(url))
    assert "\n" not in str(caught.value)


def test_a_hanging_server_costs_the_deadline_and_no_later_change() -> None:
    released = threading.Event()

    def hang(method: str, path: str) -> Answer:
        released.wait(5)
        return 200, body({})

    with stub_server(hang) as (url, seen):
        started = time.monotonic()
        with pytest.raises(ToxiproxyTimeout, match=r"create proxy on proxy 'w': no answer within 0\.2 s"):
            Toxiproxy(url, deadline_s=0.2).create_proxy("w", "127.0.0.1:0", "127.0.0.1:8")
        assert time.monotonic() - started < 1
        released.set()
        time.sleep(0.2)
        # The package looks up before it creates; the creation itself must not follow after the deadline.
        assert seen == ["GET /proxies"]


def test_a_server_that_trickles_bytes_costs_the_deadline_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                for _ in range(20):
                    time.sleep(0.05)
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        started = time.monotonic()
        with pytest.raises(ToxiproxyTimeout):
            Toxiproxy(f"http://127.0.0.1:{listener.getsockname()[1]}", deadline_s=0.3).version()
        assert time.monotonic() - started < 0.8
        thread.join()


def test_nothing_listening_is_told_apart_from_other_failures() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ToxiproxyGone):
        Toxiproxy(f"http://127.0.0.1:{port}").version()


@pytest.mark.parametrize(
    "found",
    [
        [],
        [{"name": "slow", "type": "latency", "stream": "downstream", "toxicity": 1, "attributes": {"latency": 200}}],
        [{"name": "slow", "type": "latency", "stream": "upstream", "toxicity": 1, "attributes": {"latency": 20}}],
        [{"name": "slow", "type": "latency", "stream": "upstream", "toxicity": 0.5, "attributes": {"latency": 200}}],
        [
            {
                "name": "slow",
                "type": "latency",
                "stream": "upstream",
                "toxicity": 1,
                "attributes": {"latency": 200, "jitter": 9},
            }
        ],
    ],
)
def test_a_toxic_that_reads_back_differently_is_not_believed(found: list[dict[str, Any]]) -> None:
    with (
        stub_server(lambda method, path: (200, body(PROXY | {"toxics": found}))) as (url, _),
        pytest.raises(ToxiproxyUnverified, match="slow"),
    ):
        Toxiproxy(url).add_toxic("w", LATENCY)


def test_every_change_is_read_back() -> None:
    lying = {"name": "slow", "type": "latency", "stream": "upstream", "toxicity": 1.0, "attributes": {}}
    state = PROXY | {"toxics": [lying]}

    def unchanged(method: str, path: str) -> Answer:
        if path == "/proxies":
            return 200, body({} if method == "GET" else state)
        return 200, body(state)

    with stub_server(unchanged) as (url, _):
        api = Toxiproxy(url)
        for change in (
            lambda: api.set_enabled("w", False),
            lambda: api.remove_toxic("w", "slow"),
            lambda: api.delete_proxy("w"),
            lambda: api.create_proxy("w", "127.0.0.1:99", "127.0.0.1:8"),
            lambda: api.create_proxy("w", "127.0.0.1:0", "127.0.0.1:5"),
        ):
            with pytest.raises(ToxiproxyUnverified):
                change()


def test_what_is_missing_is_healed_already() -> None:
    missing = (404, b'{"error": "proxy not found", "status": 404}\n')
    with stub_server(lambda method, path: missing) as (url, _):
        api = Toxiproxy(url)
        assert api.remove_toxic("w", "slow") == "missing"
        api.delete_proxy("w")
        assert api.proxy("w") is None
        with pytest.raises(ToxiproxyRefused, match="proxy not found"):
            api.set_enabled("w", True)


def test_a_removal_that_blocks_is_finished_by_replacing_the_proxy() -> None:
    other = {"name": "other", "type": "noop", "stream": "downstream", "toxicity": 1.0, "attributes": {}}
    stuck = {"name": "stuck", "type": "bandwidth", "stream": "upstream", "toxicity": 1.0, "attributes": {"rate": 0}}
    toxics = [stuck, other]
    proxies = [PROXY]
    released = threading.Event()

    def answer(method: str, path: str) -> Answer:
        match method, path:
            case "DELETE", "/proxies/w/toxics/stuck":
                released.wait(5)
                return 204, b""
            case "DELETE", "/proxies/w":
                proxies.clear()
                toxics.clear()
                return 204, b""
            case "GET", "/proxies":
                return 200, body({proxy["name"]: proxy for proxy in proxies})
            case "POST", "/proxies":
                proxies.append(PROXY)
                return 201, body(PROXY)
            case "POST", "/proxies/w/toxics":
                toxics.append(other)
                return 200, body(other)
        return 200, body(PROXY | {"toxics": toxics})

    with stub_server(answer) as (url, seen):
        assert Toxiproxy(url, removal_s=0.2).remove_toxic("w", "stuck") == "replaced"
        assert toxics == [other]
        released.set()
        assert "POST /proxies/w/toxics" in seen


@pytest.mark.parametrize("enabled", [True, False])
def test_a_black_hole_goes_with_its_proxy_and_the_rest_of_the_proxy_comes_back(enabled: bool) -> None:
    common = {"toxicity": 1.0, "attributes": {"timeout": 0}, "type": "timeout"}
    holes = [{**common, "name": stream, "stream": stream} for stream in ("upstream", "downstream")]
    kept = {
        **{"name": "kept", "type": "nats_drop", "stream": "upstream", "toxicity": 0.5, "attributes": {}},
        **{"clients": ["n"], "ttl_ms": 9000, "remaining_ms": 4000, "counts": {"seen": 1}},
    }
    server = OneProxy([*holes, kept], enabled)
    with stub_server(server.answer, server.bodies) as (url, seen):
        api = Toxiproxy(url)
        assert api.remove_toxic("w", "upstream", ["upstream", "downstream"]) == "replaced"
        # The time that is left to it, not the time that it was given once.
        assert server.state == {**PROXY, "enabled": enabled, "toxics": [{**kept, "ttl_ms": 4000}]}
        changes = [request for request in seen if not request.startswith("GET ")]
        assert changes == ["DELETE /proxies/w", "POST /proxies", "POST /proxies/w/toxics"]
        assert api.remove_toxic("w", "downstream", ["upstream", "downstream"]) == "missing"
        assert len([request for request in seen if not request.startswith("GET ")]) == len(changes)


def test_a_proxy_that_comes_back_elsewhere_is_not_called_replaced() -> None:
    hole = {"name": "t", "type": "timeout", "stream": "upstream", "toxicity": 1.0, "attributes": {"timeout": 0}}
    state = {**PROXY, "toxics": [hole]}

    def answer(method: str, path: str) -> Answer:
        if method == "POST":
            state.update(listen="127.0.0.1:99", toxics=[])
        return (204, b"") if method == "DELETE" else (200, body(state))

    with stub_server(answer) as (url, _), pytest.raises(ToxiproxyUnverified, match="replaced"):
        Toxiproxy(url).remove_toxic("w", "t")


def test_two_servers_in_one_process_are_kept_apart() -> None:
    with (
        stub_server(lambda method, path: (200, body({"version": "one"}))) as (first, _),
        stub_server(lambda method, path: (200, body({"version": "two"}))) as (second, _),
    ):
        clients = [Toxiproxy(first), Toxiproxy(second)]
        assert [client.version() for client in clients] == ["one", "two"]
        answers: list[tuple[int, str]] = []

        def ask(index: int) -> None:
            answers.extend((index, clients[index].version()) for _ in range(20))

        threads = [threading.Thread(target=ask, args=(index % 2,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 80
        assert set(answers) == {(0, "one"), (1, "two")}


@pytest.mark.parametrize(
    "toxic",
    [
        Toxic("x", "slicer"),
        Toxic("x", "slicer", attributes={"average_size": 0}),
        Toxic("x", "slicer", attributes={"average_size": 10, "size_variation": 11}),
        Toxic("x", "bandwidth", attributes={"rate": -1}),
        Toxic("x", "latency", attributes={"latency": True}),
        Toxic("x", "latency", attributes={"latency": 5.0}),  # type: ignore[dict-item]
        Toxic("x", "latency", attributes={"latncy": 5}),
        Toxic("x", "latency", attributes={"latency": 2**40}),
        Toxic("x", "latency", toxicity=7),
        Toxic("x", "latency", toxicity=float("nan")),
        Toxic("x", "latency", "sideways"),  # type: ignore[arg-type]
        Toxic("x", "down"),
        Toxic("x", "reset_peer", attributes={"timeout": 60_000}),
        Toxic("a/b", "latency"),
        Toxic("..", "latency"),
        Toxic("", "latency"),
    ],
    ids=repr,
)
def test_what_crashes_or_misleads_the_server_is_never_sent(toxic: Toxic) -> None:
    with pytest.raises(ToxiproxyUnsafe):
        check_toxic(toxic)


@pytest.mark.parametrize("listen", ["", ":8080", "8080", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000"])
def test_a_listen_address_names_host_and_port(listen: str) -> None:
    with pytest.raises(ToxiproxyUnsafe):
        Toxiproxy("http://127.0.0.1:1").create_proxy("w", listen, "127.0.0.1:8")


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8474", "https://127.0.0.1:8474", "http://127.0.0.1", "http://h:x", "http://:1"]
)
def test_the_api_address_is_checked(url: str) -> None:
    with pytest.raises(ToxiproxyUnsafe):
        Toxiproxy(url)


def test_all_errors_are_of_one_family() -> None:
    for kind in (ToxiproxyGone, ToxiproxyTimeout, ToxiproxyRefused, ToxiproxyUnsafe, ToxiproxyUnverified):
        assert issubclass(kind, ToxiproxyError)
