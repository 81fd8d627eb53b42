"""Whether anything of a run is left once it has ended: looked for, and not believed."""

import time

from chaos.undo import UndoError, marked_processes, read_log, undo_directory

_LOOK_S = 0.1
_SHOWN_MAX = 10


def left_behind(run_id: str, limit_s: float) -> list[str]:
    """One line for each thing that is still there `limit_s` seconds after the call: processes, and what is not undone.

    Processes that were told to end need a moment, so they are looked for until none is left.
    """
    ends_s = time.monotonic() + limit_s
    while (processes := marked_processes(run_id)) and time.monotonic() < ends_s:
        time.sleep(_LOOK_S)
    lines = [f"process {entry.name} (pid {entry.pid}) still runs" for entry in processes]
    log = undo_directory() / f"{run_id}.jsonl"
    try:
        entries = read_log(log).entries if log.exists() else []
    except UndoError as error:
        return [*lines, str(error)]
    lines += [f"not undone: {type(entry).__name__.removesuffix('Entry').lower()} in {log}" for entry in entries]
    return lines[:_SHOWN_MAX]
