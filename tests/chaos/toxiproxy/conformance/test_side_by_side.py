"""The same random calls to both servers, in the same order: the same answers, but for what is known to differ."""

import json
import random
import re
from typing import Any

import pytest

from tests.chaos.toxiproxy.conformance.rig import HOST, Answer, Kind, Upstream, free_port, running

CALLS = 400
SEEDS = (0, *(pytest.param(seed, marks=pytest.mark.verify) for seed in range(1, 30)))
NAMES = ("a", "b", "c")
TOXICS = ("t", "u", "latency_downstream", "noop_upstream")
KINDS = ("latency", "bandwidth", "slow_close", "timeout", "reset_peer", "limit_data", "noop", "none")
ATTRIBUTES = ("latency", "jitter", "rate", "delay", "timeout", "bytes", "unknown")
ODD_BODIES = (
    "",
    "{",
    "null",
    "[]",
    "5",
    '"x"',
    "{} {}",
    " {} ",
    '{"NAME": "a", "LISTEN": "x", "Upstream": "z:1"}',
    "[null]",
)
ODD: tuple[Any, ...] = (None, "", "text", 0, 1, True, [], {}, ["x"], {"a": 1})


def oddly(draws: random.Random, value: object) -> object:
    """Mostly the value, now and then something else."""
    if draws.random() < 0.9:
        return value
    return draws.choice(ODD)


class Calls:
    """A random sequence of calls. ports: what proxies listen on; the last one is taken by somebody else."""

    def __init__(self, seed: int, ports: list[int]) -> None:
        self._draws = random.Random(seed)
        self._ports = ports

    def proxy(self) -> dict[str, Any]:
        """A proxy of a create, update or populate call, with fields missing here and there."""
        draws = self._draws
        fields: dict[str, Any] = {
            "name": draws.choice(NAMES),
            "listen": f"{draws.choice((HOST, 'localhost'))}:{draws.choice(self._ports)}",
            "upstream": draws.choice(("x:1", f"{HOST}:9")),
            "enabled": draws.choice((True, False)),
        }
        kept = {key: oddly(draws, value) for key, value in fields.items() if draws.random() < 0.85}
        # Without an address the real server takes every interface and a random port.
        odd: Any = draws.choice(("nonsense", f"{HOST}:99999", "a:b:c", 5, True, []))
        return kept | {"listen": odd if draws.random() < 0.05 else fields["listen"]}

    def toxic(self) -> dict[str, Any]:
        """A toxic of a create or update call. One thing wrong at most: with more it matters which comes first."""
        draws = self._draws
        fields: dict[str, object] = {
            "name": draws.choice(TOXICS),
            "type": draws.choice(KINDS),
            "stream": draws.choice(("upstream", "downstream", "UPSTREAM", "sideways")),
            "toxicity": draws.choice((0, 1, 0.5, 0.123456789)),
            "attributes": {key: draws.randrange(100) for key in draws.sample(ATTRIBUTES, 3)},
        }
        fields = {key: value for key, value in fields.items() if draws.random() < 0.7}
        if fields and draws.random() < 0.3:
            # A value that is wrong leaves the others before it changed in the real server.
            wrong = draws.choice(list(fields))
            fields = {key: value for key, value in fields.items() if key not in ("toxicity", "attributes")}
            fields[wrong] = (
                {draws.choice(ATTRIBUTES): draws.choice(ODD)} if wrong == "attributes" else draws.choice(ODD)
            )
        return fields

    def next(self) -> tuple[str, str, str | None]:
        """Method, path, body."""
        draws = self._draws
        one = f"/proxies/{draws.choice(NAMES)}"
        toxic = f"{one}/toxics/{draws.choice(TOXICS)}"
        change = draws.choice(("POST", "PATCH"))
        calls: list[tuple[int, str, str, object]] = [
            (6, "POST", "/proxies", self.proxy()),
            (6, change, one, self.proxy()),
            (2, "DELETE", one, None),
            (9, "POST", f"{one}/toxics", self.toxic()),
            (6, change, toxic, self.toxic()),
            (3, "DELETE", toxic, None),
            (2, "GET", one, None),
            (2, "GET", toxic, None),
            (1, "GET", f"{one}/toxics", None),
            (3, "POST", "/populate", [self.proxy() for _ in range(draws.randrange(4))]),
            (1, draws.choice(("PUT", "HEAD", "OPTIONS")), draws.choice((one, toxic, "/populate")), None),
            (1, "GET", draws.choice(("/", "/proxies/", f"{toxic}/x", "//proxies", "/proxies/../version")), None),
        ]
        _, method, path, value = draws.choices(calls, [weight for weight, *_ in calls])[0]
        body = None if value is None else json.dumps(value)
        if method in ("POST", "PATCH") and draws.random() < 0.08:
            body = draws.choice(ODD_BODIES)
        return method, path, body


def comparable(answer: Answer) -> tuple[object, ...]:
    """Without what is free to differ: the text about a body's fault, and ports that were given out at random."""
    text = re.sub(r'bad request body: .*?","status', 'bad request body: ","status', answer.text)
    text = re.sub(r'"version": "[^"]*"', '"version": ""', text)
    return answer.status, answer.kind, answer.headers.get("location"), text


def transcript(kind: Kind, calls: Calls) -> list[tuple[str, object, object]]:
    """Every call, its answer, and all proxies after it."""
    told: list[tuple[str, object, object]] = []
    with running(kind) as server:
        for _ in range(CALLS):
            method, path, body = calls.next()
            answer = comparable(server.call(method, path, body))
            told.append((f"{method} {path} {body}", answer, server.call("GET", "/proxies").json))
    return told


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_calls_get_the_same_answers(seed: int, upstream: Upstream) -> None:
    """One after the other, so that both can use the same ports."""
    ports = [free_port() for _ in range(3)] + [int(upstream.address.rpartition(":")[2])]
    ours, theirs = (transcript(kind, Calls(seed, ports)) for kind in ("embedded", "real"))
    for number, (here, there) in enumerate(zip(ours, theirs, strict=True)):
        assert here == there, [call for call, *_ in ours[max(0, number - 5) : number + 1]]
