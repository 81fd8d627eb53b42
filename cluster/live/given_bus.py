"""A NATS server that somebody else runs, and where each node reaches it."""

import os
import re
from collections.abc import Sequence
from urllib.parse import quote, urlsplit

import msgspec

_PORT = 4222
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+):(\d{1,5})")


class GivenBus(msgspec.Struct, frozen=True):
    """address: `host:port`. credentials: `user:password` or a token, empty for none; never shown. links: by node, the
    address at which it reaches the server instead, such as a proxy in front of it."""

    address: str
    credentials: str = ""
    links: dict[str, str] = {}

    def url(self, node: str) -> str:
        """For a node's connection. Holds the credentials."""
        user, colon, password = self.credentials.partition(":")
        login = f"{quote(user, safe='')}{colon}{quote(password, safe='')}@" if self.credentials else ""
        return f"nats://{login}{self.links.get(node, self.address)}"


def given_bus(url: str | None, variable: str | None, links: Sequence[str]) -> GivenBus | None:
    """From the options of a command line; None where no server is given. Raises ValueError: option, what was expected.

    variable: of the environment, that holds the credentials. links: `NODE=HOST:PORT` each.
    """
    if url is None:
        if variable is not None or links:
            raise ValueError("--link and --nats-credentials-env: only with --nats-url, for a server of your own")
        return None
    try:
        parts = urlsplit(url)
        port = parts.port or _PORT
    except ValueError as error:
        raise ValueError(f"--nats-url {url}: {error}") from None
    if parts.scheme != "nats" or not parts.hostname:
        raise ValueError(f"--nats-url {url}: expected nats://host:port")
    if parts.username is not None:
        raise ValueError("--nats-url: holds credentials, which everybody could see; use --nats-credentials-env")
    credentials = "" if variable is None else os.environ.get(variable, "").strip()
    if variable is not None and not credentials:
        raise ValueError(f"--nats-credentials-env {variable}: this environment variable is not set, or empty")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return GivenBus(f"{host}:{port}", credentials, dict(map(_link, links)))


def _link(text: str) -> tuple[str, str]:
    node, equals, address = text.partition("=")
    match = _ADDRESS.fullmatch(address)
    if not node or not equals or match is None or int(match[2]) > 65_535:
        raise ValueError(f"--link {text}: expected NODE=HOST:PORT, such as worker-0=127.0.0.1:5222")
    return node, address
