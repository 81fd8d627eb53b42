"""`python -m cluster.serve`: a cluster on this machine that stays up, with an OpenAI-compatible HTTP server in front.

Exit codes: 2 for wrong usage or what is no model, 5 when it cannot be brought up, 130 after Ctrl-C.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from analysis.arguments import NotWritable, check_writable, path, port, whole_number
from cluster.live.given_bus import given_bus
from cluster.profiles import ProfileError, load_policy

_PORT = 8000
_POLICY = "serving"
_NODES_MAX = 64
EXIT_USAGE, EXIT_INFRASTRUCTURE, EXIT_INTERRUPTED = 2, 5, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _main(options)
    except KeyboardInterrupt:
        # While nothing had been started: from then on the signal is obeyed in order.
        return EXIT_INTERRUPTED


def _main(options: argparse.Namespace) -> int:
    try:
        policy = load_policy(options.policy)
        keys = _keys(options.api_key_env)
        bus = given_bus(options.nats_url, options.nats_credentials_env, options.link)
        if options.log_dir is not None:
            check_writable(options.log_dir)
    except NotWritable as error:
        print(f"cluster.serve: --log-dir {error}", file=sys.stderr)
        return EXIT_USAGE
    except (ProfileError, ValueError) as error:
        print(f"cluster.serve: {error}", file=sys.stderr)
        return EXIT_USAGE
    # Imported here: it takes a second, in which Ctrl-C has to be obeyed too.
    from cluster.live.serving import CannotServe, Plan, WrongUsage, check_port, serve, served_models

    try:
        models = served_models(options.model or ["tiny"])
        check_port(options.host, options.port)
        with tempfile.TemporaryDirectory(prefix="mlx-chaos-serve-") as scratch:
            logs = Path(options.log_dir or scratch).resolve()
            logs.mkdir(parents=True, exist_ok=True)
            plan = Plan(
                models,
                options.workers,
                options.controllers,
                options.host,
                options.port,
                policy,
                options.api_key_env,
                keys,
                logs,
                bus,
            )
            return asyncio.run(serve(plan))
    except WrongUsage as error:
        print(f"cluster.serve: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (CannotServe, OSError, ValueError) as error:
        print(f"cluster.serve: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_INFRASTRUCTURE


def _keys(variable: str | None) -> tuple[str, ...]:
    """The API keys in an environment variable, separated by commas or white space. Raises ValueError."""
    if variable is None:
        return ()
    keys = tuple(os.environ.get(variable, "").replace(",", " ").split())
    if not keys:
        raise ValueError(f"--api-key-env {variable}: this environment variable is not set, or empty")
    return keys


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cluster.serve", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", action="append", metavar="M", help="tiny (default), a directory or a hub id; may be repeated")
    add("--workers", type=whole_number(1, _NODES_MAX), default=1, metavar="N", help="default 1")
    add("--controllers", type=whole_number(1, _NODES_MAX), default=1, metavar="N", help="default 1")
    add("--host", default="127.0.0.1", metavar="H", help="where HTTP listens, default 127.0.0.1")
    add("--port", type=port, default=_PORT, metavar="P", help=f"default {_PORT}; 0 takes a free one")
    add("--policy", default=_POLICY, metavar="NAME|FILE", help=f"profile or YAML file, default {_POLICY}")
    add("--api-key-env", metavar="NAME", help="environment variable with the keys that callers may use")
    add("--nats-url", metavar="URL", help="a NATS server that runs already, nats://host:port; default: one of its own")
    add("--nats-credentials-env", metavar="NAME", help="environment variable with its user:password, or a token")
    add("--link", action="append", default=[], metavar="NODE=HOST:PORT", help="where a node reaches that server")
    add("--log-dir", type=path, metavar="D", help="keep the logs of all processes here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
