"""The progress file: what a browser of runs reads while a run goes on, and nothing afterwards."""

import io
from pathlib import Path

import msgspec

from chaos.progress import Progress, Snapshot
from chaos.publishing import FILE, PublishedProgress


def test_the_file_follows_the_run_and_goes_with_it(tmp_path: Path) -> None:
    now = [0.0]
    progress = PublishedProgress(Progress(io.StringIO()), tmp_path, lambda: now[0])

    def told() -> dict[str, object]:
        return msgspec.json.decode((tmp_path / FILE).read_bytes(), type=dict[str, object])

    progress.phase("baseline", 9.0)
    assert told() == {"phase": "baseline", "duration_s": 9.0, "notes": [], "snapshot": None}
    progress.update(Snapshot(elapsed_s=1.0, phase="baseline", offered=3))
    assert told()["snapshot"] is None, "not more often than once a second"
    now[0] = 1.0
    progress.update(Snapshot(elapsed_s=1.5, phase="baseline", offered=4))
    snapshot = told()["snapshot"]
    assert isinstance(snapshot, dict)
    assert snapshot["offered"] == 4
    for number in range(20):
        progress.note(f"note {number}")
    assert told()["notes"] == [f"note {number}" for number in range(12, 20)]
    progress.close()
    progress.close()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    shown = io.StringIO()
    progress = PublishedProgress(Progress(shown), tmp_path / "gone")
    progress.phase("baseline")
    progress.close()
    assert "phase baseline" in shown.getvalue()
