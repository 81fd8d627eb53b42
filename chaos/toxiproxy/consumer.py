"""How toxiproxy-python is made to talk to one server, within a deadline, and to look at the answers it gets.

The package treats a 500 as success, has no time-outs, and keeps the server's address on a class that all clients of
a process share. Each client here therefore runs its own private copy of the package's two client modules, whose HTTP
calls go through a consumer of its own.
"""

import importlib.util
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import requests
from toxiproxy.api import APIConsumer
from toxiproxy.exceptions import InvalidToxic, NotFound, ProxyExists

from chaos.toxiproxy.errors import ToxiproxyMalformed, ToxiproxyRefused, one_line

T = TypeVar("T")


def make_consumer(host: str, port: int) -> Any:
    """A consumer class of its own: the package keeps host and port on the class.

    Its calls raise ToxiproxyRefused and ToxiproxyMalformed, and requests' own errors. `local.ends_s` (monotonic) is
    when the calling thread has to be done.
    """

    class Consumer(APIConsumer):  # type: ignore[misc]
        local = threading.local()

        @classmethod
        def get(cls, url: str, params: Any = None, **options: Any) -> requests.Response:
            return cls._checked(super().get, url, params=params, **options)

        @classmethod
        def delete(cls, url: str, **options: Any) -> requests.Response:
            return cls._checked(super().delete, url, **options)

        @classmethod
        def post(cls, url: str, data: Any = None, json: Any = None, **options: Any) -> requests.Response:
            return cls._checked(super().post, url, data=data, json=json, **options)

        @classmethod
        def _checked(cls, send: Callable[..., requests.Response], url: str, **options: Any) -> requests.Response:
            left_s = cls.local.ends_s - time.monotonic()
            # A later step of a call that has been given up must not change anything any more.
            if left_s <= 0:
                raise requests.Timeout
            try:
                # A control call on loopback has no business with the proxy servers of the environment.
                answer = send(url, timeout=left_s, allow_redirects=False, proxies={"http": "", "all": ""}, **options)
            except (ProxyExists, NotFound, InvalidToxic) as error:
                status = 409 if isinstance(error, ProxyExists) else 404 if isinstance(error, NotFound) else 400
                raise _refusal(status, error.args[0]) from error
            if answer.status_code not in (200, 201, 204):
                raise _refusal(answer.status_code, answer.content)
            # Before the package looks into it: every answer of the API with a body is a JSON object.
            if answer.status_code != 204:
                decode(answer.content, dict[str, Any])
            return answer

    Consumer.host = host
    Consumer.port = port
    return Consumer


def client_classes(consumer: Any) -> tuple[Any, Any]:
    """The package's Proxy and Toxiproxy, from private copies of their modules that call `consumer`."""
    classes: list[Any] = []
    for module_name, class_name in (("toxiproxy.proxy", "Proxy"), ("toxiproxy.server", "Toxiproxy")):
        spec = importlib.util.find_spec(module_name)
        assert spec is not None
        assert spec.loader is not None
        module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.APIConsumer = consumer
        if classes:
            module.Proxy = classes[0]
        classes.append(getattr(module, class_name))
    return classes[0], classes[1]


def _refusal(status: int, body: bytes) -> ToxiproxyRefused:
    try:
        text = decode(body, dict[str, Any]).get("error", "")
    except ToxiproxyMalformed:
        text = body.decode("utf-8", "replace")
    return ToxiproxyRefused(f"status {status}: {' '.join(str(text).split())[:200] or 'no text'}", status)


def decode(body: bytes, shape: type[T]) -> T:
    """An answer's body. Raises ToxiproxyMalformed."""
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.MsgspecError as error:
        raise ToxiproxyMalformed(f"unreadable answer: {one_line(error)}") from error
