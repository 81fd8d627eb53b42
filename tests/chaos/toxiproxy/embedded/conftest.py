"""The embedded server, as a process of its own and with sockets at both ends of its proxies."""

from tests.chaos.toxiproxy.conformance.conftest import embedded, make, upstream

__all__ = ["embedded", "make", "upstream"]
