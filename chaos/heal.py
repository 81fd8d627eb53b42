"""`python -m chaos.heal`: show and heal what runners that are gone left behind."""

import argparse
import sys
import time
from pathlib import Path

from chaos.healing import heal_log
from chaos.undo import (
    DisabledEntry,
    Entry,
    FrozenEntry,
    ProcessEntry,
    ProxyEntry,
    ToxicEntry,
    UndoError,
    is_alive,
    is_borrowed,
    read_log,
    undo_directory,
)

_TRY_S = 5.0


def main() -> int:
    """One line per thing. Exit code 0 when everything is clean afterwards, 1 when something is not (or only listed)."""
    parser = argparse.ArgumentParser(prog="python -m chaos.heal", description="Heal what dead runners left behind.")
    parser.add_argument("--list", action="store_true", help="show it only; exit code 1 if there is something to heal")
    parser.add_argument(
        "--forget", metavar="RUN", help="of a run whose server is gone for good: heal nothing, and drop what is open"
    )
    options = parser.parse_args()
    only_list = options.list
    if options.forget is not None:
        return _forget(options.forget)
    clean = True
    for path in sorted(undo_directory().glob("*.jsonl")):
        try:
            clean &= _handle(path, only_list)
        except UndoError as error:
            print(error)
            clean = False
    if clean:
        print("nothing is left to heal")
    return 0 if clean else 1


def _handle(path: Path, only_list: bool) -> bool:
    content = read_log(path)
    run = path.stem
    runner = content.runner
    if runner is not None and is_alive(runner.pid, runner.created_s):
        print(f"{run}: runner (pid {runner.pid}) is alive, skipped")
        return True
    if content.torn:
        print(f"{run}: {content.torn} incomplete line(s), from a crash before the injection; ignored")
    if only_list:
        for entry in content.entries:
            print(f"{run}: {_describe(entry)}")
        return not content.entries
    results = heal_log(path, "h", time.monotonic() + _TRY_S)
    for result in results:
        print(f"{run}: {result.text}")
    if any(is_borrowed(result.entry) for result in results if not result.healed):
        print(f"{run}: again when that server can be reached; if it is gone for good, --forget {run}")
    return all(result.healed for result in results)


def _forget(run: str) -> int:
    path = undo_directory() / f"{run}.jsonl"
    if path not in undo_directory().glob("*.jsonl"):
        print(f"{run}: there is no undo log of that run")
        return 1
    try:
        content = read_log(path)
    except UndoError as error:
        print(error)
        return 1
    runner = content.runner
    if runner is not None and is_alive(runner.pid, runner.created_s):
        print(f"{run}: runner (pid {runner.pid}) is alive, skipped")
        return 1
    for entry in content.entries:
        print(f"{run}: forgotten: {_describe(entry)}")
    path.unlink(missing_ok=True)
    return 0


def _describe(entry: Entry) -> str:
    match entry:
        case ProcessEntry():
            state = "runs" if is_alive(entry.pid, entry.created_s) else "has ended"
            return f"process {entry.name} (pid {entry.pid}): {state}"
        case FrozenEntry():
            state = "frozen, to go on" if is_alive(entry.pid, entry.created_s) else "has ended"
            return f"process {entry.name} (pid {entry.pid}): {state}"
        case ToxicEntry():
            return f"toxic {entry.toxic} on proxy {entry.proxy} at {entry.api_url}"
        case DisabledEntry():
            return f"proxy {entry.proxy} at {entry.api_url}: disabled, to be enabled"
        case ProxyEntry():
            return f"proxy {entry.proxy} at {entry.api_url}: created, to be deleted"


if __name__ == "__main__":
    sys.exit(main())
