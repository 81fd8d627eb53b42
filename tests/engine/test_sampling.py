"""Tokens are drawn as mlx-lm draws them, and nothing is compiled for it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.sample_utils import make_sampler

from cluster.engine.sampling import sampler
from cluster.protocol import GREEDY, Sampling

pytestmark = pytest.mark.live


def rows(count: int) -> Any:
    logits = 3 * mx.random.normal((count, 200), key=mx.random.key(count))
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.8, 0.9), (1.5, 0.3), (0.7, 1.0), (2.0, 1e-6)])
@pytest.mark.parametrize("count", [1, 5])
def test_the_draws_are_those_of_mlx_lm(temperature: float, top_p: float, count: int) -> None:
    ours = sampler(Sampling(temperature, top_p))
    assert ours is not None
    # As arrays, so that mlx-lm compiles once and not for each value.
    theirs = make_sampler(temp=mx.array(temperature), top_p=mx.array(top_p))
    drawn = []
    for each in (ours, theirs):
        mx.random.seed(5)
        drawn.append([each(rows(count)).tolist() for _ in range(40)])
    assert drawn[0] == drawn[1]
    assert (len({str(tokens) for tokens in drawn[0]}) > 1) == (top_p > 1e-3)


def test_equal_samplings_share_one_object_so_that_a_batch_is_sampled_in_one_go() -> None:
    assert sampler(Sampling(0.7, 0.9)) is sampler(Sampling(0.7, 0.9))
    assert sampler(Sampling(0.7, 0.9)) is not sampler(Sampling(0.7, 0.8))


def test_no_temperature_to_speak_of_is_greedy() -> None:
    assert sampler(GREEDY) is None
    assert sampler(Sampling(1e-40, 0.9)) is None
    coldest = sampler(Sampling(1e-5, 1.0))
    assert coldest is not None
    assert coldest(rows(4)).tolist() == mx.argmax(rows(4), axis=-1).tolist()


@pytest.mark.skipif(sys.platform != "linux", reason="only MLX's CPU build leaves its compiled kernels in files")
def test_no_request_after_a_load_has_to_wait_for_a_compiler(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, queue, time\n"
        "from cluster.engine.mlx import MlxEngine\n"
        "from cluster.node import Insert\n"
        "from cluster.protocol import Sampling\n"
        "kernels = lambda: len([*pathlib.Path(os.environ['TMPDIR']).rglob('*.so')])\n"
        "events = queue.Queue()\n"
        "options = {'batch_max': 4, 'prefill_batch_max': 4, 'prefill_step': 64, 'flush_s': 1.0}\n"
        "engine = MlxEngine(events.put, time.monotonic, **options)\n"
        "engine.load('tiny')\n"
        "events.get()\n"
        "loaded = kernels()\n"
        "for number in range(6):\n"
        "    sampling = Sampling(0.1 * number, 1 - 0.1 * (number % 3))\n"
        "    engine.insert(Insert(number, 'tiny', tuple(range(1, 3 + 40 * number)), 8, sampling, keep_as=number))\n"
        "ended = 0\n"
        "while ended < 6:\n"
        "    ended += sum(part.finish is not None for part in events.get().progress)\n"
        "engine.close(60)\n"
        "print(loaded, kernels())\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    loaded, after = run.stdout.split()
    assert int(loaded) > 0
    assert loaded == after
