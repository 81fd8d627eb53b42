"""Many proxies at once."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.chaos.toxiproxy.conformance.rig import HOST, Kind, ServerUnderTest, Upstream, free_port, names, read, running


@pytest.fixture(scope="module", params=["embedded", "real"])
def own(request: pytest.FixtureRequest) -> Iterator[ServerUnderTest]:
    """A server whose proxies nobody else counts."""
    kind: Kind = request.param
    with running(kind) as server:
        yield server


@pytest.fixture
def empty(own: ServerUnderTest) -> ServerUnderTest:
    """That server without proxies."""
    for name in own.call("GET", "/proxies").json:
        own.call("DELETE", f"/proxies/{name}")
    return own


def item(name: str, port: int = 0, **fields: object) -> dict[str, Any]:
    """One proxy of a populate call."""
    return {"name": name, "listen": f"{HOST}:{port}", "upstream": "x:1", **fields}


def test_no_proxies_are_an_empty_object(empty: ServerUnderTest) -> None:
    answer = empty.call("GET", "/proxies")
    assert (answer.status, answer.text) == (200, "{}")


@pytest.mark.parametrize("body", ["[]", "null"])
def test_populate_with_nothing(empty: ServerUnderTest, body: str) -> None:
    answer = empty.call("POST", "/populate", body)
    assert (answer.status, answer.kind, answer.text) == (201, "application/json", '{"proxies":null}')


def test_populate_makes_them_in_order(empty: ServerUnderTest) -> None:
    answer = empty.call(
        "POST", "/populate", [item("b"), item("a", enabled=False), item("c", toxics=[{"type": "noop"}])]
    )
    assert (answer.status, answer.kind) == (201, "application/json")
    shown = answer.json["proxies"]
    assert names(shown) == ["b", "a", "c"]
    assert [proxy["enabled"] for proxy in shown] == [True, False, True]
    assert all(proxy["toxics"] == [] for proxy in shown)
    assert empty.call("GET", "/proxies").json == {proxy["name"]: proxy for proxy in shown}


@pytest.mark.parametrize("body", ["", "{", "{}", "5", '[{"name": 5}]', "[5]"])
def test_populate_with_a_body_that_is_none(empty: ServerUnderTest, body: str) -> None:
    answer = empty.call("POST", "/populate", body)
    assert (answer.status, answer.kind) == (400, "application/json")
    assert answer.json["error"].startswith("bad request body: ")
    assert (answer.json["status"], answer.json["proxies"]) == (400, None)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"upstream": "x"}, "missing required field: name at proxy 2"),
        ({"name": "b"}, "missing required field: upstream at proxy 2"),
    ],
)
def test_populate_checks_all_before_it_makes_any(empty: ServerUnderTest, second: dict[str, Any], message: str) -> None:
    answer = empty.call("POST", "/populate", [item("a"), second])
    assert (answer.status, answer.json["error"], answer.json["proxies"]) == (400, message, None)
    assert empty.call("GET", "/proxies").text == "{}"


def test_populate_leaves_alone_what_is_the_same(empty: ServerUnderTest) -> None:
    port = free_port()
    empty.call("POST", "/populate", [item("a", port)])
    empty.call("POST", "/proxies/a/toxics", {"type": "noop", "name": "kept"})
    answer = empty.call("POST", "/populate", [item("a", port, enabled=False)])
    # A differing `enabled` is ignored.
    assert (answer.status, answer.json["proxies"][0]["enabled"]) == (201, True)
    assert names(answer.json["proxies"][0]["toxics"]) == ["kept"]


@pytest.mark.parametrize("change", [{"upstream": "y:1"}, {"listen": f"{HOST}:0"}])
def test_populate_replaces_what_differs(empty: ServerUnderTest, change: dict[str, str]) -> None:
    first = item("a", free_port())
    empty.call("POST", "/populate", [first])
    empty.call("POST", "/proxies/a/toxics", {"type": "noop"})
    answer = empty.call("POST", "/populate", [first | change])
    assert (answer.status, answer.json["proxies"][0]["toxics"]) == (201, [])


def test_populate_leaves_others_alone(empty: ServerUnderTest) -> None:
    empty.call("POST", "/populate", [item("a")])
    empty.call("POST", "/populate", [item("b")])
    assert sorted(empty.call("GET", "/proxies").json) == ["a", "b"]


def test_populate_stops_at_the_first_that_fails(empty: ServerUnderTest, upstream: Upstream) -> None:
    busy = int(upstream.address.rpartition(":")[2])
    answer = empty.call("POST", "/populate", [item("a"), item("b", busy), item("c")])
    assert (answer.status, answer.kind, answer.json["status"]) == (500, "application/json", 500)
    assert answer.json["error"].endswith("address already in use")
    assert names(answer.json["proxies"]) == ["a"]
    assert list(empty.call("GET", "/proxies").json) == ["a"]


def test_a_replacement_that_fails_leaves_the_old_one_stopped(empty: ServerUnderTest, upstream: Upstream) -> None:
    empty.call("POST", "/populate", [item("a", free_port())])
    before = empty.call("GET", "/proxies/a").json
    answer = empty.call("POST", "/populate", [item("a", int(upstream.address.rpartition(":")[2]))])
    assert (answer.status, answer.json["proxies"] or []) == (500, [])
    assert empty.call("GET", "/proxies/a").json == before | {"enabled": False}


@pytest.mark.parametrize("body", [None, "", "rubbish", "{}"])
def test_reset_enables_and_clears_everything(empty: ServerUnderTest, body: str | None) -> None:
    empty.call("POST", "/populate", [item("a"), item("b"), item("c")])
    for name in "ab":
        empty.call("POST", f"/proxies/{name}/toxics", {"type": "latency", "stream": "upstream"})
        empty.call("POST", f"/proxies/{name}/toxics", {"type": "latency"})
    empty.call("PATCH", "/proxies/b", {"enabled": False})
    answer = empty.call("POST", "/reset", body)
    assert (answer.status, answer.text) == (204, "")
    assert all(proxy["enabled"] and not proxy["toxics"] for proxy in empty.call("GET", "/proxies").json.values())


def test_reset_keeps_connections(
    empty: ServerUnderTest, upstream: Upstream, make: Callable[[ServerUnderTest], Any]
) -> None:
    proxy = make(empty)
    pair = upstream.pair(proxy)
    proxy.add("latency", latency=60_000)
    pair.server.sendall(b"held")
    assert empty.call("POST", "/reset").status == 204
    assert read(pair.client, 4) == b"held"


def test_reset_with_one_that_cannot_listen_says_so(empty: ServerUnderTest) -> None:
    empty.call("POST", "/populate", [item("a"), item("bad", enabled=False) | {"listen": "nonsense"}])
    answer = empty.call("POST", "/reset")
    assert (answer.status, answer.json["status"]) == (500, 500)
    assert "nonsense" in answer.json["error"]
    assert not empty.call("GET", "/proxies/bad").json["enabled"]


def test_calls_at_the_same_time(empty: ServerUnderTest) -> None:
    """Of twenty that create the same name one succeeds, and nothing else breaks."""
    statuses: list[int] = []

    def create(number: int) -> None:
        statuses.append(empty.call("POST", "/proxies", item("same" if number % 2 else f"n{number}")).status)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] * 11 + [409] * 9
    assert len(empty.call("GET", "/proxies").json) == 11
