"""`python -m chaos.toxiproxy.embedded`: Toxiproxy's flags, and `-tethered` to end with whoever started it."""

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from chaos.toxiproxy.embedded.api import API_VERSION
from chaos.toxiproxy.embedded.server import EmbeddedServer, ServerError, Settings

EXIT_FAILED = 1
EXIT_USAGE = 2
_PROGRAM = "toxiproxy-embedded"
_LEVELS = {"trace": 10, "debug": 10, "info": 20, "warn": 30, "error": 40, "fatal": 50, "panic": 50}
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")

_log = logging.getLogger(_PROGRAM)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # One line: the usage is there for who asks for it with -help.
        print(f"{_PROGRAM}: {message}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGINT or SIGTERM, then exit code 0; 1 if it cannot be started, 2 for flags that are wrong."""
    flags = _parser().parse_args(_one_dash(arguments))
    if flags.version:
        print(f"toxiproxy-server version {API_VERSION}")
        return 0
    settings = Settings(flags.host, flags.port, flags.config, flags.seed, flags.proxy_metrics, flags.runtime_metrics)
    try:
        asyncio.run(_serve(settings, flags.tethered))
    except ServerError as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


async def _serve(settings: Settings, tethered: bool) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    if tethered:
        # A thread, because not every kind of file can be waited for by the loop; it ends with the process.
        threading.Thread(target=_await_end_of_input, args=(loop, ended), daemon=True).start()
    async with EmbeddedServer(settings) as server:
        # What is there for good is not looked through again and again, which would hold up all connections.
        gc.collect()
        gc.freeze()
        logging.basicConfig(
            level=_LEVELS.get(os.environ.get("LOG_LEVEL", "info").lower(), logging.INFO),
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        )
        _log.info("version %s listens on %s, seed %d", API_VERSION, server.url, server.seed)
        await ended.wait()
        _log.info("ends")


def _await_end_of_input(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    # No input at all is one that has ended.
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    # The loop may be closed by now, when a signal came first.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(ended.set)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=_PROGRAM, add_help=False, allow_abbrev=False, description=__doc__)
    parser.add_argument("-h", "-help", action="help", help="say this")
    parser.add_argument("-host", default="127.0.0.1", help="where the API listens (127.0.0.1)")
    parser.add_argument("-port", type=_port, default=8474, help="of the API, 0 for a free one (8474)")
    parser.add_argument("-config", type=_path, help="JSON file with proxies to begin with")
    parser.add_argument("-seed", type=int, help="of everything that is left to chance")
    for name, text in (
        ("-proxy-metrics", "byte counters at /metrics"),
        ("-runtime-metrics", "figures of the process at /metrics"),
        ("-version", "print the version and end"),
        ("-tethered", "end when standard input closes, as it does when whoever started this is killed"),
    ):
        parser.add_argument(name, type=_flag, nargs="?", const=True, default=False, help=text)
    return parser


def _one_dash(arguments: Sequence[str]) -> list[str]:
    """Go takes one dash or two."""
    return [text[1:] if text.startswith("--") and len(text) > 2 else text for text in arguments]


def _path(text: str) -> Path | None:
    return Path(text) if text else None


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected 0 to 65535, got {text!r}")
    return int(text)


def _flag(text: str) -> bool:
    if text not in _TRUE + _FALSE:
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text in _TRUE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
