"""The suites look at criteria that the experiments really have: told here, and not after ten minutes of a live run."""

import pytest

from chaos.experiment import find
from chaos.resolve import load
from tests.performance.suite import HEADLINES


@pytest.mark.parametrize("name", HEADLINES)
def test_every_headline_is_an_expectation_of_its_experiment(name: str) -> None:
    assert set(HEADLINES[name]) <= set(load(find(name)).expectations)
