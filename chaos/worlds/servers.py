"""The servers of a live world, NATS and Toxiproxy, as children of the keeper, and one proxy per node.

Where an experiment meddles with messages, the embedded server stands between the real one and the broker for the nodes
concerned: it knows what a message is. Where no real one can be had, it does everything.
"""

import json
import socket
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from chaos.keeper import Keeper, KeeperError
from chaos.toxiproxy.adapter import Toxiproxy, ToxiproxyError
from chaos.toxiproxy.launcher import ServerChoice, ToxiproxyUnavailable, choose_server, embedded_server
from chaos.toxiproxy.messages import MessageToxiproxy
from chaos.undo import ProxyEntry, UndoError, UndoLog
from chaos.worlds.world import InfrastructureError
from cluster.live.broker import NAME as BROKER
from cluster.live.broker import Broker, BrokerSettings, BrokerUnavailable, server_path
from cluster.policy import LinkPolicy

_START_S = 10.0
_LISTED_S = 1.0
_TRIES_MAX = 3
_HOST = "127.0.0.1"
_TOXIPROXY = "toxiproxy"
_MESSAGES = "toxiproxy-messages"


class Servers:
    """Started in the constructor's caller's thread; every method blocks for bounded times."""

    def __init__(
        self,
        run_id: str,
        logs: Path,
        nodes: Sequence[str],
        controllers: Sequence[str],
        link: LinkPolicy,
        broker_port: int,
        meddled: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        """nodes: all of them, the controllers too. meddled: those whose messages are meddled with, by this seed."""
        self._run_id = run_id
        self._broker_port = broker_port
        self._logs = logs
        self._nodes = nodes
        self._meddled = meddled
        self._seed = seed
        self._choice: ServerChoice | None = None
        settings = BrokerSettings(ping_interval_s=link.broker_ping_s, ping_max=link.broker_pings_outstanding_max)
        self.broker = Broker(logs / "broker", nodes, settings, broker_port, controllers)
        self.broker_pid = 0
        self.ended_by_fault: set[str] = set()
        """Servers whose end is the doing of a fault, and no failure of our infrastructure."""
        self.undo: UndoLog | None = None
        self.keeper: Keeper | None = None
        self.toxiproxy: Toxiproxy | None = None
        self.messages: MessageToxiproxy | None = None
        """Who knows what a message is, where somebody has to."""
        self.message_proxies: dict[str, str] = {}
        self.flavour = ""
        self.proxies: dict[str, str] = {}
        self._addresses: dict[str, str] = {}
        self._outer: tuple[str, frozenset[str]] = (_HOST, frozenset())

    def reach(self, address: str, nodes: Iterable[str]) -> None:
        """Let the proxies of these nodes, which are on other hosts, listen on an address of ours that they reach.

        Nothing else does: the broker, Toxiproxy's API and the proxies of our own nodes stay on loopback.
        """
        self._outer = (address, frozenset(nodes))

    def check(self, toxiproxy_url: str | None, toxiproxy_port: int) -> None:
        """Whether the servers can be had and their ports are free. Raises InfrastructureError. Starts nothing."""
        _demand_free("cluster.broker_port", self._broker_port)
        try:
            server_path()
            if toxiproxy_url is not None:
                Toxiproxy(toxiproxy_url).version()
                return
            _demand_free("cluster.toxiproxy_port", toxiproxy_port)
            self._choice = choose_server()
        except (BrokerUnavailable, ToxiproxyError, ToxiproxyUnavailable) as error:
            raise InfrastructureError(str(error)) from error

    def start(self, toxiproxy_url: str | None, toxiproxy_port: int) -> None:
        """Start keeper, broker, Toxiproxy (unless one runs at `toxiproxy_url`) and proxies.

        toxiproxy_port: 0 for a free one. Raises InfrastructureError.
        """
        try:
            self.undo = UndoLog.create(self._run_id)
            self.keeper = Keeper.start(self.undo.path, self._logs)
            self.broker_pid = self.broker.start(self.keeper.spawn, _START_S)
            if toxiproxy_url is None:
                self.toxiproxy = self._start_toxiproxy(self.keeper, toxiproxy_port)
            else:
                self.toxiproxy = Toxiproxy(toxiproxy_url)
                self.flavour = f"running at {toxiproxy_url}, version {_version(self.toxiproxy)}"
            if self._meddled and self.messages is None:
                choice = embedded_server("for messages, behind the other")
                self.messages = MessageToxiproxy(self._start_server(self.keeper, _MESSAGES, choice, 0))
                self.flavour += f"; {choice.title}"
            self._make_proxies(self.undo, self.toxiproxy, shared=toxiproxy_url is not None)
        except (BrokerUnavailable, KeeperError, ToxiproxyError, ToxiproxyUnavailable, UndoError) as error:
            raise InfrastructureError(str(error)) from error

    def restart_broker(self) -> None:
        """Another process of the broker on the same ports. Raises BrokerUnavailable and KeeperError."""
        assert self.keeper is not None
        if BROKER in self.keeper.children():
            self.ended_by_fault.add(BROKER)
            self.keeper.stop_child(BROKER)
        self.broker_pid = self.broker.start(self.keeper.spawn, _START_S)
        self.ended_by_fault.discard(BROKER)

    def listed(self, node: str) -> dict[int, int] | None:
        """The node's connections that the broker lists, with the messages that came in; None when it does not tell."""
        try:
            connections = self.broker.all_connections(_LISTED_S)
        except BrokerUnavailable:
            return None
        return {connection.cid: connection.in_msgs for connection in connections if connection.name == node}

    def check_alive(self) -> None:
        """Raises InfrastructureError when the keeper or a server of ours has ended by itself."""
        if self.keeper is None:
            return
        try:
            ended = {name: code for name, code in self.keeper.children().items() if code is not None}
        except KeeperError as error:
            raise InfrastructureError(f"{error}; without its keeper no fault may stay in force") from error
        for name, code in ended.items():
            if name in self.ended_by_fault:
                continue
            raise InfrastructureError(f"{name} has ended with code {code}; see {self._logs / f'{name}.log'}")

    def url(self, node: str) -> str:
        """NATS for a node: its own credentials, through its own proxy."""
        return self.broker.url(node, self._addresses[node])

    def stop(self) -> list[str]:
        """Heal what is open, end the servers and the keeper; one line for each thing that could not be undone."""
        left: list[str] = []
        if self.keeper is not None:
            left += [result.text for result in self.keeper.close() if not result.healed]
        if self.undo is not None:
            self.undo.close()
        return left

    def _start_toxiproxy(self, keeper: Keeper, port: int) -> Toxiproxy:
        choice = self._choice or choose_server()
        self.flavour = choice.title
        url = self._start_server(keeper, _TOXIPROXY, choice, port)
        if not choice.embedded:
            return Toxiproxy(url)
        self.messages = MessageToxiproxy(url)
        return self.messages

    def _start_server(self, keeper: Keeper, name: str, choice: ServerChoice, port: int) -> str:
        """The URL of a Toxiproxy that answers. port: 0 for a free one."""
        for attempt in range(1, _TRIES_MAX + 1):
            chosen = port or _free_port()
            _demand_free("cluster.toxiproxy_port", port)
            argv = [*choice.argv, "-host", _HOST, "-port", str(chosen)]
            if choice.embedded:
                argv += ["-seed", str(self._seed)]
            keeper.spawn(name, argv, {"LOG_LEVEL": "error"})
            api = Toxiproxy(f"http://{_HOST}:{chosen}")
            ends_s = time.monotonic() + _START_S
            while time.monotonic() < ends_s and keeper.children().get(name, 0) is None:
                try:
                    api.version()
                except ToxiproxyError:
                    time.sleep(0.05)
                else:
                    return api.url
            if attempt < _TRIES_MAX:
                keeper.stop_child(name)
        raise InfrastructureError(f"{name} does not start; see {self._logs / f'{name}.log'}")

    def _make_proxies(self, undo: UndoLog, api: Toxiproxy, *, shared: bool) -> None:
        for node in self._nodes:
            # On a server that is not ours the name must be nobody else's.
            name = f"{self._run_id}-{node}" if shared else node
            if shared:
                undo.add(ProxyEntry(api_url=api.url, proxy=name))
            upstream = self._message_hop(node, name, api) if node in self._meddled else self.broker.address
            address, outer = self._outer
            state = api.create_proxy(name, f"{address if node in outer else _HOST}:0", upstream)
            self.proxies[node] = name
            self._addresses[node] = state.listen

    def _message_hop(self, node: str, name: str, api: Toxiproxy) -> str:
        """Where the node's proxy has to lead, so that the node's messages can be meddled with."""
        assert self.messages is not None
        if self.messages is api:
            self.message_proxies[node] = name
            return self.broker.address
        self.message_proxies[node] = node
        return self.messages.create_proxy(node, f"{_HOST}:0", self.broker.address).listen


def _version(api: Toxiproxy) -> str:
    text = api.version()
    return str(json.loads(text).get("version", text)) if text.startswith("{") else text


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _demand_free(field: str, port: int) -> None:
    if port and not _is_free(port):
        raise InfrastructureError(f"{field}: port {port} on {_HOST} is occupied; 0 takes a free one")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
        return True
