"""The target file: a cluster that somebody else runs, and what its owner allows to be done to it.

`python -m chaos.target FILE` checks the file, asks the target who it is and prints a fingerprint to paste. It changes
nothing there.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit

import msgspec

from chaos.experiment import ExperimentError
from chaos.staging.hours import Hours
from chaos.toxiproxy.adapter import Toxiproxy, ToxiproxyError
from chaos.worlds.world import Cut
from cluster.numbers import demand_finite
from cluster.policy import Seconds
from cluster.yaml_file import YamlError, read_yaml
from workloads.http import BadTarget, HttpTarget
from workloads.spec import Positive, Rate

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$?\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_CUTS = tuple(cut.value for cut in Cut)
KINDS = ("partition", "flap", "latency", "bandwidth", "slicer")
"""Fault kinds that work through a Toxiproxy of others."""
MODAL = ("partition", "flap")
"""Those that have modes, each of which may be allowed alone: `partition.refuse`."""

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class TargetError(ExperimentError):
    """The target file is wrong, or what is asked is against it. One line: file or field, what, what was expected."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Api(_Section, frozen=True):
    """Where requests go: OpenAI-compatible base URLs, with /v1; see workloads.http.HttpTarget for the rest.

    session_field: the field of a request that names its session, empty where the API knows none.
    """

    urls: tuple[str, ...]
    model: str
    kind: Literal["chat", "completions"] = "chat"
    key_env: str = ""
    length_field: str = "max_tokens"
    session_field: str = ""

    def targets(self) -> list[HttpTarget]:
        """One for each URL. Raises BadTarget."""
        return [
            HttpTarget(url, self.model, self.kind, self.key_env, self.length_field, self.session_field)
            for url in self.urls
        ]


class LinkSpec(_Section, frozen=True):
    """A node's link: which proxy of which Toxiproxy it is. Only links that are listed here may be touched.

    client_name: the NATS client name (or user) under which the broker lists the node. upstream, listen: where the proxy
    must lead to and listen, in Toxiproxy's words. upstream must be said where a connection from here cannot tell which
    broker is behind the proxy. speaks_every_s: the node sends something at least that often, such as a heartbeat.
    """

    toxiproxy: str
    proxy: str
    client_name: str = ""
    upstream: str = ""
    listen: str = ""
    speaks_every_s: Annotated[float, msgspec.Meta(gt=0, le=10)] = 2.0


class Probe(_Section, frozen=True):
    """A Prometheus query that gives one number, and what it must be while the cluster is well."""

    query: str
    at_most: float | None = None
    at_least: float | None = None


class Prometheus(_Section, frozen=True):
    """url: such as http://10.0.0.5:9090. Every probe must hold before each injection and at the end."""

    url: str
    probes: dict[str, Probe]


class Fingerprint(_Section, frozen=True):
    """Who the target says that it is; asked before each injection. One of the first four at least.

    The broker that is asked must be the one, or one of those, that the first three tell of; and every proxy of a link
    must lead to that one, to another that it has a route to, to one whose id is here, or to one of nats_cluster.
    nats_server_id: one or several; changes with each restart of the broker. models_owner: `owned_by` of the model in
    /v1/models. toxiproxy_version alone would tell no two clusters apart.
    """

    nats_server_id: str | tuple[str, ...] | None = None
    nats_server_name: str | None = None
    nats_cluster: str | None = None
    models_owner: str | None = None
    toxiproxy_version: str | None = None

    def server_ids(self) -> tuple[str, ...]:
        """nats_server_id, as several."""
        said = self.nats_server_id or ()
        return (said,) if isinstance(said, str) else said


class Budget(_Section, frozen=True):
    """Harm that may be done in a day of the hours' time zone, all runs together. A day's count is kept on disk.

    failed_requests: of ours that failed or were refused, whatever the reason. fault_s: seconds of fault, each link
    counted; a fault counts with its whole time limit until its heal is proven.
    """

    failed_requests: Annotated[int, msgspec.Meta(ge=0)]
    fault_s: Annotated[float, msgspec.Meta(ge=0)]


class Load(_Section, frozen=True):
    """rate_max: requests per second that the owner allows, such as 5/s; shares of an experiment are shares of it."""

    rate_max: str
    in_flight_max: Positive = 64


class Steady(_Section, frozen=True):
    """What has to be seen in the last `window_s`, of `requests_min` requests at least, for anything to be injected."""

    success_min: Share = 0.99
    requests_min: Positive = 20
    window_s: Seconds = 15.0
    latency_p95_s_max: Seconds | None = None


class Stop(_Section, frozen=True):
    """How anybody ends a run, looked at each second at least. One of them.

    file: ends it as soon as it exists. url: the run goes on only while this answers 200.
    """

    file: str | None = None
    url: str | None = None


class Target(_Section, frozen=True, kw_only=True):
    """A whole target file. faults: kinds, or kinds with a mode, that are allowed. links_max: at once under a fault."""

    name: str
    owner: str
    api: Api
    workers: Positive
    controllers: Positive = 1
    toxiproxies: dict[str, str]
    links: dict[str, LinkSpec]
    nats_monitoring: str | None = None
    prometheus: Prometheus | None = None
    fingerprint: Fingerprint
    faults: tuple[str, ...]
    hours: Hours
    budget: Budget
    load: Load
    stop: Stop
    steady: Steady = Steady()
    links_max: Positive = 1
    ttl_s_max: Seconds = 120.0
    allow_public: tuple[str, ...] = ()

    def urls(self) -> dict[str, str]:
        """Every address that a run talks to, by the field that says it."""
        found = {f"api.urls[{number}]": url for number, url in enumerate(self.api.urls)}
        found |= {f"toxiproxies.{name}": url for name, url in self.toxiproxies.items()}
        if self.nats_monitoring is not None:
            found["nats_monitoring"] = self.nats_monitoring
        if self.prometheus is not None:
            found["prometheus.url"] = self.prometheus.url
        if self.stop.url is not None:
            found["stop.url"] = self.stop.url
        return found

    def allows(self, kind: str, mode: str | None) -> bool:
        """Whether faults of this kind and mode are allowed."""
        return kind in self.faults or f"{kind}.{mode}" in self.faults

    def rate_per_s(self) -> float:
        """load.rate_max."""
        per_s = Rate.parse(self.load.rate_max).per_s
        assert per_s is not None, "checked when it was read"
        return per_s

    def settings(self) -> list[str]:
        """What it says about the cluster, as settings of an experiment."""
        return [
            f"cluster.workers={self.workers}",
            f"cluster.controllers={self.controllers}",
            f"cluster.model={msgspec.json.encode(self.api.model).decode()}",
            f"workload.generators={len(self.api.urls)}",
        ]


def load_target(path: Path) -> Target:
    """The target of a file, wholly checked. Nothing is asked of anybody. Raises TargetError."""
    try:
        document = read_yaml(path)
    except YamlError as error:
        raise TargetError(str(error)) from None
    if not isinstance(document, dict):
        raise TargetError(f"{path}: expected a mapping of fields, got {type(document).__name__}")
    try:
        target = _convert(cast(dict[str, Any], document))
        _check(target)
    except TargetError as error:
        raise TargetError(f"{path}: {error}") from None
    return target


def _convert(document: dict[str, Any]) -> Target:
    """Links and probes one by one, so that an error can name the entry."""
    whole = dict(document)
    links = whole.get("links")
    if isinstance(links, dict):
        whole["links"] = {str(name): _typed(f"links.{name}", value, LinkSpec) for name, value in links.items()}
    prometheus = whole.get("prometheus")
    if isinstance(prometheus, dict) and isinstance(prometheus.get("probes"), dict):
        probes = {
            str(name): _typed(f"prometheus.probes.{name}", value, Probe) for name, value in prometheus["probes"].items()
        }
        whole["prometheus"] = {**prometheus, "probes": probes}
    return cast(Target, _typed("", whole, Target))


def _typed(prefix: str, value: object, kind: type[Any]) -> Any:
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, ValueError) as error:
        match = _AT.match(str(error))
        assert match is not None
        field = ".".join(part for part in (prefix, match["path"] or "") if part)
        raise TargetError(f"{field + ': ' if field else ''}{_line(match['what'])}") from None


def _check(target: Target) -> None:
    """What the fields must be to each other. Raises TargetError."""
    try:
        demand_finite(target)
    except ValueError as error:
        raise TargetError(str(error)) from None
    if _NAME.fullmatch(target.name) is None:
        raise TargetError(f"name: expected letters, digits, _ and -, 64 at most, got {target.name[:80]!r}")
    if not target.owner.strip():
        raise TargetError("owner: expected whom to call")
    _check_api(target)
    _check_urls(target)
    _check_links(target)
    for number, allowed in enumerate(target.faults):
        kind, dot, mode = allowed.partition(".")
        if kind not in KINDS or (dot and (kind not in MODAL or mode not in _CUTS)):
            known = f"{', '.join(KINDS)}, or partition and flap with a mode such as partition.stall"
            raise TargetError(f"faults[{number}]: expected one of {known}, got {allowed[:40]!r}")
    said = target.fingerprint
    names = ("nats_server_id", "nats_server_name", "nats_cluster")
    if not any((*(getattr(said, name) for name in names), said.models_owner)):
        what = f"expected {', '.join(names)} or models_owner; python -m chaos.target FILE prints them"
        raise TargetError(f"fingerprint: {what}")
    for name in names:
        if getattr(said, name) is not None and target.nats_monitoring is None:
            raise TargetError(f"fingerprint.{name}: nobody could be asked; expected nats_monitoring too")
    if target.stop.file is None and target.stop.url is None:
        raise TargetError("stop: expected file or url, so that anybody can end a run")
    file = target.stop.file
    if file is not None and (not os.path.isabs(file) or "\0" in file):
        # A relative one would be another file for the one who wants to end a run than for the run.
        raise TargetError(f"stop.file: expected an absolute path, got {file[:80]!r}")
    for name, probe in (target.prometheus.probes if target.prometheus is not None else {}).items():
        if probe.at_most is None and probe.at_least is None:
            raise TargetError(f"prometheus.probes.{name}: expected at_most or at_least")


def _check_api(target: Target) -> None:
    if not target.api.urls:
        raise TargetError("api.urls: expected at least one")
    try:
        target.api.targets()
    except BadTarget as error:
        raise TargetError(f"api.urls: {error}") from None
    try:
        rate = Rate.parse(target.load.rate_max)
    except ValueError as error:
        raise TargetError(f"load.rate_max: {error}") from None
    if rate.per_s is None or rate.per_s <= 0:
        raise TargetError(f"load.rate_max: expected requests per second such as 5/s, got {target.load.rate_max!r}")


def _check_urls(target: Target) -> None:
    for field, url in target.urls().items():
        try:
            parts = urlsplit(url)
            parts.port  # noqa: B018 - it is read only to see whether it is one
        except ValueError as error:
            raise TargetError(f"{field}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise TargetError(f"{field}: expected a URL such as http://127.0.0.1:8222, got {url[:80]!r}")
        if parts.username is not None or parts.password is not None:
            raise TargetError(f"{field}: holds a user name or password, which would be stored with the results")
    for name, url in target.toxiproxies.items():
        try:
            Toxiproxy(url)
        except ToxiproxyError as error:
            raise TargetError(f"toxiproxies.{name}: {error}") from None


def _check_links(target: Target) -> None:
    if not target.links:
        raise TargetError("links: expected at least one link that may be touched")
    workers = [f"worker-{number}" for number in range(target.workers)]
    many = target.controllers > 1
    controllers = [f"controller-{number}" for number in range(target.controllers)] if many else ["controller"]
    seen: dict[tuple[str, str], str] = {}
    for node, link in target.links.items():
        if node not in (*workers, *controllers):
            there = f"{', '.join((*workers, *controllers)[:12])}, by workers: {target.workers} and controllers"
            raise TargetError(f"links.{node}: expected one of {there}")
        if link.toxiproxy not in target.toxiproxies:
            known = ", ".join(target.toxiproxies) or "nothing"
            raise TargetError(f"links.{node}.toxiproxy: no {link.toxiproxy!r} in toxiproxies, there is {known}")
        place = (target.toxiproxies[link.toxiproxy], link.proxy)
        if place in seen:
            raise TargetError(f"links.{node}.proxy: {link.proxy} is the link of {seen[place]} already")
        seen[place] = node
        if link.client_name and target.nats_monitoring is None:
            raise TargetError(f"links.{node}.client_name: only nats_monitoring could tell of it, which is missing")


def _line(error: object) -> str:
    return " ".join(str(error).replace("`", "").split())[:300]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0, 2 for a wrong file or address, 5 when nobody answers."""
    parser = argparse.ArgumentParser(prog="python -m chaos.target", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    path: Path = parser.parse_args(arguments).file
    # Imported here: they know what a target is.
    from chaos.staging.addresses import demand_private
    from chaos.staging.ask import AskError
    from chaos.staging.identity import identify

    try:
        target = load_target(path)
        demand_private(target)
        found = identify(target)
    except ExperimentError as error:
        # Not only TargetError: run as a program, this module is another one than that which the others import.
        print(f"chaos.target: {error}", file=sys.stderr)
        return 2
    except AskError as error:
        print(f"chaos.target: {error}", file=sys.stderr)
        return 5
    print(f"{target.name}, of {target.owner}, says that it is:\nfingerprint:")
    for name, value in msgspec.structs.asdict(found).items():
        if value is not None:
            print(f"  {name}: {msgspec.json.encode(value).decode()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
