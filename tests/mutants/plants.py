"""All mutants by name."""

from tests.mutants import client_plants, controller_plants, worker_plants
from tests.mutants.mutant import Mutant

MUTANTS: dict[str, Mutant] = {
    mutant.name: mutant for mutant in [*controller_plants.mutants(), *worker_plants.mutants(), *client_plants.mutants()]
}
