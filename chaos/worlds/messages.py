"""What rules for messages are in the words of message faults, the same for every world."""

from collections.abc import Sequence

from chaos.experiment import Experiment
from chaos.worlds.world import Meddling, MessageRule
from cluster.protocol import Subject

PPM = 1_000_000
KINDS = tuple(f"{meddling}_messages" for meddling in Meddling)
"""Fault kinds that meddle with messages: they need somebody on the way who knows what a message is."""


def meddled_nodes(experiment: Experiment) -> Sequence[str]:
    """The nodes on whose links an experiment meddles with messages."""
    return list(
        dict.fromkeys(target for spec in experiment.faults.values() if spec.kind in KINDS for target in spec.targets)
    )


def toxic_kind(rule: MessageRule) -> str:
    """The kind of toxic that carries a rule out."""
    return f"nats_{rule.meddling}"


def toxic_name(rule: MessageRule) -> str:
    """What its toxic is called; rules that differ only in what they do to a message cannot be in force together."""
    return f"{rule.meddling}_{rule.message or 'any'}_{rule.direction}"


def toxic_attributes(rule: MessageRule) -> dict[str, object]:
    """The attributes of its toxic. Only what goes to inboxes is meant; echoes and the like are left alone."""
    common = {"subject": Subject.of("*"), "message": rule.message, "share_ppm": round(rule.share * PPM)}
    return {**common, **dict(rule.attributes)}
