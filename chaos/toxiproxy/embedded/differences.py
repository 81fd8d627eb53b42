"""What this server deliberately does otherwise than Toxiproxy 2.12, and what it does besides. Each has a test."""

from collections.abc import Mapping
from typing import NamedTuple


class Difference(NamedTuple):
    """One behaviour: what Toxiproxy does, and what happens here."""

    toxiproxy: str
    here: str


DIFFERENCES: Mapping[str, Difference] = {
    "slicer_sizes": Difference(
        "average_size below 1, or size_variation above average_size, ends the server at the first data",
        "refused with 400",
    ),
    "negative_rate": Difference("a negative bandwidth ends the server at the first data", "refused with 400"),
    "toxicity_range": Difference("toxicity may be any number", "refused with 400 outside 0..1"),
    "omitted_listen": Difference(
        "an address without a host listens on every interface", "listens on loopback; 0.0.0.0 says every interface"
    ),
    "reset": Difference(
        "stops at the first proxy that cannot listen, in random order",
        "does every proxy, then answers 500 naming those that cannot listen",
    ),
    "live_counters": Difference("bytes are counted when a connection ends", "bytes are counted as they pass"),
    "removal": Difference(
        "waits 5 s for each connection whose peer has gone under bandwidth 0, and for the whole time of reset_peer",
        "never waits: what was held goes on at once, and connections whose peer has gone are closed",
    ),
    "slash_in_name": Difference("a name with a slash can never be addressed", "it can, quoted as %2F"),
    "update_of_toxics": Difference(
        "a wrong attribute leaves those before it changed", "nothing changes unless everything can"
    ),
    "latencies_in_a_row": Difference(
        "a chunk that had to wait behind another one is delayed too little by the second latency toxic",
        "each chunk is delayed by the sum",
    ),
    "seed": Difference(
        "the flag changes nothing",
        "whom toxicity hits, jitter and cuts follow from seed, proxy, connection number, direction and toxic",
    ),
    "hanging_upstream": Difference(
        "clients are connected one after the other, and disabling waits for the connect under way",
        "all at the same time, and disabling breaks off what is under way",
    ),
    "start": Difference(
        "with an API port that is taken or a configuration that is wrong it runs on without",
        "one line and exit code 1",
    ),
    "error_texts": Difference(
        "after `bad request body: ` comes the text of Go's JSON library", "what was expected there and what was found"
    ),
    "large_bodies": Difference("a request's body may be of any size", "above 8 MiB it is refused with 400"),
}

ADDITIONS: Mapping[str, str] = {
    "ttl_ms": "of a toxic: it removes itself after that many milliseconds; a change begins the time anew",
    "clients": "of a toxic: it acts only on connections whose NATS client name (CONNECT's `name`) is in the list",
    "counts": "of a message toxic: messages seen, matched and affected, over all connections",
    "connections": "GET /proxies/{proxy}/connections: who is connected, since when, bytes, messages and toxics",
    "message_toxics": (
        "types that work on whole NATS messages. They act before toxics that work on bytes, whatever the order in "
        "which they were added: after a slicer there would be no messages left to judge"
    ),
    "-tethered": "flag: end when standard input closes",
}
