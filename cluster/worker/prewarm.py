"""ModelPreWarmer: which models a worker has in memory, and which it loads next."""

import msgspec


class ModelOffer(msgspec.Struct, frozen=True):
    """A model that a worker may serve. Higher priorities are loaded first, and unloaded last.

    weights_bytes: what its files hold, the estimate until it has been loaded; 0: unknown.
    """

    model: str
    priority: int = 0
    weights_bytes: int = 0
