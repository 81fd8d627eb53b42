"""What holds for every call: routes, methods, bodies, types, errors."""

import pytest

from tests.chaos.toxiproxy.conformance.rig import ProxyUnderTest, ServerUnderTest

PLAIN = "text/plain; charset=utf-8"
ROUTED = ("/version", "/proxies", "/proxies/none", "/proxies/none/toxics", "/proxies/none/toxics/none")
TAKE_A_BODY = ("/proxies", "/proxies/{}", "/proxies/{}/toxics", "/proxies/{}/toxics/t")


def test_version(server: ServerUnderTest) -> None:
    answer = server.call("GET", "/version")
    assert (answer.status, answer.kind) == (200, "application/json;charset=utf-8")
    assert answer.text.endswith("}\n")
    assert list(answer.json) == ["version"]


@pytest.mark.parametrize("path", ["/", "/nothing", "/proxies/", "/version/", "/proxies/a/b", "/proxies/a/toxics/b/c"])
def test_an_unknown_path(server: ServerUnderTest, path: str) -> None:
    answer = server.call("GET", path)
    assert (answer.status, answer.kind, answer.text) == (404, PLAIN, "404 page not found\n")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "x-toxiproxy-request-id" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/proxies"),
        ("HEAD", "/proxies"),
        ("OPTIONS", "/version"),
        ("DELETE", "/proxies"),
        ("POST", "/version"),
        ("GET", "/reset"),
        ("GET", "/populate"),
        ("PUT", "/proxies/none"),
        ("PATCH", "/proxies/none/toxics"),
        ("PUT", "/proxies/none/toxics/none"),
    ],
)
def test_a_wrong_method(server: ServerUnderTest, method: str, path: str) -> None:
    answer = server.call(method, path)
    assert (answer.status, answer.text) == (405, "")
    assert "allow" not in answer.headers


@pytest.mark.parametrize(
    ("path", "clean"), [("//proxies", "/proxies"), ("/proxies//a", "/proxies/a"), ("//version?a=b", "/version?a=b")]
)
def test_a_doubled_slash_is_redirected(server: ServerUnderTest, path: str, clean: str) -> None:
    answer = server.call("GET", path)
    assert (answer.status, answer.headers["location"]) == (301, clean)


@pytest.mark.parametrize("path", ROUTED)
def test_browsers_are_refused(server: ServerUnderTest, path: str) -> None:
    answer = server.call("GET", path, User_Agent="Mozilla/5.0 (X11)")
    assert (answer.status, answer.kind, answer.text) == (403, PLAIN, "User agent not allowed\n")


@pytest.mark.parametrize("agent", ["curl/8", "mozilla/5.0", "x Mozilla/5.0"])
def test_others_are_not(server: ServerUnderTest, agent: str) -> None:
    assert server.call("GET", "/version", User_Agent=agent).status == 200


def test_browsers_get_the_usual_404_and_405(server: ServerUnderTest) -> None:
    assert server.call("GET", "/nothing", User_Agent="Mozilla/5.0").status == 404
    assert server.call("PUT", "/version", User_Agent="Mozilla/5.0").status == 405


@pytest.mark.parametrize("path", ROUTED)
def test_every_routed_reply_has_an_id_of_its_own(server: ServerUnderTest, path: str) -> None:
    first, second = (server.call("GET", path).headers["x-toxiproxy-request-id"] for _ in range(2))
    assert first
    assert first != second


def test_a_query_changes_nothing(server: ServerUnderTest) -> None:
    assert server.call("GET", "/proxies?x=/y").status == 200


def test_success_is_json_without_a_line_end(server: ServerUnderTest, proxy: ProxyUnderTest) -> None:
    answer = server.call("GET", proxy.path)
    assert (answer.status, answer.kind) == (200, "application/json")
    assert answer.text.startswith("{")
    assert answer.text.endswith("}")


def test_an_error_is_json_that_calls_itself_text(server: ServerUnderTest) -> None:
    answer = server.call("GET", "/proxies/none")
    assert (answer.status, answer.kind) == (404, PLAIN)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.text == '{"error":"proxy not found","status":404}\n'


@pytest.mark.parametrize("path", TAKE_A_BODY)
@pytest.mark.parametrize("body", ["", "{", "nonsense", "[]", "5", '"text"', '{"name": NaN}'])
def test_a_body_that_is_none(server: ServerUnderTest, proxy: ProxyUnderTest, path: str, body: str) -> None:
    proxy.add("noop", name="t")
    answer = server.call("POST", path.format(proxy.name), body)
    assert (answer.status, answer.kind) == (400, PLAIN)
    assert answer.json["error"].startswith("bad request body: ")
    assert answer.json["status"] == 400
    assert ("EOF" in answer.json["error"]) or body not in ("",)


def test_the_type_of_a_body_does_not_matter(server: ServerUnderTest, proxy: ProxyUnderTest) -> None:
    answer = server.call("PATCH", proxy.path, {"enabled": False}, Content_Type="image/png")
    assert (answer.status, answer.json["enabled"]) == (200, False)


def test_only_the_first_value_is_read(server: ServerUnderTest, proxy: ProxyUnderTest) -> None:
    answer = server.call("PATCH", proxy.path, '{"enabled": false} {"enabled": true} rubbish')
    assert (answer.status, answer.json["enabled"]) == (200, False)


def test_keys_match_in_any_case_and_unknown_ones_are_ignored(server: ServerUnderTest, proxy: ProxyUnderTest) -> None:
    answer = server.call("PATCH", proxy.path, {"ENABLED": False, "colour": "red"})
    assert (answer.status, answer.json["enabled"]) == (200, False)


def test_null_keeps_a_value(server: ServerUnderTest, proxy: ProxyUnderTest) -> None:
    before = proxy.state()
    for body in ("null", '{"enabled": null, "listen": null}', "{}"):
        assert server.call("PATCH", proxy.path, body).json == before


def test_unusual_names_come_back_whole(server: ServerUnderTest) -> None:
    proxy = server.proxy(name="a b<&>é%2F\u2028")
    assert server.call("GET", proxy.path).json["name"] == "a b<&>é%2F\u2028"
    assert "\\u003c\\u0026\\u003e" in server.call("GET", proxy.path).text
    assert proxy.delete().status == 204
