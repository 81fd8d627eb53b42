"""The load clients against stubs of known timing: HTTP beside another load driver at the same stub, and NATS.

`python -m tests.roofline_bench` prints the rows; tests.bench shows them with the others. The other driver is aiperf,
in an environment of its own that is made once and thrown away with the folder for temporary files; it is no dependency.
"""

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from cluster.engine.weights import model_directory
from workloads import nats_roofline
from workloads.roofline import STREAM_TOKENS, TOKENS, closed_loop, drive_stub, most_per_s, open_loop
from workloads.stub_process import running_stub

Row = tuple[str, str, str, str]

RATE_PER_S = 500.0
RATE_S = 8.0
MOST_S = 3.0
IN_FLIGHT = 64
ROUNDS = 3
PEER = "aiperf==0.13.0"
PEER_REQUESTS = 3_000
PEER_S_MAX = 180.0
INSTALL_S_MAX = 600.0


def roofline_rows() -> list[Row]:
    """Dispatch lag at 500 requests/s, the error of what is measured then, and the maximum rate beside the peer's."""
    return asyncio.run(_rows())


def nats_client_rows() -> list[Row]:
    """The most that a load client of a live run does, and its dispatch lag at 500 requests/s."""
    found = asyncio.run(nats_roofline.measure(MOST_S, RATE_PER_S))
    what = f"NATS client, {found.in_flight} in flight, most"
    return [
        (
            f"{what} requests ({found.tokens} tokens at once)",
            f"{found.requests_per_s:.0f} requests/s",
            f"client {found.client_cpu:.0%} of a core",
            f"stub {found.stub_cpu:.0%}",
        ),
        (f"{what} tokens (streams of {STREAM_TOKENS})", f"{found.tokens_per_s or 0.0:.0f} tokens/s", "", ""),
        (
            f"NATS client at {RATE_PER_S:.0f} requests/s, {found.samples} completed, {found.failed} did not",
            f"dispatch lag p99 {_ms(found.lag_p99_s)}",
            f"first token {1000 * found.ttft_error_p50_s:+.2f} ms off the truth, p99 {_ms(found.ttft_error_p99_s)}",
            f"the stub's own p99 {_ms(found.stub_late_p99_s)}",
        ),
    ]


def _ms(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{1000 * seconds:.2f} ms"


async def _rows() -> list[Row]:
    rows = await _paced_rows()
    peer = _Peer()
    ours, theirs = [], []
    async with running_stub(0.0, 0.0) as stub:
        await drive_stub(stub, closed_loop(IN_FLIGHT, 0.5))
        for _ in range(ROUNDS):
            ours.append(most_per_s((await drive_stub(stub, closed_loop(IN_FLIGHT, MOST_S))).completed))
            if not peer.trouble:
                theirs.append(peer.most_per_s(stub.url))
    told = [value for value in theirs if value is not None]
    what = f"HTTP driver, {IN_FLIGHT} in flight, {TOKENS} tokens at once, most"
    mine = f"{statistics.median(ours):.0f} requests/s"
    if peer.trouble or not told:
        return [*rows, (what, mine, f"{PEER}: {peer.trouble or 'told no rate'}", "")]
    ratios = [one / other for one, other in zip(ours, theirs, strict=True) if other]
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return [*rows, (what, mine, f"{PEER} {statistics.median(told):.0f} requests/s", spread)]


async def _paced_rows() -> list[Row]:
    async with running_stub(0.05, 0.01) as stub:
        await drive_stub(stub, open_loop(RATE_PER_S / 5, 1.0, tokens=4))
        # Four tokens each, as many in all as a quiet machine's one core reads in time.
        paced = await drive_stub(stub, open_loop(RATE_PER_S, RATE_S, tokens=4))
    lags = sorted(row.sent_s - row.intended_s for row in paced.rows)
    errors = sorted((row.first_token_s or row.ended_s) - row.sent_s - 0.05 for row in paced.completed)
    lag_p99_s = paced.lag_p99_s() or float("nan")
    late_s = paced.stub_late_p99_s or float("nan")
    return [
        (
            f"HTTP driver at {RATE_PER_S:.0f} requests/s, {len(paced.completed)} of {len(paced.rows)} completed",
            f"dispatch lag p99 {1000 * lag_p99_s:.2f} ms",
            f"p50 {1000 * lags[len(lags) // 2]:.2f} ms",
            f"{paced.client_cpu:.0%} of a core",
        ),
        (
            "  time to first token against the stub's 50 ms",
            f"median {1000 * statistics.median(errors):+.2f} ms",
            f"p99 {1000 * errors[int(0.99 * len(errors))]:+.2f} ms",
            f"the stub's own p99 {1000 * late_s:.2f} ms",
        ),
    ]


class _Peer:
    """aiperf in an environment of its own. trouble: why it cannot be had, empty when it can."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.gettempdir()) / f"mlx-chaos-peer-{os.getuid()}-{PEER}"
        self._program = self._folder / "bin" / "aiperf"
        self.trouble = "" if self._program.exists() else self._install()

    def most_per_s(self, url: str) -> float | None:
        """Requests per second with the same number in flight, answers and stub; None when it tells none."""
        with tempfile.TemporaryDirectory() as folder:
            command = [str(self._program), "profile", "--model", "stub", "--url", url.removesuffix("/v1")]
            command += ["--endpoint-type", "chat", "--streaming", "--concurrency", str(IN_FLIGHT)]
            command += ["--request-count", str(PEER_REQUESTS), "--warmup-request-count", "100"]
            command += ["--synthetic-input-tokens-mean", "32", "--output-tokens-mean", str(TOKENS)]
            command += ["--tokenizer", str(model_directory("tiny")), "--ui", "none", "--output-artifact-dir", folder]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=PEER_S_MAX, stdin=subprocess.DEVNULL
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                self.trouble = f"{type(error).__name__} after at most {PEER_S_MAX:g} s"
                return None
            found = Path(folder) / "profile_export_aiperf.json"
            if not found.exists():
                lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
                self.trouble = f"exit code {done.returncode}: {lines[-1][:120] if lines else 'it said nothing'}"
                return None
            told = json.loads(found.read_text())
        rate = told.get("request_throughput", {}).get("avg")
        return float(rate) if rate else None

    def _install(self) -> str:
        uv = shutil.which("uv")
        python = str(self._folder / "bin" / "python")
        steps = (
            [
                [uv, "venv", "--python", sys.executable, str(self._folder)],
                [uv, "pip", "install", "--python", python, PEER],
            ]
            if uv
            else [[sys.executable, "-m", "venv", str(self._folder)], [python, "-m", "pip", "install", "--quiet", PEER]]
        )
        for step in steps:
            try:
                subprocess.run(step, capture_output=True, check=True, timeout=INSTALL_S_MAX)
            except (OSError, subprocess.SubprocessError) as error:
                shutil.rmtree(self._folder, ignore_errors=True)
                return f"cannot be installed: {type(error).__name__}"
        return "" if self._program.exists() else "installed, and its command is not there"


def main() -> int:
    """Print the rows."""
    for row in [*roofline_rows(), *nats_client_rows()]:
        print("| " + " | ".join(row) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
