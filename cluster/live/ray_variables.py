"""What Ray reads from the environment when it is imported; so this imports no Ray."""

import os
from pathlib import Path


def prepare_to_join() -> None:
    """For whoever joins a Ray cluster that runs already, on several hosts."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    # Ray enables it by itself only in a cluster that it starts.
    named = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if named or (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
