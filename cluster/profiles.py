"""Policies by name: the profiles in `cluster/policies/`, or a YAML file that says what differs from the defaults."""

from importlib import resources
from pathlib import Path

import msgspec

from cluster.policy import Policy
from cluster.yaml_file import YamlError, read_yaml


class ProfileError(Exception):
    """There is no such profile, or what it says is no policy. One line that names the field."""


def profile_names() -> list[str]:
    """The profiles that come with the package."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load_policy(name_or_path: str) -> Policy:
    """The policy of a profile, or of a file whose name ends in .yaml or .yml. Raises ProfileError."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        if name_or_path not in profile_names():
            known = ", ".join(profile_names())
            raise ProfileError(f"no policy profile {name_or_path!r}; there is {known} (or give a .yaml file)")
        path = _folder() / f"{name_or_path}.yaml"
    try:
        return msgspec.convert(read_yaml(path) or {}, Policy)
    except YamlError as error:
        raise ProfileError(f"{name_or_path}: {str(error).removeprefix(f'{path}: ')}") from error
    except msgspec.ValidationError as error:
        raise ProfileError(f"{name_or_path}: {error}") from error


def _folder() -> Path:
    return Path(str(resources.files("cluster") / "policies"))
