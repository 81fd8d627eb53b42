"""A run looks at its hosts as the doctor does, before anything of it is on them."""

import asyncio
from typing import Any, cast

import msgspec
import pytest
from ray.exceptions import RayError

from chaos.worlds import inspection
from chaos.worlds.inspection import inspect_hosts
from chaos.worlds.world import InfrastructureError
from cluster.doctor import probe
from cluster.doctor.findings import Facts, examine
from cluster.live.actors import RayHost

OWN = RayHost("id-0", "127.0.0.1", {}, True)


class Host:
    """In place of a JoinedHost."""

    def __init__(self, number: int) -> None:
        self.name, self.address, self.nodes = f"host-{number}", f"10.0.0.{number}", ("worker-1",)
        self.ray_host = RayHost(f"id-{number}", self.address, {}, False)


def look(monkeypatch: pytest.MonkeyPatch, answer: Any, hosts: int = 1) -> None:
    """answer: changes what a host says that is otherwise as ours; an exception is raised in its place."""

    async def said(ray_node: str, function: Any, model: str, ports: Any, address: str, **more: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return probe.look(model, (), "127.0.0.1") | answer

    monkeypatch.setattr(inspection, "run_on", said)
    asyncio.run(inspect_hosts(OWN, cast(Any, [Host(number + 1) for number in range(hosts)]), "tiny"))


def test_a_host_like_ours_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "examine", all_but_the_address(examine))
    look(monkeypatch, {}, hosts=2)


def all_but_the_address(whole: Any) -> Any:
    """Loopback is no address for a host, but the only one that is here for certain."""
    return lambda *a, **k: [each for each in whole(*a, **k) if each.check != "address"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"project": "another"}, r"host-1: project: sources another in .*check out the same commit there"),
        ({"versions": {"ray": "1.0"}}, r"host-1: version of ray: 1.0 there, .*install what requirements.lock pins"),
        ({"memory_available_bytes": 10**6}, r"host-1: memory: 0.0 GB free, 1 workers need 0.3 GB"),
        (RayError("its process died"), r"host-1 \(10.0.0.1\): it cannot be looked at: its process died"),
        (TimeoutError(), r"host-1 \(10.0.0.1\): it cannot be looked at: no answer within 60 s"),
    ],
)
def test_a_host_that_will_not_do_costs_one_line(answer: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "examine", all_but_the_address(examine))
    with pytest.raises(InfrastructureError, match=said) as refused:
        look(monkeypatch, answer)
    assert "\n" not in str(refused.value)


def test_of_many_problems_the_first_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"project": "another", "versions": dict.fromkeys(probe.PACKAGES, "0.1")}
    with pytest.raises(InfrastructureError, match=r"and \d+ more; see `python -m cluster.doctor`") as refused:
        look(monkeypatch, wrong, hosts=3)
    assert str(refused.value).count("host-") == 3


def test_the_probe_says_what_facts_are_made_of() -> None:
    assert set(probe.look("tiny", (), "127.0.0.1")) == {each.name for each in msgspec.structs.fields(Facts)}
