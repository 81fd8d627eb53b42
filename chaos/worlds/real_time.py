"""What worlds on asyncio have in common: real time, and an orderly end when somebody asks for it."""

import asyncio
import signal
import sys
import time
from collections.abc import Coroutine
from typing import Any


class RealTime:
    """Part of a world. Lives in one asyncio loop."""

    def __init__(self) -> None:
        # What is recorded before the load begins is near its zero also in a run that never comes to a load.
        self.origin_s = time.monotonic()
        self.interrupted = False
        self._stopping = False

    async def guarded(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run the coroutine; the first Ctrl-C, SIGTERM or SIGHUP cancels it, and those that follow change nothing.

        Once `stop` has begun nothing is cancelled any more, or things would be left running; see `interrupted`.
        """
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(coroutine)
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

        def interrupt() -> None:
            if not self.interrupted:
                self.interrupted = True
                print("\ninterrupted: healing and writing what there is, please wait", file=sys.stderr)
                if not self._stopping:
                    task.cancel()

        for number in signals:
            loop.add_signal_handler(number, interrupt)
        try:
            await task
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def now(self) -> float:
        """See World."""
        return time.monotonic() - self.origin_s

    def clock(self) -> float:
        """See World."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See World."""
        await asyncio.sleep(max(0.0, seconds))

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """See World."""
        return asyncio.create_task(coroutine)
