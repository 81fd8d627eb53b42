"""Who a target says that it is, and whether that is who the file says."""

import msgspec

from chaos.staging.ask import AskError, ask_json
from chaos.staging.nats import NatsMonitor
from chaos.target import Fingerprint, Target, TargetError
from chaos.toxiproxy.adapter import Toxiproxy, ToxiproxyError
from workloads.http import BadTarget


class _Model(msgspec.Struct, frozen=True):
    id: str
    owned_by: str | None = None


class _Models(msgspec.Struct, frozen=True):
    data: list[_Model]


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


def demand_fingerprint(target: Target) -> None:
    """Raises TargetError when the target is another one than the file says, AskError when it does not say."""
    wanted = {name: value for name, value in msgspec.structs.asdict(target.fingerprint).items() if value is not None}
    found = msgspec.structs.asdict(identify(target))
    for name, value in wanted.items():
        if found[name] != value:
            told = "nothing" if found[name] is None else repr(found[name])
            raise TargetError(f"fingerprint.{name}: the file says {value!r}, the target says {told}")


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
