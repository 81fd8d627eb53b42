"""Changes of a verdict, posted to a webhook: JSON with a `text` that Slack and its like show, and the facts beside."""

from datetime import UTC, datetime

import aiohttp
import msgspec

from chaos.scheduling.records import Change

LIMIT_S = 10.0
_REASON_MAX = 500
_ESCAPED = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
"""What chat servers take for structure."""


class _Body(msgspec.Struct, frozen=True):
    text: str
    id: str
    schedule: str
    entry: str
    verdict: str
    before: str
    reason: str
    slot: str
    results: str
    quarantined: bool
    began: bool
    """Whether the run could begin at all."""


def body(schedule: str, change: Change) -> bytes:
    """What is posted. id: the same when it is posted again because the answer to the first time was lost."""
    slot = datetime.fromtimestamp(change.slot_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    reason = " ".join(change.reason.split())[:_REASON_MAX]
    verdict = change.verdict.upper() if change.began else f"COULD NOT START ({change.verdict})"
    text = f"{schedule}/{change.entry}: {verdict}, was {change.before or 'never run'}."
    text += f" {reason}" if reason else ""
    text += f" Slot {slot}, results {change.results or 'none'}."
    if change.quarantined:
        text += f" It does not run again until `--ack {change.entry}`."
    said = _Body(
        text=text.translate(_ESCAPED),
        id=f"{schedule}/{change.id}",
        schedule=schedule,
        entry=change.entry,
        verdict=change.verdict,
        before=change.before,
        reason=reason,
        slot=slot,
        results=change.results,
        quarantined=change.quarantined,
        began=change.began,
    )
    return msgspec.json.encode(said)


class Webhook:
    """Where changes are posted. Its URL is a secret, and in no message."""

    def __init__(self, url: str, schedule: str) -> None:
        self._url = url
        self._schedule = schedule

    async def post(self, change: Change) -> str:
        """Post it once; what went wrong in a line, empty when it was taken."""
        headers = {"Content-Type": "application/json", "Idempotency-Key": f"{self._schedule}/{change.id}"}
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=LIMIT_S)) as session,
                session.post(
                    self._url, data=body(self._schedule, change), headers=headers, allow_redirects=False
                ) as answer,
            ):
                return "" if 200 <= answer.status < 300 else f"the webhook answered {answer.status}"
        except TimeoutError:
            return f"the webhook did not answer within {LIMIT_S:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return f"the webhook cannot be reached: {type(error).__name__}"
