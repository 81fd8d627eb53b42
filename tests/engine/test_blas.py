import os
from pathlib import Path

import pytest

from cluster.engine import blas
from cluster.engine.blas import Blas, find_blas, is_active, preload_environment

PLAIN = b"\x7fELF..\0cblas_sgemm\0.."
PREFIXED = b"\x7fELF..\0scipy_cblas_sgemm\0.."


@pytest.fixture(autouse=True)
def linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    for name in (blas.SETTING, "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)


def _library(root: Path, path: str, content: bytes = PLAIN) -> Path:
    file = root / path
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return file


def _wheel(monkeypatch: pytest.MonkeyPatch, *files: Path) -> None:
    monkeypatch.setattr(blas, "_wheel_libraries", lambda: iter(files))


def test_the_users_setting_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _library(tmp_path, "usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0")
    mine = _library(tmp_path, "mine/libblis.so")
    monkeypatch.setenv(blas.SETTING, str(mine))
    assert find_blas(tmp_path).path == str(mine)
    monkeypatch.setenv(blas.SETTING, "none")
    assert find_blas(tmp_path).path is None


def test_a_setting_without_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(blas.SETTING, str(tmp_path / "absent.so"))
    with pytest.raises(ValueError, match=r"absent\.so"):
        find_blas(tmp_path)


def test_a_setting_that_will_have_no_effect_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(blas.SETTING, str(_library(tmp_path, "mine/libscipy.so", PREFIXED)))
    assert "no effect" in find_blas(tmp_path).note


def test_the_system_comes_before_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = _library(tmp_path, "wheel/libopenblas-r0.so")
    _wheel(monkeypatch, wheel)
    assert find_blas(tmp_path) == Blas("openblas-scs", str(wheel), "the OpenBLAS inside the scs wheel")
    serial = _library(tmp_path, "usr/lib/aarch64-linux-gnu/openblas-serial/libopenblas.so.0")
    assert find_blas(tmp_path).path == str(serial)
    pthread = _library(tmp_path, "usr/lib/aarch64-linux-gnu/openblas-pthread/libopenblas.so.0")
    assert find_blas(tmp_path).path == str(pthread)


def test_prefixed_symbols_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _library(tmp_path, "usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0", PREFIXED)
    _wheel(monkeypatch, _library(tmp_path, "wheel/libopenblas.so", b""))
    found = find_blas(tmp_path)
    assert found.path is None
    assert "slower" in found.note


def test_nothing_on_macos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setenv(blas.SETTING, "/nowhere")
    found = find_blas(tmp_path)
    assert found.path is None
    assert preload_environment(found) == {}


def test_the_environment_keeps_what_was_preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/a.so /b.so")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    chosen = Blas("x", "/c.so", "")
    environment = preload_environment(chosen)
    assert environment["LD_PRELOAD"] == "/a.so:/b.so:/c.so"
    assert environment["OPENBLAS_NUM_THREADS"] == "1"
    assert "OPENBLAS_CORETYPE" not in environment
    monkeypatch.setenv("LD_PRELOAD", environment["LD_PRELOAD"])
    assert preload_environment(chosen) == environment


def test_is_active_reads_this_processes_memory() -> None:
    assert not is_active(Blas("x", None, ""))
    assert not is_active(Blas("x", "/nowhere/libopenblas.so", ""))
    if Path("/proc/self/maps").is_file():
        mapped = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line)
        assert is_active(Blas("x", os.path.realpath(mapped), ""))
