"""The calibration tool on made-up runs whose noise is known."""

import numpy as np
import pytest

from analysis.statistics import Values
from tests import noise_cases


def runs(between: float, count: int = 20) -> list[Values]:
    random = np.random.default_rng(2)
    return [np.exp(0.2 * random.normal(size=320) + between * random.normal()) for _ in range(count)]


def test_moderate_noise_passes_and_wild_noise_does_not() -> None:
    calm = [each for each in noise_cases.calibrate(runs(0.03), pairs=40) if each.gate]
    assert calm
    assert all(each.good for each in calm)
    assert all(each.false <= 0.05 * each.pairs for each in calm)
    wild = {each.design: each for each in noise_cases.calibrate(runs(0.5), pairs=40) if each.gate}
    assert wild["interleaved in one run"].good
    assert not wild["10 runs against 10"].good
    assert "MISSED" in wild["10 runs against 10"].told()


def test_it_takes_twenty_runs() -> None:
    with pytest.raises(ValueError, match="at least 20 runs"):
        noise_cases.calibrate(runs(0.1, 19))
