"""Ten minutes of a schedule of two entries every minute, killed in the middle and started again: what must be true."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from chaos.scheduling.calendar import Cron
from chaos.scheduling.journal import FOLDER
from chaos.scheduling.records import Ended, Missed, Opened, Record, Started
from tests.chaos.scheduling.fast import BEGIN_S
from tests.chaos.scheduling.plans import changes, fates, unaccounted
from tests.processes import MARK, ROOT, Family

MINUTES = 10


class Webhook:
    """What is posted to it, in order. refuse: answers 500 and takes nothing while set."""

    def __init__(self, server: http.server.ThreadingHTTPServer) -> None:
        self.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
        self.posted: list[dict[str, object]] = []
        self.refuse = False


@contextmanager
def webhook() -> Iterator[Webhook]:
    """One on loopback."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not hook.refuse:
                hook.posted.append(json.loads(body))
            self.send_response(500 if hook.refuse else 200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hook = Webhook(server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hook
    finally:
        server.shutdown()
        server.server_close()


class Ten:
    """The schedule in a folder of its own, and its scheduler's process."""

    def __init__(self, folder: Path, factor: float, command: str, url: str) -> None:
        self.folder = folder
        self.factor = factor
        self._command = command
        self._environment = {"TEST_WEBHOOK": url}
        self._mark = os.urandom(8).hex()
        self.family = Family(self._mark)
        self.results = folder / "results"
        self.lines: list[str] = []
        self.options: list[str] = []
        """Of chaos.schedule."""
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start the scheduler."""
        arguments = [str(self.folder / "anchor"), str(self.factor), self._command, "--"]
        arguments += [str(self.folder / "schedule.yaml"), *self.options]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.scheduling.fast", *arguments],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **self._environment, "PYTHONUNBUFFERED": "1", MARK: self._mark},
        )  # fmt: skip
        self.family.add(self._process.pid)
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()

    def kill(self) -> None:
        """kill -9 of the scheduler and nothing else."""
        assert self._process is not None
        self.family.look()
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """As a service manager does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(120)

    def records(self) -> list[Record]:
        """What is in the journal now."""
        try:
            data = (self.results / FOLDER / "journal.jsonl").read_bytes()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        return [msgspec.json.decode(line, type=Record) for line in whole.splitlines()]

    def until(self, true: Callable[[], object], limit_s: float) -> bool:
        """Wait for something to be true."""
        ends_s = time.monotonic() + limit_s
        while not true():
            if time.monotonic() > ends_s:
                return False
            time.sleep(0.02)
        return True

    def minute(self) -> float:
        """Minutes of the schedule's time since it began."""
        try:
            return (time.time() - float((self.folder / "anchor").read_text())) * self.factor / 60
        except (FileNotFoundError, ValueError):
            return 0.0

    def problems(self, posted: list[dict[str, object]]) -> list[str]:
        """What is not as it must be, from the journal, the folders of slots and what was posted."""
        records = self.records()
        found = []
        for entry in {record.entry for record in records}:
            found += unaccounted(records, entry, Cron("* * * * *", "UTC"))
            until = max((each[1] for each in fates(records, entry)), default=0)
            if until < BEGIN_S + 60 * (MINUTES - 1):
                found.append(f"{entry}: accounted for up to {until} only")
        for started in self.results.glob("*/*/started"):
            if started.read_text() != "once\n":
                found.append(f"{started.parent}: started more than once")
        runs = [path.parent for path in self.results.glob("*/*/*/run.json") if path.parent.name != "latest"]
        slots = [path.parent for path in runs]
        found += [f"{slot}: {slots.count(slot)} runs" for slot in set(slots) if slots.count(slot) > 1]
        starts = {(each.entry, each.slot_s) for each in records if isinstance(each, Started)}
        if len(runs) > len(starts):
            found.append(f"{len(runs)} runs, and only {len(starts)} starts written down")
        told = [str(body["id"]).partition("/")[2] for body in posted]
        due = changes(records)
        # One that was posted just before the kill may come again; its id says so.
        if list(dict.fromkeys(told)) != due or len(told) > len(due) + 1:
            found.append(f"posted {told}, and the changes are {due}")
        return found

    def figures(self) -> str:
        """How the slots ended, and whose end the kill was."""
        records = self.records()
        ended = [each for each in records if isinstance(each, Ended)]
        missed = sum(each.slots for each in records if isinstance(each, Missed))
        opened = sum(isinstance(each, Opened) for each in records)
        ran = sum(each.outcome == "ran" for each in ended)
        return f"{opened} entries, {ran} ran, {len(ended) - ran} interrupted, {missed} missed"

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout:
            self.lines += process.stdout
