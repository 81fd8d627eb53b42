"""What an experiment's workload must be to the rest of the experiment, and the finding of its trace or plugin."""

from pathlib import Path

from msgspec.structs import replace

from chaos.experiment import Experiment
from workloads.lengths import length_limits
from workloads.plan import PhaseLoad, for_workers
from workloads.plugins import PluginError, find_plugin
from workloads.replay import longest_request
from workloads.spec import WorkloadSpec
from workloads.traces import TraceError, read_trace, settle_trace

_TEMPLATE_TOKENS_MAX = 64


class WorkloadError(Exception):
    """A field of the workload is wrong. field: its whole path. what: a line."""

    def __init__(self, field: str, what: str) -> None:
        super().__init__(f"{field}: {what}")
        self.field = field
        self.what = what


def settle(experiment: Experiment, folder: Path) -> Experiment:
    """The experiment with its trace found, seen from the `folder` of its file, and its loads per worker made whole.

    Raises WorkloadError.
    """
    phases = {
        name: replace(phase, load=for_workers(phase.load, experiment.cluster.workers))
        if isinstance(phase.load, PhaseLoad)
        else phase
        for name, phase in experiment.phases.items()
    }
    try:
        return replace(experiment, workload=settle_trace(experiment.workload, folder), phases=phases)
    except TraceError as error:
        raise WorkloadError("workload.trace", str(error)) from None


def check_workload(experiment: Experiment) -> None:
    """Raise WorkloadError when the load cannot be made for this experiment, as far as that can be told beforehand."""
    spec = experiment.workload
    duration_s = sum(phase.duration_s for phase in experiment.phases.values())
    if spec.steps and spec.steps[-1][0] >= duration_s:
        what = f"a step comes after {spec.steps[-1][0]:g} s, the phases last {duration_s:g} s"
        raise WorkloadError("workload.steps", what)
    context = experiment.policy.worker.context_max_tokens
    if spec.plugin is not None:
        _check_plugin(spec.plugin, experiment)
    elif spec.trace is not None and not spec.trace.times_only:
        _check_trace(spec, context)
    else:
        _check_chats(spec, context)


def _check_plugin(name: str, experiment: Experiment) -> None:
    try:
        find_plugin(name)
    except PluginError as error:
        raise WorkloadError("workload.plugin", str(error)) from None
    for phase, spec in experiment.phases.items():
        if spec.load is not None:
            raise WorkloadError(f"phases.{phase}.load", "a workload with a plugin makes the load of all phases")
    if experiment.comparison is not None:
        raise WorkloadError("workload.plugin", "the requests of a comparison are made of chats")


def _check_trace(spec: WorkloadSpec, context: int) -> None:
    assert spec.trace is not None
    try:
        line, tokens = longest_request(read_trace(spec.trace), spec.trace)
    except TraceError as error:
        raise WorkloadError("workload.trace", str(error)) from None
    if tokens + _TEMPLATE_TOKENS_MAX > context and spec.trace.over_context == "refuse":
        what = f"line {line} and the chat template can take {tokens + _TEMPLATE_TOKENS_MAX} tokens"
        limit = f"policy.worker.context_max_tokens is {context}"
        raise WorkloadError("workload.trace.scale_tokens", f"{what}, {limit}; or set over_context: cut")


def _check_chats(spec: WorkloadSpec, context: int) -> None:
    longest = length_limits(spec.prompt_tokens)[1] + length_limits(spec.output_tokens)[1] + _TEMPLATE_TOKENS_MAX
    field, what = "workload.prompt_tokens", "one message, its answer and the chat template"
    if spec.system_prompts is not None:
        longest += length_limits(spec.system_prompts.tokens)[1]
        field, what = "workload.system_prompts.tokens", f"a system prompt, {what}"
    if longest > context:
        raise WorkloadError(field, f"{what} can take {longest} tokens, policy.worker.context_max_tokens is {context}")
