"""Rows of sweeps that nobody ran, with throughputs that are known."""

from collections.abc import Mapping, Sequence

from analysis.point import Figures
from analysis.sweep_table import SweepRow


def row(
    workers: int,
    per_s: float | None,
    *,
    phase: str = "weak",
    in_flight: int | None = None,
    repeat: int = 1,
    verdict: str = "pass",
    engine: str = "mlx",
    world: str = "live",
    machine: str = "Linux-6",
    cores: int = 2,
    hosts: int = 1,
    host_cpu: float | None = 0.5,
    nodes_cpu: float | None = 1.9,
    latency_s: float = 0.5,
    **values: str,
) -> SweepRow:
    settings = {"cluster.workers": str(workers), **{name.replace("__", "."): text for name, text in values.items()}}
    point = ", ".join(f"{path}={text}" for path, text in settings.items())
    figures = Figures(
        phase=phase,
        duration_s=8.0,
        in_flight=16 * workers if in_flight is None else in_flight or None,
        ran_dry=False,
        offered=100,
        completed=100,
        failed=0,
        refused=0,
        offered_per_s=12.5,
        goodput_per_s=per_s,
        success=1.0,
        requests_per_s=per_s,
        tokens_per_s=None if per_s is None else 16 * per_s,
        latency_p50_s=latency_s,
        latency_p95_s=2 * latency_s,
        latency_p99_s=None,
        ttft_p50_s=0.1,
        ttft_p95_s=0.2,
        inter_token_p50_s=0.01,
        batch_mean=7.5,
        host_cpu_share=host_cpu,
        workers_cpu_cores=1.0,
        nodes_cpu_cores=nodes_cpu,
    )
    return SweepRow(
        point=point,
        key=f"{workers}.{repeat}",
        repeat=repeat,
        seed=repeat,
        values=settings,
        world=world,
        engine=engine,
        verdict=verdict,
        reason="it is so",
        run=f"points/{workers}.{repeat}/run/x",
        took_s=30.0,
        workers=workers,
        hosts=hosts,
        cores=cores,
        machine=machine,
        faults=[],
        figures=figures,
    )


def rows(made: Mapping[int, Sequence[float]], **more: object) -> list[SweepRow]:
    """A row for each run of each number of workers."""
    return [
        row(workers, per_s, repeat=repeat, **more)  # type: ignore[arg-type]
        for workers, runs in made.items()
        for repeat, per_s in enumerate(runs, 1)
    ]
