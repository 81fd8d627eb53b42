"""`python -m workloads.drive --url http://127.0.0.1:8000/v1 --model M`: put load on any OpenAI-compatible endpoint.

Open loop from a seeded schedule, latency from the intended time (or `--closed N`: so many in flight), a report with a
verdict. What the driver itself can do on this host is measured first, against a stub of known timing, and printed with
the result; a load that would take more than half of that is spread over several driver processes.
"""

import argparse
import asyncio
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from analysis.arguments import NotWritable, check_writable, path, real_number, whole_number
from analysis.criterion import Criterion
from analysis.facts import CannotJudge, offered
from analysis.history import History, UnreadableError
from analysis.measurement import Measurement
from analysis.metrics import METRICS, measure
from analysis.recorder import RecorderError
from analysis.verdict import EXIT_CODES, Verdict
from cluster.numbers import demand_finite
from cluster.yaml_file import YamlError, parse_yaml, read_yaml
from workloads.capacity import Capacity
from workloads.http import CONNECTIONS_MAX, BadTarget, HttpTarget
from workloads.http_probe import Probe, probe, probe_prompts
from workloads.http_results import NAME, HttpResults
from workloads.http_run import INTERRUPTED, HttpRun, Unreachable, reach
from workloads.http_share import ShareFailed
from workloads.plan import LoadPlan, PhaseLoad
from workloads.planner import PlannedPhase, build_plan
from workloads.roofline import SHARE_BUSY, Roofline, roofline
from workloads.spec import Rate, WorkloadSpec
from workloads.stub_process import StubFailed
from workloads.words import WordVocabulary

EXIT_USAGE = 2
EXIT_INFRASTRUCTURE = 5
EXIT_INTERRUPTED = 130
CONTEXT_WORDS = 8_192
PROCESSES_MAX = 64
DURATION_S_MAX = 86_400.0
UNKNOWN = Capacity(1.0, 1.0, 0, 1.0)
"""Of an endpoint that nobody has asked; an open loop does not depend on it."""
_LOAD = "load"
_SHOWN = {
    "success_rate": "success",
    "goodput_rate": "goodput (within --slo)",
    "throughput_requests_per_s": "completed per second",
    "throughput_tokens_per_s": "tokens per second",
    "ttft_p50_s": "time to first token, p50",
    "ttft_p95_s": "time to first token, p95",
    "inter_token_p50_s": "between tokens, p50",
    "inter_token_p95_s": "between tokens, p95",
    "latency_p50_s": "latency end to end, p50",
    "latency_p95_s": "latency end to end, p95",
    "latency_p99_s": "latency end to end, p99",
    "dispatch_lag_p99_s": "dispatch lag, p99",
}
_EXPECTATION = re.compile(r"^(?P<metric>\w+)\s*(?P<side><=|>=)\s*(?P<limit>\d+(\.\d+)?)$", re.ASCII)


class UsageError(Exception):
    """The command is wrong. The message is one line: which option, what was expected."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    try:
        target = _target(options)
        target.headers()
        spec = _workload(options)
        expectations = _expectations(options)
        prompts = _probe_prompts(spec, options)
        plan = None if options.closed else _plan(spec, options)
        check_writable(options.out)
        asyncio.run(reach(target))
        limits = None if options.no_roofline else roofline("renew" if options.renew_roofline else "use")
        found = None
        if plan is None:
            found = asyncio.run(probe(target, prompts, options.closed, options.timeout, options.connections))
            plan = _plan(spec, options, found.capacity)
        processes = options.processes or _processes(spec, plan, options, limits, found)
        for line in _before(spec, options, limits, found, processes):
            print(line, flush=True)
        # What the results say of the load is what was done, whatever an experiment's file says of generators.
        spec = msgspec.structs.replace(spec, generators=processes)
        experiment = _experiment(given, options, target, spec, expectations)
        results = HttpResults(options.out, experiment, options.seed)
        results.write_plan(plan)
        return _run(options, target, plan, results, limits, processes)
    except (UsageError, BadTarget) as error:
        return _complain(str(error), EXIT_USAGE)
    except NotWritable as error:
        return _complain(f"--out {error}", EXIT_USAGE)
    except (Unreachable, StubFailed, ShareFailed, RecorderError, UnreadableError, OSError) as error:
        return _complain(str(error), EXIT_INFRASTRUCTURE)
    except KeyboardInterrupt:
        return _complain("interrupted", EXIT_INTERRUPTED)


def _run(
    options: argparse.Namespace,
    target: HttpTarget,
    plan: LoadPlan,
    results: HttpResults,
    limits: Roofline | None,
    processes: int,
) -> int:
    run = HttpRun(
        target,
        plan,
        _phases(options),
        options.timeout,
        results.raw,
        lambda line: print(line, flush=True),
        options.connections,
        processes,
    )
    asyncio.run(run.conduct())
    notes = [*results.merge(run.origin_s), *run.notes()]
    notes += [f"{count} x {code}: {detail}" for (code, detail), count in run.failures.items()]
    notes += limits.lines() if limits is not None else ["the client's roofline was not measured"]
    if run.cpu_share > SHARE_BUSY:
        notes.append(_busy(run.cpu_share, processes))
    results.write_info(complete=run.complete, ended_by="the last phase" if run.complete else run.ended_by, notes=notes)
    environment = results.write_environment(
        {
            "target": msgspec.to_builtins(target),
            "driver_cpu_share": round(run.cpu_share, 3),
            "driver_processes": processes,
            "roofline": msgspec.to_builtins(limits),
        }
    )
    history, verdict = results.judge(environment)
    for line in _after(history, verdict, run):
        print(line)
    for line in limits.lines() if limits is not None else ():
        print(line)
    print(f"verdict: {verdict.verdict.upper()}")
    for reason in verdict.reasons[:5]:
        print(f"  {reason}")
    print(f"report: {results.path / 'report.html'}")
    if run.complete:
        return EXIT_CODES[verdict.verdict]
    return EXIT_INTERRUPTED if run.ended_by == INTERRUPTED else EXIT_INFRASTRUCTURE


def _before(
    spec: WorkloadSpec, options: argparse.Namespace, limits: Roofline | None, found: Probe | None, processes: int
) -> list[str]:
    where = f"to {options.model} at {options.url}"
    if found is not None:
        per_s = found.capacity.requests_per_s
        lines = [
            f"keeping {options.closed} requests in flight (closed loop, seed {options.seed}) {where}",
            found.line(options.closed),
        ]
    else:
        per_s = Rate.parse(spec.rate).per_s or 0.0
        lines = [f"offering {per_s:g} requests/s ({spec.arrivals}, seed {options.seed}) {where}"]
    if processes > 1:
        lines.append(f"{processes} driver processes share the load")
    if limits is not None and per_s > SHARE_BUSY * limits.requests_per_s * processes:
        lines.append(
            f"NOTE: that is {per_s / limits.requests_per_s / processes:.0%} of what a driver does at most on this host "
            f"({limits.requests_per_s:.0f} requests/s): it may be measured as well"
        )
    return lines


def _processes(
    spec: WorkloadSpec, plan: LoadPlan, options: argparse.Namespace, limits: Roofline | None, found: Probe | None
) -> int:
    """As many drivers as leave each half idle, as far as the host has cores: a busy one measures itself."""
    share = 0.0
    if found is not None:
        share = found.cpu_share
    elif limits is not None:
        per_s = Rate.parse(spec.rate).per_s or 0.0
        tokens = sum(request.max_tokens for request in plan.requests) / len(plan.requests)
        share = limits.share(per_s, per_s * tokens)
    most = min(os.cpu_count() or 1, PROCESSES_MAX, options.closed or PROCESSES_MAX)
    return max(1, min(most, math.ceil(share / SHARE_BUSY)))


def _busy(cpu_share: float, processes: int) -> str:
    each = "the driver" if processes == 1 else f"the busiest of {processes} drivers"
    return f"{each} took {cpu_share:.0%} of a core, so it may be measured as well: try --processes {2 * processes}"


def _after(history: History, verdict: Verdict, run: HttpRun) -> list[str]:
    counts = verdict.counts
    lines = [
        f"offered {counts.offered}: completed {counts.completed}, failed {counts.failed}, refused {counts.refused}, "
        f"cancelled {counts.cancelled}" + ("" if run.complete else " (interrupted)")
    ]
    for name, title in _SHOWN.items():
        try:
            found = measure(history, name, _LOAD)
        except CannotJudge:
            continue
        lines.append(f"  {title:28} {_shown(found, METRICS[name].unit)}")
    errors = offered(history)
    errors = errors[errors["outcome"].isin(("failed", "refused"))]
    lines += [f"  {code:28} {count} requests" for code, count in errors["code"].value_counts().items()]
    lines += [f"    {count} x {code}: {detail}" for (code, detail), count in list(run.failures.items())[:5]]
    processes = len(history.nodes.loc[history.nodes["role"] == "client", "node"].unique())
    if run.cpu_share > SHARE_BUSY:
        return [*lines, f"  {_busy(run.cpu_share, max(1, processes))}"]
    return [*lines, f"  the {'driver' if processes <= 1 else 'busiest driver'} took {run.cpu_share:.0%} of a core"]


def _shown(found: Measurement, unit: str) -> str:
    if found.value is None:
        return f"too few samples (n = {found.samples})"

    def text(value: float) -> str:
        if unit == "share":
            return f"{100 * value:.2f} %"
        return f"{1000 * value:.1f} ms" if unit == "s" else f"{value:.2f}/s"

    between = f" ({text(found.interval[0])} to {text(found.interval[1])})" if found.interval is not None else ""
    return f"{text(found.value)}{between}, n = {found.samples}"


def _phases(options: argparse.Namespace) -> dict[str, float]:
    warm_up = {"warm_up": options.warm_up} if options.warm_up else {}
    return {**warm_up, _LOAD: options.duration}


def _target(options: argparse.Namespace) -> HttpTarget:
    try:
        extra = msgspec.json.decode(options.extra, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise UsageError(f"--extra: expected a JSON object, {error}") from None
    return HttpTarget(
        options.url,
        options.model,
        options.api,
        options.api_key_env,
        options.length_field,
        options.session_field,
        extra,
    )


def _workload(options: argparse.Namespace) -> WorkloadSpec:
    """The file's workload, with the options laid over it."""
    said: dict[str, Any] = {}
    where = "--rate, --set"
    if options.workload is not None:
        where = f"{options.workload} with {where}"
        try:
            read = read_yaml(options.workload)
        except YamlError as error:
            raise UsageError(str(error)) from None
        if not isinstance(read, dict):
            raise UsageError(f"{options.workload}: expected a mapping, as under `workload:` of an experiment")
        said |= read.get("workload", read)
    for setting in options.set:
        name, mark, text = setting.partition("=")
        if not mark:
            raise UsageError(f"--set {setting}: expected FIELD=VALUE, such as output_tokens=[16,64]")
        try:
            said[name.removeprefix("workload.")] = parse_yaml(text)
        except YamlError:
            raise UsageError(f"--set {setting}: the value is not YAML") from None
    if options.rate is not None:
        said["rate"] = options.rate
    if options.closed and options.rate is not None:
        raise UsageError("--closed, --rate: expected one of them, a closed loop has the rate that the endpoint allows")
    if options.closed and options.closed > options.connections:
        raise UsageError(f"--closed {options.closed}: expected at most --connections, which is {options.connections}")
    try:
        spec = msgspec.convert({"rate": "5/s", **said}, WorkloadSpec)
        demand_finite(spec)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    if Rate.parse(spec.rate).per_s is None:
        raise UsageError(f"--rate {spec.rate}: expected requests per second, such as 20/s; nobody has measured 100 %")
    return spec


def _plan(spec: WorkloadSpec, options: argparse.Namespace, capacity: Capacity = UNKNOWN) -> LoadPlan:
    """capacity: for a closed loop, that of the endpoint."""
    per_s = Rate.parse(spec.rate).per_s
    assert per_s is not None
    load = PhaseLoad(closed=options.closed) if options.closed else None
    phases = [PlannedPhase(name, duration_s, load) for name, duration_s in _phases(options).items()]
    words = WordVocabulary()
    try:
        plan = build_plan(spec, phases, per_s, capacity, options.seed, words, context_max_tokens=options.context_words)
    except ValueError as error:
        raise UsageError(f"workload: {error}") from None
    if not plan.every_request():
        total_s = sum(_phases(options).values())
        raise UsageError(f"{per_s:g} requests/s for {total_s:g} s is no request at all with seed {options.seed}")
    return plan


def _probe_prompts(spec: WorkloadSpec, options: argparse.Namespace) -> list[tuple[tuple[int, ...], int]]:
    if not options.closed:
        return []
    try:
        return probe_prompts(spec, options.closed, options.seed, options.context_words)
    except ValueError as error:
        raise UsageError(f"workload: {error}") from None


def _expectations(options: argparse.Namespace) -> dict[str, Criterion]:
    found = {"success": Criterion(metric="success_rate", phase=_LOAD, at_least=0.99)}
    for text in options.expect:
        match = _EXPECTATION.match(text.strip())
        if match is None or match["metric"] not in METRICS:
            raise UsageError(
                f"--expect {text}: expected METRIC<=LIMIT or METRIC>=LIMIT, METRIC one of {', '.join(METRICS)}"
            )
        limit = float(match["limit"])
        least, most = (limit, None) if match["side"] == ">=" else (None, limit)
        name = "success" if match["metric"] == "success_rate" else match["metric"]
        found[name] = Criterion(metric=match["metric"], phase=_LOAD, at_least=least, at_most=most, confidence=0.95)
    return found


def _experiment(
    given: Sequence[str],
    options: argparse.Namespace,
    target: HttpTarget,
    spec: WorkloadSpec,
    expectations: dict[str, Criterion],
) -> dict[str, object]:
    """What `experiment.yaml` says. steady_state: only the latency that goodput is counted by."""
    slo = {} if options.slo is None else {"slo": {"metric": "latency_p95_s", "at_most": options.slo}}
    load: dict[str, object] = {"load": {"closed": options.closed}} if options.closed else {}
    offer = f"{options.closed} requests in flight" if options.closed else spec.rate
    return {
        "name": NAME,
        "title": f"{target.model} under load",
        "question": f"How does {target.url} serve {offer}?",
        "command": ["python", "-m", "workloads.drive", *given],
        "target": msgspec.to_builtins(target),
        "workload": msgspec.to_builtins(spec),
        "phases": {name: {"duration_s": duration_s, **load} for name, duration_s in _phases(options).items()},
        "steady_state": slo,
        "expectations": msgspec.to_builtins(expectations),
        "policy": {"client": {"deadline_s": options.timeout}},
        "recovery_limit_s": 0.0,
        "faults": {},
    }


_seconds = real_number(0, DURATION_S_MAX, above=True)
_from_zero = real_number(0, DURATION_S_MAX)
_count = whole_number(0)
_positive = whole_number(1, CONNECTIONS_MAX)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m workloads.drive",
        description="Put a load on an OpenAI-compatible endpoint and write a report with a verdict.",
        epilog="exit codes: 0 pass, 1 fail, 2 usage, 3 inconclusive, 4 invalid, 5 infrastructure, 130 interrupted",
    )
    parser.add_argument("--url", required=True, help="base URL, with /v1")
    parser.add_argument("--model", required=True, help="as the endpoint calls it")
    parser.add_argument("--api", choices=("chat", "completions"), default="chat", help="default: chat")
    parser.add_argument("--api-key-env", default="", metavar="NAME", help="environment variable that holds the API key")
    parser.add_argument("--rate", metavar="RATE", help="requests per second, such as 20/s (default 5/s)")
    parser.add_argument("--closed", type=_positive, metavar="N", help="keep N in flight instead of a rate")
    parser.add_argument("--processes", type=_positive, metavar="N", help="that drive (default: as many as it takes)")
    parser.add_argument("--duration", type=_seconds, default=30.0, metavar="S", help="that count (default 30)")
    parser.add_argument("--warm-up", type=_from_zero, default=3.0, metavar="S", help="that do not (default 3)")
    parser.add_argument("--timeout", type=_seconds, default=60.0, metavar="S", help="a request has failed (default 60)")
    parser.add_argument(
        "--workload", type=Path, metavar="FILE", help="YAML with the fields of an experiment's workload"
    )
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a field of the workload")
    parser.add_argument("--slo", type=_seconds, metavar="S", help="latency that goodput is counted by")
    parser.add_argument("--expect", action="append", default=[], metavar="LIMIT", help="such as 'ttft_p95_s<=0.5'")
    parser.add_argument("--seed", type=_count, default=1, help="of the load (default 1)")
    parser.add_argument("--connections", type=_count, default=CONNECTIONS_MAX, help="at once (default %(default)s)")
    parser.add_argument("--context-words", type=_count, default=CONTEXT_WORDS, help="of a chat (default %(default)s)")
    parser.add_argument("--length-field", default="max_tokens", help="some want max_completion_tokens")
    parser.add_argument("--session-field", default="", help="tells the session, such as session_id (default: not told)")
    parser.add_argument("--extra", default="{}", metavar="JSON", help="fields of every request")
    parser.add_argument("--out", type=path, default=Path("results"), help="where results go (default results/)")
    parser.add_argument("--renew-roofline", action="store_true", help="measure the driver again")
    parser.add_argument("--no-roofline", action="store_true", help="do not measure the driver")
    return parser


def _complain(text: str, code: int) -> int:
    print(f"workloads.drive: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
