"""Arms of a comparison while they run: what their workers do before each block, and when each block began."""

import json

from analysis.schema import EventRow
from chaos.experiment import Experiment
from chaos.worlds.world import HandleError, Job, World
from workloads.arms import Block

_EARLY_S = 0.001
"""The first request of a block is due in its first moment, and clocks that are merged differ by less than this."""


class Blocks:
    """Walks through the blocks of one run, beside the director."""

    def __init__(self, world: World, experiment: Experiment, blocks: tuple[Block, ...]) -> None:
        self._world = world
        self._experiment = experiment
        self._blocks = blocks
        self._job: Job | None = None
        self._failed: Exception | KeyboardInterrupt | None = None

    def begin(self) -> None:
        """Begin to wait for the first block."""
        if self._blocks:
            self._job = self._world.spawn(self._walk())

    def check(self) -> None:
        """Raises what has gone wrong with the walk."""
        if self._failed is not None:
            raise self._failed

    async def finish(self) -> None:
        """Wait for the end of the last block; what went wrong is for `check` to say."""
        if self._job is not None:
            await self._job

    def end(self) -> None:
        """Leave it at that. Harmless when it has ended."""
        if self._job is not None:
            self._job.cancel()

    async def _walk(self) -> None:
        try:
            await self._walk_through()
        except (Exception, KeyboardInterrupt) as error:
            # Nobody waits for this job before the end. On virtual time Ctrl-C may come in its turn.
            self._failed = error

    async def _walk_through(self) -> None:
        world = self._world
        for block in self._blocks:
            await world.sleep(block.prepare_s - world.now())
            await self._prepare(block)
            await world.sleep(block.counts_s - world.now())
            self._record(block.counts_s - _EARLY_S, "block_started", block.arm, str(block.number))
            await world.sleep(block.stop_s - world.now())
            self._record(block.stop_s, "block_ended", block.arm, str(block.number))

    async def _prepare(self, block: Block) -> None:
        """What is not done when the block begins has failed; its requests are asked all the same."""
        arm, world = self._experiment.arms[block.arm], self._world
        for action in arm.before:
            begun_s, left_s = world.now(), block.start_s - world.now()
            told: dict[str, object] = {"action": action, "arm": block.arm, "block": block.number, "done": False}
            try:
                if left_s > 0:
                    told["done"] = await self._act(arm.worker, action, left_s)
            except HandleError as error:
                told["because"] = str(error)
            told["took_s"] = round(world.now() - begun_s, 4)
            self._record(world.now(), "worker_action", arm.worker, json.dumps(told))

    async def _act(self, worker: str, action: str, limit_s: float) -> bool:
        world, model = self._world, self._experiment.cluster.model
        match action:
            case "evict":
                return await world.engine(worker).evict(model, limit_s)
            case "prewarm":
                return await world.engine(worker).prewarm(model, limit_s)
        end_s = world.now() + limit_s
        await world.process(worker).restart()
        return world.now() < end_s

    def _record(self, at_s: float, kind: str, subject: str, detail: str) -> None:
        """at_s: seconds since the load began. The plan says what belongs to whom, and not when we came to it."""
        origin_s = self._world.clock() - self._world.now()
        self._world.record(EventRow(origin_s + at_s, kind, subject, detail=detail))
