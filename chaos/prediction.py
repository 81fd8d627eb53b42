"""When a fault must have been noticed at the latest by what the policy says: printed beside what was measured.

Every mechanism below is counted from the injection, without travel times and without a busy host. Which one comes first
depends on the load; that each comes at the latest when it says depends on the policy only, so the least of them is a
bound. A fault that no mechanism has to notice (a slow link, a slow worker) has none. What travel, clocks and a busy
host may add is the tolerance of whoever compares, see analysis.recovery.
"""

import math

import msgspec

from chaos.experiment import BROKER, FaultSpec
from chaos.faults.roles import role_of
from chaos.worlds.world import Cut
from cluster.policy import Policy


class Prediction(msgspec.Struct, frozen=True):
    """detection_s: seconds from the injection to the first sign of it, at the latest. by: the mechanism, for people."""

    detection_s: float
    by: str


def predict(spec: FaultSpec, policy: Policy) -> Prediction | None:
    """The earliest of all mechanisms that must notice the fault; None when none has to."""
    found = [mechanism for target in spec.targets for mechanism in _mechanisms(spec, target, policy)]
    return min(found, key=lambda prediction: prediction.detection_s, default=None)


def _mechanisms(spec: FaultSpec, target: str, policy: Policy) -> list[Prediction]:
    role = BROKER if target == BROKER else role_of(target)
    match spec.kind, spec.mode, role:
        case ("partition" | "flap", Cut.REFUSE | Cut.RESET, _) | ("broker_kill" | "broker_restart", _, _):
            return [Prediction(0.0, "the connection is closed")]
        case ("partition" | "flap", Cut.DOWNSTREAM, "worker"):
            # What it sends still arrives, its heartbeats too: only its own pings tell the worker.
            return [_link_pings(policy)]
        case ("partition" | "flap" | "freeze" | "kill", _, "worker"):
            own = [_link_pings(policy)] if spec.kind in ("partition", "flap") and spec.mode != Cut.UPSTREAM else []
            return [_heartbeats(policy), *own]
        case ("partition" | "flap" | "freeze" | "kill", _, "controller"):
            return [_contact(policy), *([_link_pings(policy)] if spec.kind in ("partition", "flap") else [])]
        case ("partition" | "flap", _, "client"):
            return [_contact(policy), _link_pings(policy)]
        case ("broker_freeze", _, _):
            return [_heartbeats(policy), _contact(policy), _link_pings(policy)]
        case ("host_kill" | "host_freeze", _, _):
            return [_heartbeats(policy)]
        case ("host_cut", _, _):
            return _mechanisms(msgspec.structs.replace(spec, kind="partition"), "worker", policy)
        case ("engine_dies", "silent", _):
            return _silent_engine(policy)
        case ("engine_dies", "loud", _):
            return [Prediction(0.0, "the engine says that it ends")]
    return []


def _heartbeats(policy: Policy) -> Prediction:
    membership = policy.membership
    return Prediction(membership.suspect_after_s, f"no heartbeat for {membership.suspect_after_s:g} s")


def _link_pings(policy: Policy) -> Prediction:
    link = policy.link
    # Up to one interval until the next ping, and the one that finds too many unanswered.
    silent_s = link.ping_s * (link.pings_outstanding_max + 1)
    return Prediction(silent_s, f"{link.pings_outstanding_max} pings to the broker unanswered")


def _contact(policy: Policy) -> Prediction:
    client = policy.client
    # The last pong may have come a moment before, and silence is looked at with each ping.
    lost_s = client.ping_s * (math.floor(client.contact_lost_s / client.ping_s) + 1)
    return Prediction(lost_s, f"a client hears no pong for {client.contact_lost_s:g} s")


def _silent_engine(policy: Policy) -> list[Prediction]:
    silent_s = policy.membership.engine_silent_max_s
    if silent_s is None:
        return []
    late_s = silent_s + 2 * policy.membership.heartbeat_s
    return [Prediction(late_s, f"a heartbeat says that the engine has owed an answer for {silent_s:g} s")]
