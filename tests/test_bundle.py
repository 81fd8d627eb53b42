"""The bundle that people share: it holds the evidence, and nothing that says whose machine it was."""

import getpass
import socket
import zipfile
from pathlib import Path

import msgspec
import pytest

from tests import bundle
from tests.bundle import Scrubber
from tests.cases import Outcome
from tests.processes import ROOT


def test_it_holds_the_evidence_and_no_name_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "annas-mac.example.org")
    monkeypatch.setattr(getpass, "getuser", lambda: "anna")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    secret = f"{ROOT}/chaos/run.py on annas-mac, by anna, at 192.168.7.9, with sk-very-secret, beside 127.0.0.1"
    run = tmp_path / "case" / "20261124T120000-x-live-ab12"
    run.mkdir(parents=True)
    (run / "verdict.json").write_text(msgspec.json.encode({"verdict": "pass", "reasons": [secret]}).decode())
    (run / "environment.json").write_text(msgspec.json.encode({"hosts": secret}).decode())
    (run / "requests.parquet").write_bytes(b"prompts")
    outcome = Outcome(got="exit 0, pass", problems=[f"Traceback: {secret}"], figures="12 of 12", where=str(run))
    path = bundle.write(tmp_path, f"| case | {secret} |", {"case": outcome, "other": None}, "abc123")
    with zipfile.ZipFile(path) as found:
        names = found.namelist()
        texts = {name: found.read(name).decode() for name in names}
    assert {"machine.json", "table.md", "outcomes.json"} < set(names)
    assert [name for name in names if name.startswith("runs/case/")]
    assert not [name for name in names if name.endswith(".parquet")]
    whole = "\n".join([*texts.values(), *names])
    for taken in (str(ROOT), "annas-mac", "anna", "192.168.7.9", "sk-very-secret"):
        assert taken not in whole, taken
    assert "127.0.0.1" in whole
    assert "12 of 12" in texts["outcomes.json"]
    told = msgspec.json.decode(texts["machine.json"], type=dict[str, object])
    assert told["code"] == "abc123"
    assert told["metal"]
    packages = told["packages"]
    assert isinstance(packages, dict)
    assert "msgspec" in packages


def test_a_name_inside_of_a_word_stays_and_a_common_name_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    scrubber = Scrubber({})
    assert scrubber.clean("a channel of localhost, version 1.2.3, for Ann") == (
        "a channel of localhost, version 1.2.3, for <user>"
    )
