"""A request that nobody has answered may still be delivered: what it would do is not undone by not being there yet."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from chaos.healing import heal_entry, settling
from chaos.toxiproxy.adapter import Toxic, Toxiproxy, ToxiproxyRefused
from chaos.toxiproxy.errors import ToxiproxyTimeout, ToxiproxyUnsafe
from chaos.undo import LATE_S, DisabledEntry, ToxicEntry, UndoLog, comes_late_until
from tests.chaos.staging.fakes import fake_cluster

STALL = Toxic("ours", "latency", "upstream", {"latency": 60_000})


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> UndoLog:
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path / "cache"))
    return UndoLog.create("late")


def announced(log: UndoLog, *, disabled: bool = False, borrowed: bool = True, url: str = "http://127.0.0.1:1") -> str:
    if disabled:
        return log.add(DisabledEntry(api_url=url, proxy="w0", borrowed=borrowed))
    return log.add(ToxicEntry(api_url=url, proxy="w0", toxic="ours", borrowed=borrowed))


def test_only_what_was_answered_for_certain_is_settled(log: UndoLog) -> None:
    answers: list[Exception | None] = [
        None,
        ToxiproxyUnsafe("not sent"),
        ToxiproxyRefused("no such toxic", 400),
        ToxiproxyRefused("timeout", 503),
        ToxiproxyTimeout("no answer"),
    ]
    for answer in answers:
        identifier = announced(log)
        try:
            with settling(log, identifier):
                if answer is not None:
                    raise answer
        except (ToxiproxyRefused, ToxiproxyUnsafe, ToxiproxyTimeout):
            pass
    assert [entry.settled for entry in log.open_entries()] == [True, True, True, False, False]


def test_only_a_borrowed_proxy_is_looked_at_for_longer(log: UndoLog) -> None:
    announced(log, borrowed=False)
    announced(log)
    ours, theirs = log.open_entries()
    assert comes_late_until(ours) is None
    assert comes_late_until(theirs) == theirs.made_unix_s + LATE_S
    assert comes_late_until(replace(theirs, expires_unix_s=theirs.made_unix_s + 900)) == theirs.made_unix_s + 900
    assert comes_late_until(replace(theirs, settled=True)) is None


@pytest.mark.parametrize("disabled", [False, True])
def test_what_comes_after_the_heal_is_undone_as_well(log: UndoLog, tmp_path: Path, disabled: bool) -> None:
    with fake_cluster(tmp_path) as cluster:
        api = Toxiproxy(cluster.toxiproxy_url)
        announced(log, disabled=disabled, url=cluster.toxiproxy_url)
        (entry,) = log.open_entries()
        before = heal_entry(entry)
        assert not before.healed
        assert "may still arrive" in before.text
        # Here it comes.
        if disabled:
            api.set_enabled("w0", False)
        else:
            api.add_toxic("w0", STALL)
        assert heal_entry(entry).healed
        state = api.proxy("w0")
        assert state is not None
        assert state.enabled
        assert "ours" not in [toxic["name"] for toxic in cluster.proxy()["toxics"]]


@pytest.mark.parametrize("disabled", [False, True])
def test_what_is_settled_or_long_ago_and_not_there_is_undone(log: UndoLog, tmp_path: Path, disabled: bool) -> None:
    with fake_cluster(tmp_path) as cluster:
        identifier = announced(log, disabled=disabled, url=cluster.toxiproxy_url)
        (entry,) = log.open_entries()
        assert heal_entry(replace(entry, made_unix_s=entry.made_unix_s - LATE_S)).healed
        log.settle(identifier)
        assert heal_entry(log.open_entries()[0]).healed
