"""A cluster on this machine that stays up: broker, controllers, workers and gateway as children of this process."""

import asyncio
import contextlib
import os
import shlex
import signal
import socket
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cluster.engine.blas import find_blas, preload_environment
from cluster.engine.weights import ModelUnavailable, UnknownModel, model_directory, weights_bytes
from cluster.live.broker import Broker, BrokerSettings, BrokerUnavailable
from cluster.live.children import BrokerChild, Child, ChildFailed, environment
from cluster.live.gateway import GatewaySettings, ServedModel
from cluster.live.given_bus import GivenBus
from cluster.live.host import NodeSpec
from cluster.live.process import BeGateway, BeNode, DrainAsked, Drained, Standing, Tell
from cluster.live.prometheus import NodeStatus
from cluster.policy import Policy
from cluster.worker.prewarm import ModelOffer

_GATEWAY = "gateway"
_START_S = 60.0
_WARM_S = 600.0
_LOOK_S = 1.0
_DRAIN_S = 10.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class CannotServe(Exception):
    """The cluster cannot be brought up. One line."""


class WrongUsage(Exception):
    """What was asked for makes no sense on any machine. One line that names the option."""


class Plan(msgspec.Struct, frozen=True):
    """What is to be served."""

    models: tuple[ServedModel, ...]
    workers: int
    controllers: int
    host: str
    port: int
    policy: Policy
    key_variable: str | None
    keys: tuple[str, ...]
    logs: Path
    bus: GivenBus | None = None
    """A NATS server that runs already, in place of one of ours."""


class Serving:
    """The cluster and everything that keeps it up."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._port = plan.port
        self._controllers = [f"controller-{number}" for number in range(plan.controllers)]
        self._workers = [f"worker-{number}" for number in range(plan.workers)]
        link = plan.policy.link
        settings = BrokerSettings(ping_interval_s=link.broker_ping_s, ping_max=link.broker_pings_outstanding_max)
        names = [*self._controllers, *self._workers, _GATEWAY]
        if strangers := set(plan.bus.links if plan.bus is not None else ()) - set(names):
            raise WrongUsage(f"--link: no node {', '.join(sorted(strangers))}; there is {', '.join(names)}")
        self._broker = Broker(plan.logs / "broker", names, settings, controllers=self._controllers)
        self._message_bytes_max = settings.max_payload_bytes
        hidden = [plan.key_variable] if plan.key_variable else []
        plain = environment(without=hidden)
        computing = environment(preload_environment(find_blas()), hidden)
        self._server = BrokerChild(self._broker, plan.logs / "nats-server.log", plain, say)
        self._offers = tuple(
            ModelOffer(model.name, weights_bytes=weights_bytes(Path(model.directory))) for model in plan.models
        )
        self._children = {
            name: Child(
                name,
                lambda name=name: BeNode(self._spec(name)),  # type: ignore[misc]
                plan.logs / f"{name}.log",
                computing if name in self._workers else plain,
                say,
            )
            for name in names[:-1]
        }
        self._gateway = Child(_GATEWAY, self._gateway_birth, plan.logs / f"{_GATEWAY}.log", plain, say)
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bring all of it up. Raises CannotServe."""
        began_s = time.monotonic()
        try:
            await self._start_bus()
            await asyncio.gather(*(self._start(child) for child in [*self._children.values(), self._gateway]))
            await self._await_warm()
        except (BrokerUnavailable, ChildFailed, OSError) as error:
            raise CannotServe(" ".join(str(error).split())) from error
        say(f"up after {time.monotonic() - began_s:.1f} s")
        self._watcher = asyncio.create_task(self._watch())

    async def _start_bus(self) -> None:
        bus = self._plan.bus
        if bus is None:
            await self._server.start()
            say(f"nats-server: {self._broker.address}, pid {self._server.pid}")
            return
        say(f"nats-server: {bus.address}, not ours")
        for node, address in bus.links.items():
            say(f"{node}: reaches it at {address}")

    def _bus_url(self, node: str) -> str:
        return self._broker.url(node) if self._plan.bus is None else self._plan.bus.url(node)

    async def describe(self) -> None:
        """Tell who is there, and how to ask."""
        rows = [("node", "pid", "state")]
        for status in await self._look():
            child = self._children.get(status.name, self._gateway)
            pid = str(child.ready.pid) if child.ready is not None else "-"
            models = ", ".join(f"{model} {state}" for model, state in status.models.items())
            workers = ", ".join(f"{worker} {alive}" for worker, (alive, _) in status.workers.items())
            rows.append((status.name, pid, models or workers or f"listens on {self._url()}"))
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        for row in rows:
            say("  ".join((row[0].ljust(widths[0]), row[1].ljust(widths[1]), row[2])))
        model = self._plan.models[0].id
        body = {"model": model, "max_tokens": 32, "messages": [{"role": "user", "content": "What is a whale?"}]}
        variable = self._plan.key_variable
        key = "" if variable is None else f' -H "Authorization: Bearer {key_in_shell(variable, self._plan.keys)}"'
        say("try it:")
        say(
            f"curl {self._url()}/v1/chat/completions{key} -H 'Content-Type: application/json' -d "
            + shlex.quote(msgspec.json.encode(body).decode())
        )

    async def stop(self, hurry: asyncio.Event) -> None:
        """End everything in order: what is open may finish, unless `hurry` is set before it has."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        await _unless(hurry, self._drain([self._gateway]))
        await self._gateway.stop()
        workers = [self._children[name] for name in self._workers]
        await _unless(hurry, self._drain(workers))
        await asyncio.gather(*(child.stop() for child in workers))
        await asyncio.gather(*(self._children[name].stop() for name in self._controllers))
        if self._plan.bus is None:
            await self._server.stop()

    async def _start(self, child: Child) -> None:
        began_s = time.monotonic()
        await child.start(_START_S)
        assert child.ready is not None
        if child is self._gateway:
            # A gateway that is started again has to be found where its callers know it.
            self._port = child.ready.port
        say(f"{child.name}: started in {time.monotonic() - began_s:.1f} s, pid {child.ready.pid}")

    async def _await_warm(self) -> None:
        """Until every worker has its models in memory, or is at least known where a policy loads them on demand."""
        ends_s = time.monotonic() + _WARM_S
        told: dict[str, dict[str, str]] = {}
        while time.monotonic() < ends_s:
            statuses = {status.name: status for status in await self._look()}
            for name in self._workers:
                models = statuses[name].models
                for model, state in models.items():
                    if state.startswith("failed"):
                        raise CannotServe(f"{name}: model {model} does not load: {state.removeprefix('failed: ')}")
                if models != told.get(name):
                    told[name] = models
                    say(f"{name}: {', '.join(f'{model} {state}' for model, state in models.items())}")
            if all(self._knows_all(statuses[name]) for name in self._controllers) and all(
                self._is_warm(statuses[name]) for name in self._workers
            ):
                return
            await asyncio.sleep(0.1)
        raise CannotServe(f"the workers were not ready within {_WARM_S:g} s")

    def _knows_all(self, controller: NodeStatus) -> bool:
        return sum(alive == "ready" for alive, _ in controller.workers.values()) >= len(self._workers)

    def _is_warm(self, worker: NodeStatus) -> bool:
        if not self._plan.policy.worker.prewarm:
            return worker.up
        # Memory may not hold all of them at once; then the others are loaded when somebody asks.
        return "warm" in worker.models.values() and "loading" not in worker.models.values()

    async def _watch(self) -> None:
        while True:
            self._gateway.tell(Tell(tuple(await self._look())))
            await asyncio.sleep(_LOOK_S)

    async def _look(self) -> list[NodeStatus]:
        children = [*self._children.values(), self._gateway]
        found = await asyncio.gather(*(child.look(_LOOK_S) for child in children))
        return [_status(child, standing) for child, standing in zip(children, found, strict=True)]

    async def _drain(self, children: Sequence[Child]) -> None:
        asked = [child.ask(DrainAsked(_DRAIN_S), _DRAIN_S + 1) for child in children if child.up]
        for child, answer in zip(children, await asyncio.gather(*asked), strict=False):
            if not (isinstance(answer, Drained) and answer.complete):
                say(f"{child.name}: not everything had ended after {_DRAIN_S:g} s")

    def _spec(self, name: str) -> NodeSpec:
        return NodeSpec(
            role=name.split("-")[0],
            name=name,
            url=self._bus_url(name),
            policy=self._plan.policy,
            raw="",
            models=self._offers,
            seed=time.time_ns(),
            workers_on_host=len(self._workers),
            incarnation_min=self._children[name].incarnation + 1,
        )

    def _gateway_birth(self) -> BeGateway:
        plan = self._plan
        settings = GatewaySettings(
            models=plan.models,
            context_tokens=plan.policy.worker.context_max_tokens,
            message_bytes_max=self._message_bytes_max,
            host=plan.host,
            port=self._port,
            api_keys=plan.keys,
        )
        raw = msgspec.Raw(msgspec.json.encode(settings))
        return BeGateway(_GATEWAY, self._bus_url(_GATEWAY), plan.policy, raw)

    def _url(self) -> str:
        host = f"[{self._plan.host}]" if ":" in self._plan.host else self._plan.host
        return f"http://{host}:{self._port}"


def say(line: str) -> None:
    """One line for the user. A pipe that nobody reads any more is no reason to stop serving."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


async def serve(plan: Plan) -> int:
    """Until a signal comes; the exit code is the shell's for that signal."""
    loop = asyncio.get_running_loop()
    told: list[int] = []
    asked, hurry = asyncio.Event(), asyncio.Event()

    def interrupt(number: int) -> None:
        told.append(number)
        (hurry if asked.is_set() else asked).set()

    for number in _SIGNALS:
        loop.add_signal_handler(number, interrupt, number)
    serving = Serving(plan)
    try:
        if await _unless(asked, serving.start()):
            await serving.describe()
            if plan.host not in ("127.0.0.1", "::1", "localhost") and not plan.keys:
                say(f"warning: whoever reaches {plan.host} may ask; --api-key-env sets a key")
            await asked.wait()
        say("\nstopping: open requests may finish; once more to hurry")
    finally:
        await serving.stop(hurry)
    say("stopped")
    return 128 + told[0]


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do the work, or as much of it as is done before the event; whether it was done. Raises what the work raises."""
    task, waiter = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    await asyncio.wait((task, waiter), return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    if task.done():
        task.result()
        return True
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return False


def key_in_shell(variable: str, keys: Sequence[str]) -> str:
    """What a shell makes the first key of; the key itself is never shown. keys: those in the environment variable."""
    if os.environ[variable] == keys[0]:
        return f"${variable}"
    # For any POSIX shell. Separators may stand before the first key too.
    return f"$(printf '%s' \"${variable}\" | tr , ' ' | awk 'NF {{print $1; exit}}')"


def served_models(names: Sequence[str]) -> tuple[ServedModel, ...]:
    """The models, under ids that callers use: the name, of a local directory its last part.

    Raises WrongUsage for what is no model, CannotServe for one that cannot be had now.
    """
    found = {}
    for name in dict.fromkeys(names):
        try:
            directory = model_directory(name)
            weights_bytes(directory)
        except UnknownModel as error:
            raise WrongUsage(f"--model: {error}") from error
        except ModelUnavailable as error:
            raise CannotServe(str(error)) from error
        local = Path(name).expanduser().is_dir()
        model = ServedModel(directory.name if local else name, str(directory) if local else name, str(directory))
        if model.id in found:
            raise WrongUsage(f"--model: two models would be called {model.id!r}")
        found[model.id] = model
    return tuple(found.values())


def check_port(host: str, port: int) -> None:
    """A port that cannot be had is better told before anything runs. Raises CannotServe."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise CannotServe(
            f"port {port} on {host} cannot be had: {error.strerror}; --port 0 takes a free one"
        ) from error


def _status(child: Child, standing: Standing | None) -> NodeStatus:
    if standing is None:
        return NodeStatus(child.name, False, max(0, child.restarts))
    look = standing.look
    return NodeStatus(child.name, True, child.restarts, standing.gauges, look.workers, look.models)
