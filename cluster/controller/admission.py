"""Admission: whether the controller takes in a request that it has not heard of before."""

from cluster.controller.ledger import Ledger
from cluster.controller.membership import Membership
from cluster.errors import Code
from cluster.protocol import PRIORITIES, Submit


def refusal(submit: Submit, ledger: Ledger, membership: Membership, now: float) -> Code | None:
    """Why a new request is not taken in; None: it is. `now` in the controller's clock, seconds."""
    if now >= submit.deadline_s:
        return Code.DEADLINE_EXCEEDED
    if ledger.full:
        return Code.OVERLOADED
    if not submit.prompt or submit.max_tokens <= len(submit.delivered) or submit.priority not in PRIORITIES:
        return Code.INVALID_REQUEST
    if membership.any_alive() and not membership.knows_model(submit.model):
        return Code.MODEL_NOT_FOUND
    return None
