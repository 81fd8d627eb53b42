"""Toxics as the API knows them: create, show, update, delete, and the order of what is checked."""

from typing import Any

import pytest

from tests.chaos.toxiproxy.conformance.rig import ProxyUnderTest, ServerUnderTest, names

ATTRIBUTES = {
    "latency": {"latency": 1, "jitter": 2},
    "bandwidth": {"rate": 3},
    "slow_close": {"delay": 4},
    "timeout": {"timeout": 5},
    "reset_peer": {"timeout": 6},
    "slicer": {"average_size": 8, "size_variation": 7, "delay": 9},
    "limit_data": {"bytes": 10},
    "noop": {},
}
FIRST = {kind: next(iter(attributes)) for kind, attributes in ATTRIBUTES.items() if attributes}


def create(proxy: ProxyUnderTest, value: object) -> Any:
    """The answer to a create call."""
    return proxy.server.call("POST", f"{proxy.path}/toxics", value)


@pytest.mark.parametrize("kind", ATTRIBUTES)
def test_create_show_list_delete(proxy: ProxyUnderTest, kind: str) -> None:
    wanted = {
        "name": "it",
        "type": kind,
        "stream": "upstream",
        "toxicity": 0.25,
        "attributes": ATTRIBUTES[kind],
    }
    answer = create(proxy, wanted)
    assert (answer.status, answer.kind, answer.json) == (200, "application/json", wanted)
    assert proxy.server.call("GET", f"{proxy.path}/toxics/it").json == wanted
    assert proxy.server.call("GET", f"{proxy.path}/toxics").json == [wanted]
    assert proxy.state()["toxics"] == [wanted]
    removed = proxy.server.call("DELETE", f"{proxy.path}/toxics/it")
    assert (removed.status, removed.text) == (204, "")
    again = proxy.server.call("DELETE", f"{proxy.path}/toxics/it")
    assert (again.status, again.json["error"]) == (404, "toxic not found")


@pytest.mark.parametrize("kind", [kind for kind in ATTRIBUTES if kind != "slicer"])
def test_defaults(proxy: ProxyUnderTest, kind: str) -> None:
    answer = create(proxy, {"type": kind})
    assert answer.json == {
        "name": f"{kind}_downstream",
        "type": kind,
        "stream": "downstream",
        "toxicity": 1,
        "attributes": dict.fromkeys(ATTRIBUTES[kind], 0),
    }


def test_a_proxy_without_toxics_has_an_empty_list(proxy: ProxyUnderTest) -> None:
    answer = proxy.server.call("GET", f"{proxy.path}/toxics")
    assert (answer.status, answer.text) == (200, "[]")


@pytest.mark.parametrize("stream", ["UPSTREAM", "Downstream"])
def test_a_stream_in_capitals_is_echoed(proxy: ProxyUnderTest, stream: str) -> None:
    answer = create(proxy, {"type": "noop", "stream": stream})
    assert (answer.json["stream"], answer.json["name"]) == (stream, f"noop_{stream}")


@pytest.mark.parametrize("stream", ["", "sideways", "up"])
def test_a_stream_that_is_none(proxy: ProxyUnderTest, stream: str) -> None:
    answer = create(proxy, {"type": "noop", "stream": stream})
    assert answer.status == 400
    assert answer.json["error"] == "stream was invalid, can be either upstream or downstream"


@pytest.mark.parametrize("kind", ["", "Latency", "packet_loss", None])
def test_a_type_that_is_none(proxy: ProxyUnderTest, kind: str | None) -> None:
    answer = create(proxy, {"type": kind})
    assert (answer.status, answer.json["error"]) == (400, "invalid toxic type")


def test_the_order_of_checks(proxy: ProxyUnderTest) -> None:
    """Body, stream, type, name, attributes: of several mistakes the first one is told."""
    proxy.add("noop", name="taken")
    value: dict[str, Any] = {"name": "taken", "type": "none", "stream": "none", "attributes": {"latency": "x"}}
    assert create(proxy, "{").json["error"].startswith("bad request body: ")
    assert create(proxy, value).json["error"].startswith("stream was invalid")
    value["stream"] = "upstream"
    assert create(proxy, value).json["error"] == "invalid toxic type"
    value["type"] = "latency"
    answer = create(proxy, value)
    assert (answer.status, answer.json["error"]) == (409, "toxic already exists")
    value["name"] = "free"
    answer = create(proxy, value)
    assert answer.status == 400
    assert answer.json["error"].startswith("bad request body: ")
    assert names(proxy.state()["toxics"]) == ["taken"]


def test_names_are_unique_over_both_directions(proxy: ProxyUnderTest) -> None:
    proxy.add("noop", "upstream", name="one")
    assert create(proxy, {"type": "latency", "stream": "downstream", "name": "one"}).status == 409


@pytest.mark.parametrize("value", [5.5, 5.0, "5", True, [], 2**63, 1e3])
def test_attributes_are_integers(proxy: ProxyUnderTest, value: object) -> None:
    answer = create(proxy, {"type": "latency", "attributes": {"latency": value}})
    assert answer.status == 400
    assert answer.json["error"].startswith("bad request body: ")


@pytest.mark.parametrize("kind", FIRST)
def test_every_type_checks_its_attributes(proxy: ProxyUnderTest, kind: str) -> None:
    answer = create(proxy, {"type": kind, "attributes": ATTRIBUTES[kind] | {FIRST[kind]: "many"}})
    assert answer.status == 400


@pytest.mark.parametrize("attributes", [[], "x", 5])
def test_attributes_are_an_object(proxy: ProxyUnderTest, attributes: object) -> None:
    assert create(proxy, {"type": "latency", "attributes": attributes}).status == 400


def test_unknown_attributes_are_dropped_without_a_word(proxy: ProxyUnderTest) -> None:
    answer = create(proxy, {"type": "latency", "latency": 7, "attributes": {"latenzy": 5, "JITTER": 3, "rate": 1}})
    assert answer.json["attributes"] == {"latency": 0, "jitter": 3}


def test_null_attributes_are_defaults(proxy: ProxyUnderTest) -> None:
    assert create(proxy, {"type": "latency", "attributes": None}).json["attributes"] == {"latency": 0, "jitter": 0}


@pytest.mark.parametrize(
    ("kind", "attribute"), [pair for pair in FIRST.items() if pair[0] not in ("bandwidth", "slicer")]
)
def test_negative_attributes_are_taken(proxy: ProxyUnderTest, kind: str, attribute: str) -> None:
    assert create(proxy, {"type": kind, "attributes": {attribute: -1}}).json["attributes"][attribute] == -1


@pytest.mark.parametrize("toxicity", ["1", [], True])
def test_toxicity_is_a_number(proxy: ProxyUnderTest, toxicity: object) -> None:
    assert create(proxy, {"type": "noop", "toxicity": toxicity}).status == 400


def test_toxicity_has_32_bits(proxy: ProxyUnderTest) -> None:
    assert create(proxy, {"type": "noop", "toxicity": 0.123456789}).json["toxicity"] == 0.12345679


def test_the_order_of_lists(proxy: ProxyUnderTest) -> None:
    for name, stream in (("a", "downstream"), ("b", "upstream"), ("c", "downstream"), ("d", "upstream")):
        proxy.add("noop", stream, name=name)
    assert names(proxy.state()["toxics"]) == ["b", "d", "a", "c"]
    assert names(proxy.server.call("GET", f"{proxy.path}/toxics").json) == ["b", "d", "a", "c"]


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_an_update_reads_attributes_and_toxicity_only(proxy: ProxyUnderTest, method: str) -> None:
    proxy.add("latency", name="it", latency=5, jitter=6)
    value = {"name": "x", "type": "noop", "stream": "upstream", "toxicity": 0.5, "attributes": {"jitter": 7}}
    answer = proxy.server.call(method, f"{proxy.path}/toxics/it", value)
    assert (answer.status, answer.kind) == (200, "application/json")
    wanted = {"name": "it", "type": "latency", "stream": "downstream", "toxicity": 0.5}
    assert answer.json == wanted | {"attributes": {"latency": 5, "jitter": 7}}


@pytest.mark.parametrize("body", ["{}", "null", '{"attributes": {}}', '{"attributes": {"latency": null}}'])
def test_an_update_of_nothing(proxy: ProxyUnderTest, body: str) -> None:
    proxy.add("latency", name="it", latency=5)
    before = proxy.state()
    assert proxy.server.call("PATCH", f"{proxy.path}/toxics/it", body).status == 200
    assert proxy.state() == before


@pytest.mark.parametrize("value", [{"attributes": {"latency": 5.5}}, {"toxicity": "x"}, {"attributes": []}])
def test_an_update_that_is_wrong(proxy: ProxyUnderTest, value: dict[str, Any]) -> None:
    proxy.add("latency", name="it", latency=5)
    before = proxy.state()
    answer = proxy.update("it", **value)
    assert (answer.status, answer.json["error"][:18]) == (400, "bad request body: ")
    assert proxy.state() == before


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE"])
def test_a_toxic_that_is_not_there(proxy: ProxyUnderTest, method: str) -> None:
    answer = proxy.server.call(method, f"{proxy.path}/toxics/none", "rubbish")
    assert (answer.status, answer.json["error"]) == (404, "toxic not found")


def test_toxics_can_be_added_while_disabled(proxy: ProxyUnderTest) -> None:
    proxy.enable(False)
    proxy.add("latency", name="it", latency=5)
    assert names(proxy.enable(True).json["toxics"]) == ["it"]


def test_unusual_toxic_names(server: ServerUnderTest, proxy: ProxyUnderTest) -> None:
    proxy.add("noop", name="a b?c#d%é")
    answer = server.call("DELETE", f"{proxy.path}/toxics/a%20b%3Fc%23d%25%C3%A9")
    assert answer.status == 204
