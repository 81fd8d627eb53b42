"""Why Ray cannot be had, in one line that helps."""

import os

import pytest
import ray

from cluster.live import ray_variables
from cluster.live.actors import RayUnavailable, connect


def refuse(monkeypatch: pytest.MonkeyPatch, cause: str) -> str:
    def init(**options: object) -> None:
        try:
            raise RuntimeError(cause)
        except RuntimeError as error:
            raise ConnectionError("Failed to connect\nto Ray cluster") from error

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RayUnavailable) as refused:
        connect("10.0.0.1:6379")
    return str(refused.value)


def test_a_wrong_token_is_called_so_although_ray_hides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said = refuse(monkeypatch, "Last error: RPC error: InvalidAuthToken: Authentication token is missing")
    assert said.startswith("Ray 10.0.0.1:6379 cannot be had: it has another token than we: copy ~/.ray/auth_token")


def test_anything_else_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refuse(monkeypatch, "timeout") == "Ray 10.0.0.1:6379 cannot be had: Failed to connect to Ray cluster"


@pytest.mark.parametrize("there", [True, False])
def test_who_joins_shows_its_token_if_it_has_one(
    there: bool, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        # Set first, so that whatever the function sets is taken back.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    if there:
        os.makedirs(f"{tmp_path}/.ray")
        with open(f"{tmp_path}/.ray/auth_token", "w") as file:
            file.write("x")
    ray_variables.prepare_to_join()
    assert os.environ.get("RAY_AUTH_MODE") == ("token" if there else None)
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "1"
