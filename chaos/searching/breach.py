"""Something that a plan has broken, as a search tells one from another."""

import msgspec

CRASH = "crash"
"""In place of a check: our own code raised."""


class Breach(msgspec.Struct, frozen=True):
    """by: the check that saw it: `invariant 7`, a symptom of chaos.searching.symptoms, or CRASH. what: one sentence.

    kinds: of the faults that touched what it is about, sorted; where nobody knows, of all that struck.
    """

    by: str
    what: str
    kinds: tuple[str, ...] = ()
