"""Clients that were written for Toxiproxy work unchanged: toxiproxy-python, our adapter, Toxiproxy's own CLI."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import toxiproxy
from toxiproxy.api import APIConsumer
from toxiproxy.exceptions import InvalidToxic, NotFound, ProxyExists

from chaos.toxiproxy.adapter import Toxic, Toxiproxy, ToxiproxyError, ToxiproxyRefused
from chaos.toxiproxy.launcher import VERSION, cache_directory
from tests.chaos.toxiproxy.conformance.rig import HOST, ServerUnderTest, Upstream, connect, how_it_ends, read

_CLI = f"github.com/Shopify/toxiproxy/v2/cmd/cli@v{VERSION}"


@pytest.fixture
def package(server: ServerUnderTest) -> Iterator[toxiproxy.Toxiproxy]:
    """toxiproxy-python, whose server's address is on a class."""
    before = APIConsumer.host, APIConsumer.port
    client = toxiproxy.Toxiproxy()
    client.update_api_consumer(HOST, server.port)
    yield client
    APIConsumer.host, APIConsumer.port = before


def test_toxiproxy_python_proxies(package: toxiproxy.Toxiproxy, upstream: Upstream) -> None:
    assert package.running()
    assert b"version" in package.version()
    made = package.create(upstream=upstream.address, name="package")
    assert package.get_proxy("package").listen == made.listen
    with pytest.raises(ProxyExists):
        package.create(upstream=upstream.address, name="package")
    host, _, port = made.listen.rpartition(":")
    with made.down(), pytest.raises(ConnectionRefusedError):
        connect(host, int(port))
    assert package.get_proxy("package").enabled
    assert package.populate([{"name": "package", "upstream": "x:1", "listen": made.listen}])[0].upstream == "x:1"
    assert package.destroy(package.get_proxy("package"))
    assert package.get_proxy("package") is None


def test_toxiproxy_python_toxics(package: toxiproxy.Toxiproxy, upstream: Upstream) -> None:
    made = package.create(upstream=upstream.address, name="package")
    made.add_toxic(type="latency", attributes={"latency": 5, "jitter": 1})
    made.add_toxic(type="bandwidth", name="slow", stream="upstream", toxicity=0.5, attributes={"rate": 9})
    assert made.get_toxic("slow").attributes == {"rate": 9}
    assert sorted(made.toxics()) == ["latency_downstream", "slow"]
    with pytest.raises(InvalidToxic):
        made.add_toxic(type="nonsense")
    with pytest.raises(ProxyExists):
        made.add_toxic(type="bandwidth", name="slow")
    assert made.destroy_toxic("slow")
    with pytest.raises(NotFound):
        made.destroy_toxic("slow")
    made.destroy()


def test_the_adapter(server: ServerUnderTest, upstream: Upstream) -> None:
    api = Toxiproxy(f"http://{HOST}:{server.port}")
    state = api.create_proxy("adapted", f"{HOST}:0", upstream.address)
    toxic = Toxic("t", "latency", "upstream", {"latency": 5, "jitter": 0})
    assert api.add_toxic("adapted", toxic) == toxic
    assert api.proxies()["adapted"].toxics == (toxic,)
    with pytest.raises((ToxiproxyError, ProxyExists), match="exists"):
        api.create_proxy("adapted", f"{HOST}:0", upstream.address)
    with pytest.raises(ToxiproxyRefused, match="address already in use"):
        api.create_proxy("busy", upstream.address, "x:1")
    assert api.remove_toxic("adapted", "t") == "removed"
    assert api.set_enabled("adapted", False).enabled is False
    assert api.set_enabled("adapted", True).listen == state.listen
    api.delete_proxy("adapted")
    assert api.proxy("adapted") is None


@pytest.fixture(scope="session")
def cli() -> Path:
    """Toxiproxy's own command line client, built once."""
    path = cache_directory() / "bin" / f"toxiproxy-cli-{VERSION}"
    if not path.exists():
        go = shutil.which("go")
        if go is None:
            pytest.skip("no Go to build Toxiproxy's CLI with")
        made = path.parent / f".cli-{os.getpid()}"
        environment = {**os.environ, "GOBIN": str(made), "CGO_ENABLED": "0"}
        built = subprocess.run([go, "install", _CLI], env=environment, capture_output=True, check=False, timeout=300)
        if built.returncode != 0:
            pytest.skip(f"Toxiproxy's CLI cannot be built here: {built.stderr[-200:]!r}")
        os.replace(made / "cli", path)
        made.rmdir()
    return path


@pytest.mark.verify
def test_toxiproxys_own_command_line(server: ServerUnderTest, upstream: Upstream, cli: Path) -> None:
    def run(*arguments: str) -> str:
        command = [str(cli), "--host", f"http://{HOST}:{server.port}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, done
        return done.stdout

    assert "Created" in run("create", "--listen", f"{HOST}:0", "--upstream", upstream.address, "shell")
    listen = json.loads(server.call("GET", "/proxies/shell").text)["listen"]
    host, _, port = listen.rpartition(":")
    assert "shell" in run("list")
    assert "Added" in run("toxic", "add", "-t", "limit_data", "-n", "cut", "-a", "bytes=3", "shell")
    assert "cut" in run("inspect", "shell")
    client = connect(host, int(port))
    upstream.accept().sendall(b"12345")
    assert read(client, 5) == b"123"
    client.close()
    assert "Updated" in run("toxic", "update", "-n", "cut", "-a", "bytes=4", "shell")
    assert server.call("GET", "/proxies/shell/toxics/cut").json["attributes"] == {"bytes": 4}
    assert "Removed" in run("toxic", "remove", "-n", "cut", "shell")
    client = connect(host, int(port))
    upstream.accept().sendall(b"12345")
    assert read(client, 5) == b"12345"
    assert "disabled" in run("toggle", "shell")
    assert how_it_ends(client) == "end"
    assert "enabled" in run("toggle", "shell")
    assert "Deleted" in run("delete", "shell")
