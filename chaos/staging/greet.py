"""A few small requests, before anything is offered or hurt: does the target answer at all?"""

import time

from analysis.schema import PROBE_PREFIX, RequestRow
from workloads.http import HttpDriver, HttpTarget
from workloads.load import SegmentLoop
from workloads.plan import ClosedSegment
from workloads.request import ScheduledRequest
from workloads.words import WordVocabulary

GREETINGS = 3
GREET_TOKENS = 4
GREET_S = 20.0
"""For each of them."""


async def greet(target: HttpTarget, limit_s: float = GREET_S) -> str:
    """Ask one after the other; what went wrong with one, empty when nothing did. Raises BadTarget."""
    rows: list[RequestRow] = []
    markers = WordVocabulary.markers
    prompt = (*markers.before_first, 1, 2, 3, *markers.before_reply)
    requests = tuple(
        ScheduledRequest(f"{PROBE_PREFIX}greeting-{number}", 0.0, "", 0, "greeting", prompt, GREET_TOKENS)
        for number in range(GREETINGS)
    )
    segment = ClosedSegment("greeting", 0.0, GREETINGS * limit_s, 1, requests)
    async with HttpDriver(target, rows.append, 1) as driver:
        await driver.run(SegmentLoop(segment, time.monotonic(), target.model, limit_s))
    for row in rows:
        if row.outcome != "completed":
            detail = next((detail for code, detail in driver.failures if code == row.code), "")
            return f"{target.url}: a small request ended with {row.code}{detail and ': ' + detail}"
    return ""
