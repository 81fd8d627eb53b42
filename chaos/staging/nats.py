"""What a NATS server says of itself and of its clients, over its monitoring endpoint."""

import msgspec

from chaos.staging.ask import ask_json

_CONNECTIONS_MAX = 4096


class ServerName(msgspec.Struct, frozen=True):
    """The name that a server has in its cluster."""

    name: str = ""


class NatsServer(msgspec.Struct, frozen=True):
    """Who it is, from /varz."""

    server_id: str
    server_name: str = ""
    version: str = ""
    cluster: ServerName = ServerName()


class Broker(msgspec.Struct, frozen=True):
    """Who a server says that it is to everybody who connects, in its INFO line."""

    server_id: str
    server_name: str = ""
    cluster: str = ""


class _Route(msgspec.Struct, frozen=True):
    remote_id: str = ""


class _Routes(msgspec.Struct, frozen=True):
    routes: list[_Route] = []


class _Client(msgspec.Struct, frozen=True):
    cid: int
    in_msgs: int
    name: str = ""
    authorized_user: str = ""


class _Connections(msgspec.Struct, frozen=True):
    connections: list[_Client]


class NatsMonitor:
    """Asks one server. Methods block for two seconds at most and raise AskError."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def server(self) -> NatsServer:
        """Who it is."""
        return ask_json(f"{self.url}/varz", NatsServer)

    def routed(self) -> frozenset[str]:
        """The ids of the servers that it has routes to: the others of its cluster."""
        routes = ask_json(f"{self.url}/routez", _Routes).routes
        return frozenset(route.remote_id for route in routes) - {""}

    def heard(self, client: str) -> dict[int, int]:
        """The open connections of a client, by NATS name or user: id to the number of messages that came from it."""
        return {each.cid: each.in_msgs for each in self._clients() if client in (each.name, each.authorized_user)}

    def names(self) -> list[str]:
        """Of everybody who is connected."""
        return sorted({each.name or each.authorized_user for each in self._clients()} - {""})

    def _clients(self) -> list[_Client]:
        url = f"{self.url}/connz?auth=1&limit={_CONNECTIONS_MAX}"
        return ask_json(url, _Connections).connections
