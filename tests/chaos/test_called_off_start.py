"""Ctrl-C while the nodes of a live world start: the start is called off, and asyncio prints no traceback after it."""

import asyncio
import gc
from typing import Any

import pytest

from chaos.worlds import processes
from chaos.worlds.processes import Processes


class _Method:
    """A method of an actor that takes for ever, as imports on a busy host do."""

    def remote(self, *arguments: Any) -> "asyncio.Future[int]":
        return asyncio.get_running_loop().create_future()


class _Actor:
    start = _Method()


def starting(monkeypatch: pytest.MonkeyPatch, limit_s: float) -> Any:
    monkeypatch.setattr(processes, "agent_actor", lambda *arguments: _Actor())
    return Processes(lambda node: _Actor()).start(["controller", "worker-0"], "raw", limit_s)


def test_a_start_that_is_called_off_leaves_no_error_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    async def interrupted() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        task = asyncio.ensure_future(starting(monkeypatch, 60.0))
        await asyncio.sleep(0.01)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        gc.collect()

    asyncio.run(interrupted())
    gc.collect()
    assert told == []


def test_a_start_that_takes_too_long_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow() -> None:
        with pytest.raises(TimeoutError):
            await starting(monkeypatch, 0.01)

    asyncio.run(slow())
