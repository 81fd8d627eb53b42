"""What becomes of a hurt engine of the simulated world when its process is not there to be healed."""

from pathlib import Path

import pytest

from chaos.experiment import find
from chaos.resolve import load
from chaos.worlds.simulated import SimulatedWorld
from chaos.worlds.world import HandleError
from cluster.engine.impairment import Impairment

NODE = "worker-0"
TTL_S = 60.0


@pytest.mark.simulated
@pytest.mark.parametrize("restored", [False, True])
def test_what_was_to_be_healed_is_not_handed_on_to_the_next_process(tmp_path: Path, restored: bool) -> None:
    world = SimulatedWorld(load(find("network_partition")), 1, tmp_path)
    slow: list[float] = []

    async def conduct() -> None:
        await world.start()
        engine, process = world.engine(NODE), world.process(NODE)
        await engine.impair(Impairment(slowdown=4.0), TTL_S)
        await process.stop()
        if restored:
            with pytest.raises(HandleError):
                await engine.restore()
        await process.restart()
        slow.append(world._cluster.nodes[NODE].engine._engine.slowdown)  # type: ignore[union-attr]

    world.run(conduct())
    assert slow == [1.0 if restored else 4.0]
