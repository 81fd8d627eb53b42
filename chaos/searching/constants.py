"""Plans that depend on their seed alone: without the constants that Hypothesis picks out of whatever code is loaded."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from hypothesis.internal.conjecture import providers


@contextmanager
def no_constants_of_loaded_code() -> Iterator[None]:
    """Hypothesis draws a share of all numbers from those in the modules of this process, and has no setting for that.

    A version that does not do so is left as it is.
    """
    # Of no stable interface, so that each name may be missing.
    places: Any = providers
    with ExitStack() as patches:
        if hasattr(places, "CONSTANTS_CACHE") and hasattr(places, "Constants"):
            empty = type(places.CONSTANTS_CACHE)(1024)
            none = type("NoConstants", (), {"set_for_type": lambda self, kind: ()})()
            patches.enter_context(patch.object(places, "CONSTANTS_CACHE", empty))
            patches.enter_context(patch.object(places, "_get_local_constants", lambda: none))
        yield
