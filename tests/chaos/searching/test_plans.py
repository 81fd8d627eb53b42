"""What random plans keep to, and what becomes of one that cannot be played."""

from hypothesis import HealthCheck, given, settings
from msgspec.structs import replace

from chaos.experiment import find
from chaos.resolve import load
from chaos.searching.oracle import consult
from chaos.searching.plans import Plan, plans

BASE = load(find("network_partition"))


@given(plan=plans(BASE))
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_no_spike_goes_on_after_the_last_heal(plan: Plan) -> None:
    experiment = plan.experiment
    began_s = experiment.phases[experiment.baseline_phase].duration_s
    healed_s = began_s + max(fault.start_s + fault.duration_s for fault in experiment.faults.values())
    # A fault that waits for a state may come later than its time, and never earlier.
    assert all(at_s <= healed_s for at_s, _ in experiment.workload.steps)


def test_a_load_that_no_cluster_could_carry_is_no_finding() -> None:
    workload = replace(BASE.workload, rate="100000/s", rate_min=None, rate_max=None)
    assert consult(Plan(replace(BASE, workload=workload), 1)).breaches == ()
