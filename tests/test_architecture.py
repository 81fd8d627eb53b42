"""Who may import what, and what the pure nodes may not do: read off the source, so that no test has to run into it."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("analysis", "chaos", "cluster", "workloads")
PURE = ("cluster/client.py", "cluster/protocol.py", "cluster/policy.py", "cluster/timers.py", "cluster/node.py")
PURE_FOLDERS = ("cluster/controller", "cluster/worker")
# All that a pure node may use of the world outside. None of it does I/O, sleeps, reads a clock or starts a thread.
HARMLESS = {
    *("__future__", "collections", "collections.abc", "enum", "heapq", "itertools", "functools", "math", "typing"),
    *("msgspec", "zlib"),
}
HARMLESS_NAMES = {"random": {"Random"}}
ACTS = {"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint", "hash", "id"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def pure() -> list[Path]:
    return [ROOT / name for name in PURE] + [path for folder in PURE_FOLDERS for path in sources(folder)]


def imports(path: Path) -> Iterator[tuple[str, str | None]]:
    """Every (module, name) that a file imports, inside functions too.

    Of the package `analysis` only what its import runs: `analysis.load` asks for pandas when somebody calls it.
    """
    for node in tree(path).body if path == ROOT / "analysis/__init__.py" else ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                yield node.module or "", alias.name


def file_of(module: str, name: str | None) -> list[Path]:
    """The project's files that such an import runs, its packages' own included; none for a foreign module."""
    if module.split(".")[0] not in PACKAGES:
        return []
    parts = [*module.split("."), *([name] if name else [])]
    found = []
    for depth in range(1, len(parts) + 1):
        place = ROOT.joinpath(*parts[:depth])
        found += [path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()]
    assert found, f"{module} is nowhere"
    return found


def reached(start: list[Path]) -> list[Path]:
    """The files that importing these runs."""
    seen: dict[Path, None] = {}
    waiting = list(start)
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen[path] = None
            waiting += [file for module, name in imports(path) for file in file_of(module, name)]
    return sorted(seen)


def packages(path: Path) -> set[str]:
    return {module.split(".")[0] for module, _ in imports(path)}


def test_there_is_something_to_look_at() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in reached(pure())}
    assert {"cluster/errors.py", "cluster/controller/breaker.py", "analysis/schema.py"} <= names


@pytest.mark.parametrize("path", reached(pure()), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_nodes_reach_nothing_that_does_io_sleeps_or_reads_a_clock(path: Path) -> None:
    for module, name in imports(path):
        if file_of(module, name) or module in HARMLESS:
            continue
        assert name in HARMLESS_NAMES.get(module, set()), f"{path}: imports {module} {name or ''}"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ACTS, f"{path}:{node.lineno}: calls {node.func.id}"
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.Global), f"{path}:{node.lineno}"


@pytest.mark.parametrize("path", pure(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_nodes_hold_no_set_whose_order_could_leak(path: Path) -> None:
    """Not even one to look things up in, but for a literal right of `in`: what is not there is not iterated over."""
    looked_up = {
        id(part)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Compare) and all(isinstance(op, ast.In | ast.NotIn) for op in node.ops)
        for part in node.comparators
    }
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Set) and id(node) not in looked_up:
            pytest.fail(f"{path}:{node.lineno}: a set")
        assert not isinstance(node, ast.SetComp), f"{path}:{node.lineno}: a set"
        if isinstance(node, ast.Name) and node.id in ("set", "frozenset"):
            pytest.fail(f"{path}:{node.lineno}: a set")


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("analysis", {"cluster", "chaos", "workloads"}),
        ("cluster", {"chaos", "workloads"}),
        ("workloads", {"chaos"}),
    ],
)
def test_dependencies_point_one_way(package: str, forbidden: set[str]) -> None:
    for path in sources(package):
        assert not packages(path) & forbidden, path


def test_the_schema_is_a_leaf() -> None:
    assert packages(ROOT / "analysis/schema.py") <= {"typing", "msgspec"}


def test_the_nodes_know_nothing_of_analysis_but_the_schema() -> None:
    for path in pure():
        assert {module for module, _ in imports(path) if module.startswith("analysis")} <= {"analysis.schema"}, path


def test_only_the_actors_of_the_cluster_import_ray() -> None:
    found = [path.relative_to(ROOT).as_posix() for path in sources("cluster") if "ray" in packages(path)]
    assert found == ["cluster/live/actors.py"]


def test_the_simulation_reads_no_clock_and_uses_no_global_randomness() -> None:
    for path in [*sources("cluster/simulation"), ROOT / "cluster/engine/timed.py", ROOT / "chaos/worlds/simulated.py"]:
        for module, name in imports(path):
            assert module not in ("time", "datetime", "asyncio", "threading", "secrets", "uuid"), path
            assert module != "random" or name == "Random", path


def test_director_and_faults_await_only_the_world() -> None:
    for path in [ROOT / "chaos/director.py", ROOT / "chaos/lookout.py", *sources("chaos/faults")]:
        assert not packages(path) & {"asyncio", "time", "threading", "socket", "subprocess", "random"}, path
