"""The journal against power cuts, full disks, second schedulers and its own growth."""

import os
from pathlib import Path

import pytest

from chaos.scheduling import journal as module
from chaos.scheduling.journal import Journal, JournalBusy, JournalError, read
from chaos.scheduling.records import Ended, JournalDamaged, Opened, Record, Started

RECORDS: tuple[Record, ...] = (
    Opened(entry="a", at_s=0.0, cron="* * * * *", timezone="UTC", after_s=0),
    Started(entry="a", at_s=60.5, slot_s=60),
    Ended(entry="a", at_s=70.0, slot_s=60, outcome="ran", verdict="fail", reason="", results="", quarantine=True),
    Started(entry="a", at_s=120.5, slot_s=120),
)


def written(folder: Path, *records: Record) -> Path:
    journal = Journal(folder)
    for record in records:
        journal.write(record)
        journal.state.apply(record)
    journal.close()
    return folder / "journal.jsonl"


def test_whatever_part_of_the_last_line_reached_the_disk_the_rest_is_read_and_can_be_gone_on_from(
    tmp_path: Path,
) -> None:
    path = written(tmp_path / "whole", *RECORDS)
    data = path.read_bytes()
    before_last = data[:-1].rfind(b"\n") + 1
    for cut in range(before_last, len(data)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "journal.jsonl").write_bytes(data[:cut])
        assert not read(folder).running, "a start whose line is torn was never made"
        written(folder, RECORDS[-1])
        assert [run.slot_s for run in read(folder).running] == [120]


def test_a_line_that_is_damaged_stops_everything_and_says_where(tmp_path: Path) -> None:
    path = written(tmp_path, *RECORDS)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"garbage\n", *lines[2:]]))
    with pytest.raises(JournalDamaged, match="line 2"):
        Journal(tmp_path)
    # The lock was not kept.
    path.write_bytes(b"".join(lines))
    Journal(tmp_path).close()


def test_a_start_that_is_written_twice_is_damage(tmp_path: Path) -> None:
    path = written(tmp_path, *RECORDS)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, lines[-1]]))
    with pytest.raises(JournalDamaged, match="line 5: a: a slot is started twice"):
        read(tmp_path)


def test_a_full_disk_is_an_error_and_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.write(RECORDS[0])
    real = os.pwrite

    def full(file: int, data: bytes, offset: int) -> int:
        if len(data) < 40:
            raise OSError(28, "No space left on device")
        return real(file, data[:-39], offset)

    monkeypatch.setattr(module.os, "pwrite", full)
    with pytest.raises(JournalError, match="No space left"):
        journal.write(RECORDS[1])
    monkeypatch.undo()
    assert (tmp_path / "journal.jsonl").read_bytes().count(b"\n") == 1
    journal.write(RECORDS[1])
    journal.close()
    assert len(read(tmp_path).running) == 1


def test_a_second_scheduler_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOCK_S", 0.1)
    first = Journal(tmp_path)
    with pytest.raises(JournalBusy, match="another scheduler"):
        Journal(tmp_path)
    first.close()
    Journal(tmp_path).close()


def test_one_that_has_grown_is_made_shorter_and_means_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    for record in RECORDS:
        journal.write(record)
        journal.state.apply(record)
    journal.shorten(journal.state)
    assert (tmp_path / "journal.jsonl").read_bytes().count(b"\n") == 4, "it is small"
    monkeypatch.setattr(module, "BYTES_MAX", 10)
    journal.shorten(journal.state)
    assert (tmp_path / "journal.jsonl").read_bytes().count(b"\n") == 1
    end = Ended(entry="a", at_s=130.0, slot_s=120, outcome="ran", verdict="pass", reason="", results="")
    journal.write(end)
    journal.state.apply(end)
    journal.close()
    state = read(tmp_path)
    assert state == journal.state
    assert state.entries["a"].quarantined_s == 60
    assert [change.verdict for change in state.changes] == ["fail", "pass"]
