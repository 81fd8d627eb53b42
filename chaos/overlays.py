"""Profiles of an experiment: named sets of fields in its own file, of which one may be laid over the rest."""

from collections.abc import Mapping
from typing import Any

from chaos.experiment import ExperimentError, merged

SECTION = "profiles"


def with_profile(document: Mapping[str, Any], profile: str | None, source: str) -> dict[str, Any]:
    """The fields of the file with those of its profile laid over them, and without the section of profiles.

    profile: None for the file as it is. source: the file's name, for errors. Raises ExperimentError.
    """
    fields = dict(document)
    profiles = fields.pop(SECTION, None) or {}
    if not isinstance(profiles, dict):
        raise ExperimentError(
            f"{source}: {SECTION}: expected a mapping from name to fields, got {type(profiles).__name__}"
        )
    for name, over in profiles.items():
        if not isinstance(over, dict):
            raise ExperimentError(f"{source}: {SECTION}.{name}: expected fields, got {type(over).__name__}")
    if profile is None:
        return fields
    if profile not in profiles:
        there = f"there is {', '.join(map(str, profiles))}" if profiles else "this experiment has none"
        raise ExperimentError(f"{source}: no profile {profile!r}; {there}")
    return merged(fields, profiles[profile])
