"""Results of strangers and of runs that were killed: harmless, readable, or refused in one line."""

import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis import plots, report
from analysis.aggregate import summarise
from analysis.history import UnreadableError
from analysis.judge import read_verdict
from analysis.reader import load_history, read_table
from analysis.salvage import salvage
from analysis.tables import SCHEMAS
from tests.analysis.histories import clean_run
from tests.analysis.saved_runs import save, save_raw

MARK = "planted"
HOSTILE = (
    f"<script>{MARK}()</script>",
    f"\"'><img src=x onerror={MARK}()><svg onload={MARK}()>",
    f"</style></svg></table></title><a href=\"javascript:{MARK}()\">{MARK}</a>",
    f"[{MARK}](javascript:{MARK}) ![{MARK}](http://{MARK}.example/x) | `{MARK}` ***{MARK}***",
    f"\n# {MARK}\n<!-- {MARK} --> ]]> <![CDATA[ {{{{ 7 * 7 }}}} {{% raw %}} $\\frac{{1}}{{0}}$",
    f"\x1b[2J\x1b]0;{MARK}\x07 \u202egnp.{MARK} \u2066\u200b\x00\x08 \u2028",
    f"../../../{MARK}/etc/passwd",
    f'=HYPERLINK("http://{MARK}.example","x")',
    MARK * 20_000,
)
STRUCTURE = {"kind", "side", "outcome", "role"}
"""Columns of which only our own words reach the reports; a foreign word there says nothing."""

FILES = (*(f"{name}.parquet" for name in SCHEMAS), "schedule.parquet", "references.parquet")
TEXTS = ("run.json", "experiment.yaml", "environment.json")
FORBIDDEN = {"script", "img", "iframe", "object", "embed", "form", "input", "base", "audio", "video", "foreignobject"}


class Elements(HTMLParser):
    """Every element with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def planted(table: pa.Table, keep: set[str]) -> pa.Table:
    """The table with hostile texts in all its string columns but these, in one row out of three."""
    for number, field in enumerate(table.schema):
        if pa.types.is_string(field.type) and field.name not in keep:
            texts = [
                HOSTILE[(row + number) % len(HOSTILE)] if row % 3 == 0 else value
                for row, value in enumerate(table[field.name].to_pylist())
            ]
            table = table.set_column(number, field, pa.array(texts, field.type))
        elif field.type == pa.list_(pa.string()) and field.name not in keep:
            lists = [list(HOSTILE) for _ in range(table.num_rows)]
            table = table.set_column(number, field, pa.array(lists, field.type))
    return table


@pytest.mark.parametrize("keep", [STRUCTURE, set()], ids=["names", "everything"])
def test_hostile_strings_in_every_column_are_text(
    tmp_path: Path, keep: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = save(tmp_path / "run")
    for name in FILES:
        path = directory / name
        pq.write_table(planted(pq.read_table(path), keep), path)
    info = load_history(directory).info
    every = " ".join(HOSTILE)
    strange = msgspec.structs.replace(
        info, run_id=every, experiment=every, world=every, ended_by=every, notes=[*HOSTILE], left_behind=[*HOSTILE]
    )
    (directory / "run.json").write_bytes(msgspec.json.encode(strange))
    told = {"title": every, "question": every, HOSTILE[0]: HOSTILE[1]}
    (directory / "experiment.yaml").write_bytes(msgspec.yaml.encode({**clean_run().experiment, **told}))
    (directory / "environment.json").write_bytes(msgspec.json.encode({text: [text, {text: text}] for text in HOSTILE}))
    before = set(tmp_path.rglob("*"))
    assert report.main([str(directory)]) in (0, 1, 3, 4)
    said = capsys.readouterr()
    assert not {"\x1b", "\x07", "\u202e"} & set(said.out + said.err)
    assert {path.name for path in set(tmp_path.rglob("*")) - before} <= {
        "verdict.json", "report.html", "report.md", "junit.xml",
    }  # fmt: skip
    html = (directory / "report.html").read_text()
    assert MARK in html
    elements = Elements(html)
    assert len(elements.found) > 100
    for tag, attributes in elements.found:
        assert tag not in FORBIDDEN
        assert not [name for name in attributes if name.startswith("on") or MARK in name]
        for name in ("href", "src", "xlink:href", "action", "style", "srcset"):
            value = attributes.get(name) or ""
            assert MARK not in value
            assert not name.endswith("href") or value.startswith(("#", "data:,")) or not value
    markdown = (directory / "report.md").read_text()
    prose = [line for line in markdown.splitlines() if not line.startswith("    ")]
    assert not [line for line in prose if "<script" in line or "<img" in line or "](" in line or "<!--" in line]
    assert not [line for line in prose if line.startswith(f"# {MARK}")]
    ElementTree.fromstring((directory / "junit.xml").read_text())
    for text in (html, markdown, (directory / "junit.xml").read_text()):
        assert not {"\x1b", "\x07", "\x00", "\x08", "\u202e", "\u2066", "\u200b", "\u2028"} & set(text)
        assert MARK * 200 not in text


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = save(tmp_path_factory.mktemp("whole") / "run")
    shutil.rmtree(directory / "raw")
    return directory


damages = st.tuples(
    st.sampled_from([*FILES, *TEXTS]),
    st.sampled_from(["flip", "cut", "zero", "insert", "swap"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 255),
)


def damage(directory: Path, file: str, how: str, share: float, value: int) -> None:
    payload = bytearray((directory / file).read_bytes())
    at = int(share * len(payload))
    if how == "flip":
        payload[at] ^= value
    elif how == "cut":
        del payload[at:]
    elif how == "zero":
        payload[at : at + 16] = bytes(len(payload[at : at + 16]))
    elif how == "insert":
        payload[at:at] = bytes([value]) * 8
    else:
        other = FILES[value % len(FILES)]
        payload = bytearray((directory / other).read_bytes())
    (directory / file).write_bytes(payload)


def judged(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report's command ends with a verdict, or with one line that names the directory."""
    capsys.readouterr()
    code = report.main([str(directory)])
    told = capsys.readouterr().err
    assert code in (0, 1, 2, 3, 4)
    if code == 2:
        assert told.startswith("analysis.report: ")
        assert told.count("\n") == 1, told
        assert len(told) < 1_000
    try:
        summarise(directory)
    except UnreadableError as error:
        assert "\n" not in str(error)  # noqa: PT017 - that it is this error is half of the claim


def check_damage(
    whole: Path, folder: Path, done: tuple[str, str, float, int], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = folder / "run"
    shutil.copytree(whole, directory)
    damage(directory, *done)
    judged(directory, capsys)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(done=damages)
def test_damaged_files_are_one_line_or_a_verdict(
    whole: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    done: tuple[str, str, float, int],
) -> None:
    # Drawing takes most of the time; the long version of this test draws.
    monkeypatch.setattr(plots, "draw", lambda history: [])
    check_damage(whole, tmp_path_factory.mktemp("damaged"), done, capsys)


@pytest.mark.verify
@pytest.mark.timeout(1200)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(done=damages)
def test_damaged_files_are_one_line_or_a_whole_report(
    whole: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    done: tuple[str, str, float, int],
) -> None:
    check_damage(whole, tmp_path_factory.mktemp("damaged"), done, capsys)


def test_a_flipped_bit_of_a_page_is_noticed(whole: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(whole, directory)
    payload = bytearray((directory / "requests.parquet").read_bytes())
    place = pq.read_metadata(directory / "requests.parquet").row_group(0).column(3)
    payload[place.data_page_offset + place.total_compressed_size // 2] ^= 1
    (directory / "requests.parquet").write_bytes(payload)
    with pytest.raises(UnreadableError, match=r"requests\.parquet: not a readable Parquet file"):
        load_history(directory)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("intended_s", None, "column intended_s: a value is missing"),
        ("intended_s", float("nan"), "column intended_s: not within"),
        ("ended_s", float("inf"), "column ended_s: not within"),
        ("ended_s", 1e300, "column ended_s: not within"),
        ("outcome", None, "column outcome: a value is missing"),
        ("prompt_tokens", 2**60, "column prompt_tokens: not within"),
        ("tokens", [1, None], r"column tokens\.item: a value is missing"),
    ],
)
def test_values_that_no_run_has_are_refused(tmp_path: Path, column: str, value: object, message: str) -> None:
    directory = save(tmp_path / "run")
    table = pq.read_table(directory / "requests.parquet")
    values = [value, *table[column].to_pylist()[1:]]
    number = table.schema.get_field_index(column)
    spoilt = table.set_column(number, table.schema.field(number), pa.array(values, table.schema.field(number).type))
    pq.write_table(spoilt, directory / "requests.parquet")
    with pytest.raises(UnreadableError, match=message):
        load_history(directory)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    directory = save(tmp_path / "run")
    table = pq.read_table(directory / "schedule.parquet")
    spoilt = pa.array([b"r\xff9"] * table.num_rows, pa.binary()).view(pa.string())
    table = table.set_column(0, table.schema.field(0), spoilt)
    arm = table.schema.get_field_index("arm")
    table = table.set_column(arm, table.schema.field(arm), pa.array(["a"] * table.num_rows))
    pq.write_table(table, directory / "schedule.parquet")
    for read in (load_history, summarise):
        with pytest.raises(UnreadableError, match=r"schedule\.parquet: not .* UTF8"):
            read(directory)


def test_json_that_is_no_text_is_refused(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "verdict.json").write_bytes(b'{"verdict": "\xff"}')
    with pytest.raises(UnreadableError, match="not a verdict"):
        read_verdict(run)
    (run / "run.json").write_bytes(b'{"run_id": "\xff"}')
    with pytest.raises(UnreadableError, match="not a run description"):
        load_history(run)


def test_an_incarnation_is_a_time_in_nanoseconds(tmp_path: Path) -> None:
    directory = save(tmp_path / "run")
    table = pq.read_table(directory / "requests.parquet")
    number = table.schema.get_field_index("incarnation")
    born = pa.array([1_800_000_000_000_000_000] * table.num_rows)
    pq.write_table(table.set_column(number, table.schema.field(number), born), directory / "requests.parquet")
    assert len(load_history(directory).requests) == table.num_rows


def test_a_small_file_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    size = 100_000
    rows = {name: pa.nulls(size, SCHEMAS["events"].field(name).type) for name in SCHEMAS["events"].names}
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(size, np.int32)), pa.array(["x" * 1_000_000]))
    pq.write_table(pa.table({**rows, "detail": texts}), tmp_path / "events.parquet")
    assert (tmp_path / "events.parquet").stat().st_size < 3_000_000
    with pytest.raises(UnreadableError, match="bytes of values, of at most"):
        read_table(tmp_path / "events.parquet", SCHEMAS["events"])


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.integers(0, 1_000), share=st.floats(0, 1))
def test_a_killed_run_is_readable_wherever_its_files_end(
    raw_run: Path, tmp_path_factory: pytest.TempPathFactory, file: int, share: float
) -> None:
    directory = tmp_path_factory.mktemp("killed") / "run"
    shutil.copytree(raw_run, directory)
    files = sorted((directory / "raw").glob("*.arrow"))
    path = files[file % len(files)]
    payload = path.read_bytes()
    path.write_bytes(payload[: int(share * len(payload))])
    before = summarise(directory)
    assert any("killed" in note for note in salvage(directory))
    history = load_history(directory)
    assert not history.info.complete
    table = path.name.split(".")[0]
    untouched = {name: len(getattr(load_history_of(raw_run), name)) for name in SCHEMAS}
    for name in SCHEMAS:
        rows = len(getattr(history, name))
        assert rows <= untouched[name] if name == table else rows == untouched[name]
    assert before.rows.get("requests", 0) == len(history.requests)
    assert before.rows.get("attempts", 0) == len(history.attempts)
    after = summarise(directory)
    assert after.select().ended == before.select().ended


@pytest.fixture(scope="module")
def raw_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_raw(tmp_path_factory.mktemp("raw") / "run")


_READ: dict[Path, object] = {}


def load_history_of(raw_run: Path) -> object:
    if raw_run not in _READ:
        directory = raw_run.with_name("whole")
        shutil.copytree(raw_run, directory)
        salvage(directory)
        _READ[raw_run] = load_history(directory)
    return _READ[raw_run]


def recorded_bytes(base: Path) -> int:
    """Of requests, once the load that counts has begun: what comes before is the capacity probe's."""
    for path in base.glob("*/raw/events.director.*.arrow"):
        if b"run_started" in path.read_bytes():
            return sum(file.stat().st_size for file in path.parent.glob("requests.*.arrow"))
    return 0


@pytest.mark.simulated
def test_a_run_that_is_killed_leaves_a_report_that_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "chaos.run", "network_partition", "--world", "simulated", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        ends_s = time.monotonic() + 120
        while recorded_bytes(tmp_path) < 20_000:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < ends_s
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    (directory,) = (path.parent for path in tmp_path.glob("*/run.json") if not path.parent.is_symlink())
    assert report.main([str(directory)]) in (1, 3, 4)
    for name in ("report.html", "report.md"):
        assert "This run is incomplete" in (directory / name).read_text()
    assert not load_history(directory).info.complete
    assert len(load_history(directory).schedule) > len(load_history(directory).requests)
