"""Hosts of a cluster that is there already: which are chosen, what each gets, and what is refused in one line."""

from typing import Any, cast

import pytest

from chaos.experiment import Experiment, ExperimentError, find
from chaos.resolve import load
from chaos.worlds import joined, ray_session
from chaos.worlds.joined import JoinedHosts
from chaos.worlds.servers import Servers
from chaos.worlds.world import InfrastructureError
from cluster.live.actors import RayHost
from cluster.policy import LinkPolicy


def three(*settings: str) -> Experiment:
    return load(find("network_partition"), ["cluster.workers=5", "cluster.hosts=3", *settings])


def ray_host(number: int, address: str = "", mlx: float = 0.0) -> RayHost:
    resources = {"CPU": 2.0, "mlx": mlx} if mlx else {"CPU": 2.0}
    return RayHost(f"id-{number}", address or f"10.0.0.{number}", resources, number == 2)


class Reached:
    """In place of Servers: who was to be reached at which address."""

    def reach(self, address: str, nodes: list[str]) -> None:
        self.address, self.nodes = address, nodes


def chosen(
    monkeypatch: pytest.MonkeyPatch, there: list[RayHost], experiment: Experiment, own: str = "id-2"
) -> tuple[JoinedHosts, Reached]:
    monkeypatch.setattr(joined, "_JOIN_S", 0.0)
    monkeypatch.setattr(joined, "ray_hosts", lambda: list(there))
    monkeypatch.setattr(joined, "own_ray_node", lambda: own)
    servers = Reached()
    hosts = JoinedHosts(experiment, cast(Any, servers), cast(Any, None), cast(Any, None), "run")
    hosts.choose()
    return hosts, servers


def test_the_runners_own_host_is_the_first_and_the_others_follow_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts, servers = chosen(monkeypatch, [ray_host(1), ray_host(2), ray_host(3), ray_host(4)], three())
    assert [hosts[name].address for name in ("host-1", "host-2")] == ["10.0.0.1", "10.0.0.3"]
    assert (servers.address, sorted(servers.nodes)) == ("10.0.0.2", ["worker-1", "worker-2", "worker-4"])
    assert hosts.elsewhere("worker-0") is None
    assert hosts.elsewhere("controller") is None
    assert hosts.elsewhere("worker-4") is hosts["host-1"]
    assert hosts.place("worker-0").ray_node == "id-2"
    assert hosts.place("client-0").environment == {"MLX_CHAOS_RUN": "run"}
    assert [hosts.workers_beside(node) for node in ("worker-0", "worker-1", "worker-2")] == [2, 2, 1]
    assert hosts.describe()["hosts_of_the_cluster"] == 4


def test_on_one_host_nobody_else_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    one = load(find("network_partition"), [])
    hosts, servers = chosen(monkeypatch, [ray_host(1), ray_host(2, "127.0.0.1")], one)
    assert servers.nodes == []
    assert all(hosts.place(node).ray_node == "id-2" for node in one.node_names())


@pytest.mark.parametrize(
    ("there", "own", "said"),
    [
        (
            [ray_host(1), ray_host(2)],
            "id-2",
            r"cluster.hosts is 3, and 2 have joined within 0 s \(10.0.0.1, 10.0.0.2\)",
        ),
        ([ray_host(1), ray_host(2), ray_host(3)], "id-9", "no Ray node runs on this host"),
        ([ray_host(1), ray_host(2, "127.0.0.1"), ray_host(3)], "id-2", "Ray knows this host by 127.0.0.1"),
    ],
)
def test_hosts_that_will_not_do_cost_one_line(
    there: list[RayHost], own: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InfrastructureError, match=said) as refused:
        chosen(monkeypatch, there, three(), own)
    assert "\n" not in str(refused.value)


def test_a_toxiproxy_of_others_is_not_mixed_with_several_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    other = three("cluster.toxiproxy_url=http://127.0.0.1:8474")
    with pytest.raises(InfrastructureError, match="toxiproxy_url: not with"):
        chosen(monkeypatch, [ray_host(1), ray_host(2), ray_host(3)], other)


def test_a_ray_client_is_no_host_of_the_cluster() -> None:
    with pytest.raises(InfrastructureError, match="is no host of the cluster"):
        ray_session.join_ray("ray://10.0.0.1:10001")


class Reservation:
    """In place of Ray's placement group."""

    def __init__(self, bundles: list[dict[str, float]], strategy: str, *, free: bool = True) -> None:
        self.bundles, self.strategy, self._free = bundles, strategy, free

    def wait(self, limit_s: float) -> bool:
        return self._free


@pytest.mark.parametrize(
    ("mlx", "share", "bundles"),
    [(1.0, 0.5, [1.0, 1.0, 0.5]), (2.0, 1.0, [2.0, 2.0, 1.0]), (0.0, 0.0, [None, None, None])],
)
def test_every_worker_gets_its_share_of_the_hosts_mlx(
    mlx: float, share: float, bundles: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts, _ = chosen(monkeypatch, [ray_host(number, mlx=mlx) for number in (1, 2, 3)], three())
    monkeypatch.setattr(joined, "placement_group", Reservation)
    hosts._reserve()
    made = cast(Any, hosts._group)
    assert made.strategy == "STRICT_SPREAD"
    assert [bundle.get("mlx") for bundle in made.bundles] == bundles
    assert [bundle[f"node:10.0.0.{number}"] for number, bundle in zip((2, 1, 3), made.bundles, strict=True)]
    assert hosts.place("worker-0").resources == ({"mlx": share} if share else {})
    assert hosts.place("controller").resources == {}


def test_what_others_have_is_not_waited_for_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts, _ = chosen(monkeypatch, [ray_host(number, mlx=1.0) for number in (1, 2, 3)], three())
    monkeypatch.setattr(joined, "placement_group", lambda bundles, strategy: Reservation(bundles, strategy, free=False))
    with pytest.raises(InfrastructureError, match="other work on the cluster has it"):
        hosts._reserve()


def test_packed_neighbours_are_together() -> None:
    packed = three("cluster.placement=pack")
    assert [packed.host_of(f"worker-{number}") for number in range(5)] == [
        *("host-0", "host-0", "host-1", "host-1", "host-2"),
    ]
    with pytest.raises(ExperimentError, match=r"cluster\.placement"):
        three("cluster.placement=heap")


def test_only_the_proxies_of_other_hosts_nodes_listen_there(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """127.0.0.2 stands for an address of the network: whoever is asked there says so."""

    class Api:
        url = "http://127.0.0.1:1"

        def create_proxy(self, name: str, listen: str, upstream: str) -> Any:
            asked[name] = (listen, upstream)
            return type("State", (), {"listen": listen})

    asked: dict[str, tuple[str, str]] = {}
    servers = Servers("run", tmp_path, ["controller", "worker-0", "worker-1"], ["controller"], LinkPolicy(), 7)
    servers.reach("127.0.0.2", ["worker-1"])
    servers._make_proxies(cast(Any, None), cast(Any, Api()), shared=False)
    assert {name: listen.rpartition(":")[0] for name, (listen, _) in asked.items()} == {
        "controller": "127.0.0.1",
        "worker-0": "127.0.0.1",
        "worker-1": "127.0.0.2",
    }
    assert {upstream for _, upstream in asked.values()} == {"127.0.0.1:7"}, "the broker itself stays on loopback"
    assert servers.url("worker-1").endswith("@127.0.0.2:0")
