"""What a Chaos Toolkit experiment may use of ours, as `{"type": "python", "module": "chaos.toolkit", "func": ...}`.

Actions hurt a link behind a Toxiproxy that runs already, or run a whole experiment; probes look at a link, measure an
OpenAI-compatible endpoint, or give the verdict of an experiment. Every hurt has a time limit, is in the undo log before
it is done, and is healed by a process of its own when `chaos run` ends in whatever way, `kill -9` included. The proxies
are somebody else's: nothing but toxics of our own and whether a proxy is enabled is ever changed. What needs to know a
cluster from inside (processes, messages, engines) belongs into an experiment of ours, which `run_experiment` runs.
"""

import atexit
import functools
import inspect
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar, get_type_hints
from urllib.parse import urlsplit

import msgspec

from analysis.judge import read_verdict
from analysis.metrics import METRICS, UnknownMetricError, measure
from analysis.reader import load_history
from analysis.verdict import EXIT_CODES
from chaos.experiment import ExperimentError, find
from chaos.healing import give_back, settling
from chaos.keeper import Keeper, KeeperError
from chaos.resolve import load
from chaos.staging.addresses import public_address
from chaos.staging.link import demand_enabled, demand_in_time, embedded, refusal
from chaos.toxiproxy.adapter import Toxic, Toxiproxy, ToxiproxyError
from chaos.toxiproxy.launcher import cache_directory
from chaos.undo import DisabledEntry, ToxicEntry, UndoError, UndoLog
from chaos.worlds.proxied import shape_toxics, toxics
from chaos.worlds.world import Cut, Shape

__all__ = [
    "cut_link",
    "endpoint_metric",
    "experiment_verdict",
    "heal_links",
    "link_is_whole",
    "run_experiment",
    "slow_link",
]
TTL_S_MAX = 3_600.0
_OPEN_MAX = 100
_LIMIT_MS_MAX = 3_600_000

P = ParamSpec("P")
T = TypeVar("T")
Seconds = Annotated[float, msgspec.Meta(gt=0, le=TTL_S_MAX)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=_LIMIT_MS_MAX)]
Name = Annotated[str, msgspec.Meta(min_length=1)]


class ToolkitError(Exception):
    """The activity could not be done. The message is one line."""


def _checked(function: Callable[P, T]) -> Callable[P, T]:
    """Chaos Toolkit hands on whatever stands in a file: each argument has to be of its type and in its range.

    What goes wrong is a ToolkitError.
    """
    signature = inspect.signature(function)
    kinds = get_type_hints(function, include_extras=True)

    @functools.wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            bound = signature.bind(*arguments, **named)
        except TypeError as error:
            raise ToolkitError(f"{function.__name__}: {error}") from None
        for name, value in bound.arguments.items():
            try:
                msgspec.convert(value, kinds[name])
            except msgspec.ValidationError as error:
                told = str(error)
                raise ToolkitError(f"{name}: {told[:1].lower()}{told[1:]}, given {value!r}"[:300]) from None
        try:
            return function(*arguments, **named)
        except (ToxiproxyError, UndoError, KeeperError) as error:
            raise ToolkitError(str(error)) from error

    return call


class _Change(msgspec.Struct, frozen=True):
    """Something that is to be undone. toxic: its name; empty when the proxy was switched off."""

    id: str
    api: Toxiproxy
    proxy: str
    toxic: str


class _Links:
    """Every link that this process has hurt. Made when the first one is."""

    def __init__(self) -> None:
        self.id = f"toolkit-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        self._lock = threading.Lock()
        self._open: list[_Change] = []
        self._log = UndoLog.create(self.id)
        self._keeper = Keeper.start(self._log.path, _keeper_folder())
        atexit.register(self.close)

    def add(self, api: Toxiproxy, proxy: str, wanted: Sequence[Toxic], ttl_s: float) -> list[str]:
        """Add toxics under names of our own; without any, switch the proxy off. Returns what was done, in words."""
        with self._lock:
            if len(self._open) + len(wanted) >= _OPEN_MAX:
                raise ToolkitError(f"{_OPEN_MAX} changes are open already: heal_links first")
            if not self._keeper.alive():
                raise ToolkitError("the process that heals after us has ended: nothing is hurt without it")
            demand_enabled(api, proxy)
            expires_s = time.time() + ttl_s
            if not wanted:
                entry = DisabledEntry(api_url=api.url, proxy=proxy, borrowed=True, expires_unix_s=expires_s)
                self._open.append(_Change(self._log.add(entry), api, proxy, ""))
                with settling(self._log, self._open[-1].id):
                    api.set_enabled(proxy, False)
                demand_in_time(api, proxy, expires_s)
                return [f"{proxy}: switched off"]
            ttl_ms = max(1, round(ttl_s * 1_000)) if embedded(api.version()) else 0
            for toxic in wanted:
                named = msgspec.structs.replace(toxic, name=f"{self.id}.{toxic.name}")
                undo = ToxicEntry(
                    api_url=api.url, proxy=proxy, toxic=named.name, borrowed=True, expires_unix_s=expires_s
                )
                self._open.append(_Change(self._log.add(undo), api, proxy, named.name))
                with settling(self._log, self._open[-1].id):
                    api.add_toxic(proxy, named, ttl_ms)
            return [f"{proxy}: {toxic.type} {toxic.stream} {dict(toxic.attributes)}" for toxic in wanted]

    def heal(self) -> list[str]:
        """Undo everything, and see that it is undone. Raises ToolkitError when something is not; it then stays open."""
        done, wrong, still_open = [], [], []
        with self._lock:
            for change in self._open:
                try:
                    give_back(change.api, self._log, change.id)
                except ToxiproxyError as error:
                    wrong.append(str(error))
                    still_open.append(change)
                else:
                    done.append(f"{change.proxy}: {'toxic removed' if change.toxic else 'switched on'}")
            self._open = still_open
        if wrong:
            raise ToolkitError(f"{len(wrong)} of {len(wrong) + len(done)} NOT healed, tried again later: {wrong[0]}")
        return done

    def close(self) -> None:
        """Let the keeper heal what is left, and end; say what it could not."""
        atexit.unregister(self.close)
        wrong: list[str] = []
        try:
            if not self._keeper.alive() and self._log.open_entries():
                # At an interpreter's end nothing can be healed from here any more.
                self._keeper = Keeper.start(self._log.path, _keeper_folder())
            wrong += [result.text for result in self._keeper.close() if not result.healed]
        except KeeperError as error:
            wrong.append(f"{error}; python -m chaos.heal heals what is left")
        for line in wrong:
            print(f"chaos.toolkit: {line}", file=sys.stderr)
        self._log.close()


_links: list[_Links] = []


def _keeper_folder() -> Path:
    return cache_directory() / "toolkit"


def _hurt() -> _Links:
    if not _links:
        _links.append(_Links())
    return _links[0]


@_checked
def cut_link(
    toxiproxy_url: Name, proxy: Name, ttl_s: Seconds = 60.0, mode: str = "stall", allow_public: bool = False
) -> list[str]:
    """Action: cut a link. mode: stall or refuse, as in our README; black_hole, upstream and downstream only at our own
    Toxiproxy-compatible server, because Toxiproxy can crash after them.

    A proxy that is switched off already is refused, and toxics of others stay. The server must be at a loopback or
    private address unless allow_public.
    """
    modes = [cut.value for cut in Cut if cut is not Cut.RESET]
    if mode not in modes:
        raise ToolkitError(f"mode: expected one of {', '.join(modes)}, got {mode!r}")
    api = _api(toxiproxy_url, allow_public)
    why = refusal(Cut(mode), api.version())
    if why:
        raise ToolkitError(f"mode: {why}")
    return _hurt().add(api, proxy, toxics(Cut(mode)), ttl_s)


@_checked
def slow_link(
    toxiproxy_url: Name,
    proxy: Name,
    ttl_s: Seconds = 60.0,
    latency_ms: Milliseconds = 0.0,
    jitter_ms: Milliseconds = 0.0,
    bytes_per_s: Annotated[int, msgspec.Meta(gt=0)] | None = None,
    allow_public: bool = False,
) -> list[str]:
    """Action: let a link's bytes come later, in both directions, or no faster than `bytes_per_s`."""
    try:
        shape = Shape(
            directions=("upstream", "downstream"),
            latency_s=latency_ms / 1_000,
            jitter_s=jitter_ms / 1_000,
            bytes_per_s=bytes_per_s,
        )
        wanted = shape_toxics(shape)
    except ValueError as error:
        raise ToolkitError(f"slow_link: {error}") from None
    if not wanted:
        raise ToolkitError("expected latency_ms, jitter_ms or bytes_per_s")
    return _hurt().add(_api(toxiproxy_url, allow_public), proxy, wanted, ttl_s)


@_checked
def heal_links() -> list[str]:
    """Action, for the rollbacks: undo all that the others have done. Nothing to undo is no error."""
    return _links[0].heal() if _links else []


@_checked
def link_is_whole(toxiproxy_url: Name, proxy: Name, allow_public: bool = False) -> bool:
    """Probe: whether a proxy is switched on and has no toxic, whoever added it."""
    state = _api(toxiproxy_url, allow_public).proxy(proxy)
    return state is not None and state.enabled and not state.toxics


@_checked
def endpoint_metric(
    url: Name,
    model: Name,
    metric: str = "success_rate",
    rate: str = "5/s",
    duration_s: Seconds = 10.0,
    timeout_s: Seconds = 10.0,
    api: str = "chat",
    api_key_env: str = "",
) -> float:
    """Probe: put an open-loop load on an OpenAI-compatible endpoint and measure it.

    metric: of analysis.metrics, such as success_rate, latency_p95_s, ttft_p50_s. Latency counts from the intended send
    time, and what hangs has failed after timeout_s. Raises ToolkitError when there are too few samples for the metric.
    """
    if metric not in METRICS:
        raise ToolkitError(f"metric: {metric}: no such metric; there are {', '.join(METRICS)}")
    with tempfile.TemporaryDirectory(prefix="mlx-chaos-") as scratch:
        command = ["workloads.drive", "--url", url, "--model", model, "--rate", rate, "--api", api, "--no-roofline"]
        command += ["--duration", f"{duration_s:g}", "--warm-up", "0", "--timeout", f"{timeout_s:g}", "--out", scratch]
        command += ["--api-key-env", api_key_env] if api_key_env else []
        said = _run(command, duration_s + timeout_s + 60.0)
        latest = Path(scratch) / "latest"
        if not (latest / "run.json").exists():
            raise ToolkitError(f"{url}: not measured: {said}")
        try:
            measured = measure(load_history(latest), metric, "load", 0.95)
        except UnknownMetricError as error:
            raise ToolkitError(str(error)) from None
        if measured.value is None:
            raise ToolkitError(f"{metric}: {measured.samples} samples are too few to say")
        return float(measured.value)


@_checked
def run_experiment(
    experiment: Name,
    world: str = "simulated",
    seed: Annotated[int, msgspec.Meta(ge=0)] = 1,
    settings: dict[str, Any] | None = None,
    policy: str | None = None,
    profile: str | None = None,
    target: str | None = None,
    out: str = "results",
    limit_s: Annotated[float, msgspec.Meta(gt=0)] = 1_800.0,
) -> dict[str, Any]:
    """Action: run one of our experiments to its verdict: `verdict`, `reasons`, `results`.

    The arguments are those of chaos.run; settings: path to value. Raises ToolkitError when it comes to no verdict.
    """
    overrides = [f"{path}={value if isinstance(value, str) else msgspec.json.encode(value).decode()}"
                 for path, value in (settings or {}).items()]  # fmt: skip
    try:
        load(find(experiment), overrides, policy, profile)
    except ExperimentError as error:
        raise ToolkitError(" ".join(str(error).split())) from None
    folder = Path(out) / f"toolkit-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    command = ["chaos.run", experiment, "--world", world, "--seed", str(seed), "--out", str(folder)]
    for name, value in (("policy", policy), ("profile", profile), ("target", target)):
        command += [f"--{name}", value] if value else []
    command += [word for each in overrides for word in ("--set", each)]
    said = _run(command, limit_s)
    if not (folder / "latest" / "verdict.json").exists():
        raise ToolkitError(f"{experiment}: no verdict: {said}")
    verdict = read_verdict(folder / "latest")
    if verdict.verdict not in EXIT_CODES:
        raise ToolkitError(f"{experiment}: no verdict: {said}")
    results = str((folder / "latest").resolve())
    return {"verdict": verdict.verdict.value, "reasons": verdict.reasons[:5], "results": results}


@_checked
def experiment_verdict(experiment: str, **arguments: Any) -> str:
    """Probe: the verdict of `run_experiment`, for a tolerance such as `"pass"`."""
    return str(run_experiment(experiment, **arguments)["verdict"])


def _run(command: Sequence[str], limit_s: float) -> str:
    """Run a module of ours, which ends when we do; the last line that it printed. Raises ToolkitError at the limit."""
    tether = [sys.executable, "-m", "cluster.live.tether", "--patience", "60", sys.executable, "-m", *command]
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(tether, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=output)
        assert process.stdin is not None
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise ToolkitError(f"{command[0]}: not over after {limit_s:g} s; it was ended") from None
        finally:
            process.stdin.close()
            process.wait()
        output.seek(0)
        lines = [line.strip() for line in output if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _api(url: str, allow_public: bool) -> Toxiproxy:
    if not allow_public:
        public = public_address(urlsplit(url).hostname or "")
        if public:
            raise ToolkitError(f"{url}: {public} is neither loopback nor private; allow_public: true would allow it")
    return Toxiproxy(url)
