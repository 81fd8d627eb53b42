"""`python -m cluster.doctor`: is every host fit to take part? Nothing is started, nothing is changed.

Exit code 0: every host is. 1: something has to be mended; each line says how. 2: usage. 5: Ray cannot be had.
"""

import argparse
import asyncio
import contextlib
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from analysis.arguments import whole_number
from cluster.doctor import probe
from cluster.doctor.findings import Facts, Finding, examine, facts_of
from cluster.live.ray_variables import prepare_to_join

EXIT_UNFIT = 1
EXIT_INFRASTRUCTURE = 5
_LOOK_S = 60.0


class DoctorError(Exception):
    """The hosts cannot be looked at. One line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.address is None:
            findings = alone(options.model, options.workers)
        else:
            prepare_to_join()
            findings = asyncio.run(everywhere(options.address, options.model, options.workers, options.port))
    except DoctorError as error:
        print(f"cluster.doctor: {error}", file=sys.stderr)
        return EXIT_INFRASTRUCTURE
    print(told(findings, everything=options.all))
    return 0 if all(finding.good for finding in findings) else EXIT_UNFIT


def alone(model: str, workers: int) -> list[Finding]:
    """Of this host only: without Ray nobody else can be asked."""
    here = facts_of(probe.look(model, (), _own_address()))
    return examine("host-0", here, here, model=model, weights_bytes=_weights(model), nodes=workers)


async def everywhere(address: str, model: str, workers: int, ports: Sequence[int]) -> list[Finding]:
    """Of every host of a running Ray cluster. ports: of this host, which the others must reach. Raises DoctorError."""
    # Imported here, because it imports Ray, which reads its variables then.
    from cluster.live import actors

    try:
        actors.connect(address)
    except actors.RayUnavailable as error:
        raise DoctorError(str(error)) from error
    hosts = actors.ray_hosts()
    own = next((host for host in hosts if host.ray_node == actors.own_ray_node()), None)
    if own is None:
        raise DoctorError("no Ray node runs on this host; start it on one of the cluster's")
    hosts.remove(own)
    gcs = actors.gcs_port()
    with _listening(own.address, ports) as open_ports:
        here = facts_of(probe.look(model, (), own.address))
        targets = tuple((own.address, port) for port in (*open_ports, gcs))
        looks = [_ask(actors, host, model, targets) for host in hosts]
        there = await asyncio.gather(*looks)
    weights = _weights(model)
    name = f"host-0 ({own.address})"
    findings = examine(name, here, here, model=model, weights_bytes=weights, nodes=workers)
    for number, found in enumerate(there, 1):
        name = f"host-{number} ({hosts[number - 1].address})"
        if isinstance(found, Finding):
            findings.append(Finding(name, found.check, False, found.said, found.fix))
        else:
            findings += examine(name, here, found, model=model, weights_bytes=weights, nodes=workers)
    return findings


def told(findings: Sequence[Finding], *, everything: bool) -> str:
    """A line for each finding that asks for something, or for each at all, and one that sums up."""
    lines = []
    for finding in findings:
        mark = "FIX" if not finding.good else "ok" if finding.applies else "n/a"
        if everything or not finding.good:
            lines.append(f"{mark:4}{finding.host}  {finding.check}: {finding.said}")
            lines += [f"            {finding.fix}"] if finding.fix else []
    hosts = len(dict.fromkeys(finding.host for finding in findings))
    bad = sum(not finding.good for finding in findings)
    absent = sum(not finding.applies for finding in findings)
    said = f"{hosts} hosts, {len(findings)} checks: {bad} to mend, {absent} not applicable here"
    return "\n".join([*lines, said if hosts > 1 else said.replace("hosts", "host", 1)])


async def _ask(actors: Any, host: Any, model: str, targets: Sequence[tuple[str, int]]) -> Facts | Finding:
    asked = actors.run_on(host.ray_node, probe.look, model, targets, host.address, by_value=probe)
    try:
        return facts_of(await asyncio.wait_for(asked, _LOOK_S))
    except (*actors.RAY_ERRORS, TimeoutError) as error:
        said = " ".join(str(error).split())[-200:] or f"no answer within {_LOOK_S:g} s"
        fix = "end Ray there (`ray stop`) and start it again, as ray_config.yaml does"
        return Finding(host.address, "looking at it", False, said, fix)


@contextlib.contextmanager
def _listening(address: str, ports: Sequence[int]) -> Iterator[list[int]]:
    """Something that takes connections where NATS and Toxiproxy will, for as long as others try."""
    with contextlib.ExitStack() as stack:
        found = []
        for port in ports or (0,):
            try:
                server = stack.enter_context(socket.create_server((address, port), backlog=64))
            except OSError as error:
                raise DoctorError(f"port {port} of {address} cannot be listened on: {error.strerror}") from error
            found.append(int(server.getsockname()[1]))
        yield found


def _own_address() -> str:
    """The address from which this host would speak to others; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked, contextlib.suppress(OSError):
        asked.connect(("192.0.2.1", 9))
        address: str = asked.getsockname()[0]
        return address
    return "127.0.0.1"


def _weights(model: str) -> int:
    """Bytes of a model's weights, 0 where it is not here."""
    from cluster.engine.weights import ModelUnavailable, model_directory

    with contextlib.suppress(ModelUnavailable, OSError, ValueError):
        return sum(path.stat().st_size for path in model_directory(model, download=False).glob("*.safetensors"))
    return 0


_count = whole_number(1, 64)
_port = whole_number(1, 65_535)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.doctor",
        description="Look at every host of a Ray cluster, or at this one, before anything is started.",
        epilog="exit codes: 0 fit, 1 something to mend, 2 usage, 5 Ray cannot be had",
    )
    parser.add_argument("--address", help="a running Ray cluster, or auto; without it only this host is looked at")
    parser.add_argument("--model", default="tiny", help="what each host shall serve (default tiny)")
    parser.add_argument("--workers", type=_count, default=1, help="how many workers each host shall have (default 1)")
    parser.add_argument(
        "--port", type=_port, action="append", default=[], help="a port of this host to be reached; may be repeated"
    )
    parser.add_argument("--all", action="store_true", help="say also what is as it should be")
    return parser


if __name__ == "__main__":
    sys.exit(main())
