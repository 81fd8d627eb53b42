"""Who a target says that it is, whether that is who the file says, and whom its proxies may lead to."""

import hashlib
import re

import msgspec

from chaos.staging.ask import AskError, ask_json
from chaos.staging.nats import Broker, NatsMonitor
from chaos.target import Fingerprint, Target, TargetError
from chaos.toxiproxy.adapter import Toxiproxy, ToxiproxyError
from workloads.http import BadTarget

_READABLE_MAX = 40


class _Model(msgspec.Struct, frozen=True):
    id: str
    owned_by: str | None = None


class _Models(msgspec.Struct, frozen=True):
    data: list[_Model]


class Brokers(msgspec.Struct, frozen=True):
    """The NATS servers of a target. ids: of single ones. cluster: whose servers all are. Neither: nobody tells of any.

    Names of servers are no help: two that know nothing of each other may well have the same.
    """

    ids: frozenset[str] = frozenset()
    cluster: str = ""

    def __bool__(self) -> bool:
        return bool(self.ids or self.cluster)

    def __contains__(self, broker: Broker) -> bool:
        return broker.server_id in self.ids or (bool(self.cluster) and broker.cluster == self.cluster)


def identify(target: Target) -> Fingerprint:
    """Ask the target; of what is not asked for in its file too, as far as it tells. Raises AskError, TargetError."""
    found: dict[str, str | None] = {}
    if target.nats_monitoring is not None:
        server = NatsMonitor(target.nats_monitoring).server()
        found |= {
            "nats_server_id": server.server_id,
            "nats_server_name": server.server_name or None,
            "nats_cluster": server.cluster.name or None,
        }
    owners = {_models_owner(target, number) for number in range(len(target.api.urls))}
    # Several names would be several clusters: then none is told.
    found["models_owner"] = owners.pop() if len(owners) == 1 else None
    versions = {_version(name, url) for name, url in target.toxiproxies.items()}
    found["toxiproxy_version"] = versions.pop() if len(versions) == 1 else None
    return Fingerprint(**found)


def cluster_key(found: Fingerprint) -> str:
    """The name under which harm to a cluster is kept: the same for all its target files, whatever those ask of it.

    Of what it says of itself, what lasts longest: a name of its NATS, which its owner gave it, before the owner of its
    models, which others may have too (they would share one budget), before an id, which ends with a restart.
    """
    own_name = found.nats_server_name if found.nats_server_name != found.nats_server_id else None
    known = {
        "nats_cluster": found.nats_cluster,
        "nats_server_name": own_name,
        "models_owner": found.models_owner,
        "nats_server_id": found.nats_server_id,
    }
    for field, value in known.items():
        if value:
            readable = re.sub(r"[^A-Za-z0-9]+", "-", str(value))[:_READABLE_MAX]
            return f"{field}-{readable}-{hashlib.sha256(str(value).encode()).hexdigest()[:12]}"
    raise TargetError("fingerprint: the target says nothing of itself by which its harm could be counted")


def demand_fingerprint(target: Target) -> Brokers:
    """The target's own brokers. Raises TargetError when it is another one than the file says, AskError when it does
    not say."""
    wanted = {name: value for name, value in msgspec.structs.asdict(target.fingerprint).items() if value is not None}
    found = msgspec.structs.asdict(identify(target))
    for name, value in wanted.items():
        if found[name] not in (value if isinstance(value, tuple) else (value,)):
            told = "nothing" if found[name] is None else repr(found[name])
            raise TargetError(f"fingerprint.{name}: the file says {_told(value)}, the target says {told}")
    if target.nats_monitoring is None:
        return Brokers()
    ids = {str(found["nats_server_id"]), *target.fingerprint.server_ids()}
    return Brokers(NatsMonitor(target.nats_monitoring).routed() | ids, target.fingerprint.nats_cluster or "")


def _told(value: str | tuple[str, ...]) -> str:
    return " or ".join(map(repr, value)) if isinstance(value, tuple) else repr(value)


def _models_owner(target: Target, number: int) -> str | None:
    """None where the API has no list of models, or the model no owner."""
    try:
        headers = target.api.targets()[number].headers()
    except BadTarget as error:
        raise TargetError(f"api.key_env: {error}") from None
    kept = {name: value for name, value in headers.items() if name == "Authorization"}
    try:
        models = ask_json(f"{target.api.urls[number].rstrip('/')}/models", _Models, headers=kept).data
    except AskError:
        if target.fingerprint.models_owner is not None:
            raise
        return None
    return next((model.owned_by for model in models if model.id == target.api.model), None)


def _version(name: str, url: str) -> str:
    try:
        return Toxiproxy(url).version()
    except ToxiproxyError as error:
        raise AskError(f"toxiproxies.{name}: {error}") from None
