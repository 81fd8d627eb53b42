"""What the doctor's command prints, and what it refuses."""

import socket
import subprocess
import sys

import pytest

from cluster.doctor.__main__ import DoctorError, _listening, told
from cluster.doctor.findings import Finding
from tests.processes import ROOT

FOUND = [
    Finding("host-0", "disk", True, "50 GB free"),
    Finding("host-0", "sleep", True, "not applicable on Linux", applies=False),
    Finding("host-1", "project", False, "not installed there", "put it there"),
]


def test_only_what_has_to_be_mended_is_told_unless_all_is_asked_for() -> None:
    short = told(FOUND, everything=False).splitlines()
    assert short == [
        "FIX host-1  project: not installed there",
        "            put it there",
        "2 hosts, 3 checks: 1 to mend, 1 not applicable here",
    ]
    whole = told(FOUND, everything=True).splitlines()
    assert whole[:2] == ["ok  host-0  disk: 50 GB free", "n/a host-0  sleep: not applicable on Linux"]
    assert whole[2:] == short


def test_ports_are_listened_on_only_where_it_was_asked_for() -> None:
    with _listening("127.0.0.1", ()) as (port,):
        with socket.create_connection(("127.0.0.1", port), 2.0):
            pass
        with pytest.raises(DoctorError, match=f"port {port} of 127.0.0.1 cannot be listened on"):
            _listening("127.0.0.1", (port,)).__enter__()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), 2.0)


@pytest.mark.parametrize("wrong", [("--port", "0"), ("--port", "70000"), ("--workers", "0"), ("--nonsense",)])
def test_a_wrong_option_costs_no_traceback(wrong: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "cluster.doctor", *wrong]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
