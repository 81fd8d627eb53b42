"""Recorded loads: read strictly, replayed at any rate, with the recorded prefixes in common."""

import csv
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.schedule import ScheduledRequest, build_schedule, first_requests
from workloads.spec import TraceSpec, WorkloadSpec
from workloads.traces import TraceError, read_trace, settle_trace, trace_units
from workloads.vocabulary import ByteVocabulary

DATA = Path(__file__).parent / "data"
WORDS = ByteVocabulary()
FILES: dict[str, Any] = {"mooncake": "mooncake.jsonl", "burstgpt": "burstgpt.csv", "azure": "azure.csv"}
FORMATS = list(FILES)


def workload(format_name: Any, **options: Any) -> WorkloadSpec:
    path = options.pop("path", DATA / FILES[format_name])
    return WorkloadSpec(arrivals="trace", trace=TraceSpec(path=str(path), format=format_name, **options))


def replay(spec: WorkloadSpec, rate_per_s: float = 4, duration_s: float = 6, seed: int = 1) -> list[ScheduledRequest]:
    return build_schedule(spec, rate_per_s, duration_s, seed, WORDS)


def content(request: ScheduledRequest) -> tuple[int, ...]:
    markers = WORDS.markers
    return request.prompt[len(markers.before_first) : -len(markers.before_reply)]


def test_mooncake_prompts_have_the_recorded_lengths_and_prefixes() -> None:
    rows = [json.loads(line) for line in (DATA / "mooncake.jsonl").read_text().splitlines()]
    requests = replay(workload("mooncake"))
    assert len(requests) == len(rows) == 24
    shared = 0
    for row, request in zip(rows, requests, strict=True):
        assert len(content(request)) == row["input_length"]
        assert request.max_tokens == row["output_length"]
        for other_row, other in zip(rows, requests, strict=True):
            common = 0
            for one, two in zip(row["hash_ids"], other_row["hash_ids"], strict=False):
                if one != two:
                    break
                common += 1
            length = min(common * 512, row["input_length"], other_row["input_length"])
            assert content(request)[:length] == content(other)[:length]
            if common < min(len(row["hash_ids"]), len(other_row["hash_ids"])):
                assert content(request)[: length + 12] != content(other)[: length + 12]
            shared += common if row is not other_row else 0
    assert shared > 20


@pytest.mark.parametrize("format_name", FORMATS)
def test_times_keep_their_shape_at_any_rate(format_name: str) -> None:
    trace = read_trace(workload(format_name).trace)  # type: ignore[arg-type]
    recorded = np.array([request.time_s for request in trace.requests])
    recorded -= recorded[0]
    for rate_per_s in (1.0, 40.0):
        duration_s = 24 / rate_per_s
        times = np.array([request.intended_s for request in replay(workload(format_name), rate_per_s, duration_s)])
        assert len(times) == 24
        assert times / times[-1] == pytest.approx(recorded / recorded[-1])
        assert 23 / times[-1] == pytest.approx(rate_per_s)


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("speed", [1.0, 2.5])
def test_a_speed_replays_the_recorded_times(format_name: str, speed: float) -> None:
    spec = settle_trace(workload(format_name, path=FILES[format_name], speed=speed), DATA)
    assert settle_trace(spec, Path("/nowhere")) == spec
    trace = read_trace(spec.trace)  # type: ignore[arg-type]
    per_s = float(spec.rate.removesuffix("/s"))
    requests = replay(spec, per_s, trace.span_s / speed * 24 / 23)
    recorded = np.array([request.time_s for request in trace.requests])
    assert [r.intended_s for r in requests] == pytest.approx((recorded - recorded[0]) / speed, rel=1e-5, abs=1e-6)


def test_the_prompts_of_a_burstgpt_session_begin_alike_and_others_do_not() -> None:
    with (DATA / "burstgpt.csv").open() as file:
        rows = list(csv.DictReader(file))
    requests = replay(workload("burstgpt"))
    sessions: dict[str, list[ScheduledRequest]] = {}
    for row, request in zip(rows, requests, strict=True):
        assert len(content(request)) == max(1, int(row["Request tokens"]))
        assert request.max_tokens == max(1, int(row["Response tokens"]))
        sessions.setdefault(row["Session ID"] or f"own {request.request_id}", []).append(request)
    assert max(len(found) for found in sessions.values()) >= 3
    assert len({request.session_id for request in requests}) == len(sessions)
    for found in sessions.values():
        assert [request.turn for request in found] == list(range(len(found)))
        assert len({request.session_id for request in found}) == 1
        for one in found:
            for two in found:
                least = min(len(content(one)), len(content(two)))
                assert content(one)[:least] == content(two)[:least]
    assert len({content(found[0])[:12] for found in sessions.values()}) == len(sessions)


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_trace_that_is_over_begins_again_with_other_words_or_is_refused(format_name: str) -> None:
    with pytest.raises(TraceError, match=r"it holds 24 requests, the load needs 48: set trace.repeat"):
        replay(workload(format_name), 4, 12)
    requests = replay(workload(format_name, repeat=True), 4, 12)
    assert len(requests) == 48
    again = [request.intended_s for request in requests[24:]]
    assert again == pytest.approx([6 + request.intended_s for request in requests[:24]])
    assert len({request.prompt_id for request in requests}) == 48
    assert not {r.session_id for r in requests[:24]} & {r.session_id for r in requests[24:]}
    for one, two in zip(requests[:24], requests[24:], strict=True):
        assert (len(one.prompt), one.max_tokens) == (len(two.prompt), two.max_tokens)
        assert len(one.prompt) < 15 or one.prompt[:15] != two.prompt[:15]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(FORMATS), st.floats(0.02, 1), st.integers(40, 2000))
def test_scaled_and_cut_prompts_fit_and_share_what_they_did(format_name: str, scale: float, context: int) -> None:
    spec = workload(format_name, scale_tokens=scale, over_context="cut")
    requests = build_schedule(spec, 4, 6, 1, WORDS, context_max_tokens=context)
    assert len(requests) == 24
    assert all(len(request.prompt) + request.max_tokens <= context for request in requests)
    assert all(len(content(request)) >= 1 and request.max_tokens >= 1 for request in requests)
    if format_name == "mooncake":
        # Three lines of the file are one conversation: the first two blocks are the same in all of them.
        chat = [content(requests[number]) for number in (10, 14, 19)]
        common = min(2 * max(1, round(512 * scale)), *map(len, chat))
        assert len({prompt[:common] for prompt in chat}) == 1


def test_a_request_that_does_not_fit_is_refused_by_its_line() -> None:
    spec = workload("mooncake")
    with pytest.raises(TraceError, match=r"mooncake.jsonl: line 1: prompt and output take 1929 tokens, the context"):
        build_schedule(spec, 4, 6, 1, WORDS, context_max_tokens=500)


def test_only_the_times_come_from_a_trace_when_asked() -> None:
    chats = WorkloadSpec(sessions=3)
    spec = WorkloadSpec(arrivals="trace", trace=workload("azure", times_only=True).trace, sessions=3)
    requests = replay(spec)
    assert [r.intended_s for r in requests] == [r.intended_s for r in replay(workload("azure"))]
    assert [r.prompt for r in requests] == [r.prompt for r in first_requests(chats, 24, 1, WORDS)]


def test_only_so_many_requests_are_read(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    lines = (DATA / "mooncake.jsonl").read_text().splitlines()
    path.write_text("\n".join(lines[:5]) + "\nnot JSON\n")
    spec = workload("mooncake", path=path, requests=5)
    assert [request.line for request in read_trace(spec.trace).requests] == [1, 2, 3, 4, 5]  # type: ignore[arg-type]
    with pytest.raises(TraceError, match=r"long.jsonl: line 6: JSON is malformed"):
        read_trace(workload("mooncake", path=path, requests=6).trace)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1000), min_size=2, max_size=20, unique=True), st.booleans())
def test_lines_in_any_order_make_units_of_mean_one(tmp_path_factory: Any, times: list[float], repeat: bool) -> None:
    if max(times) - min(times) < 1e-3:
        return
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(
        "".join(f'{{"timestamp": {time_ms!r}, "input_length": 3, "output_length": 1}}\n' for time_ms in times)
    )
    trace = read_trace(TraceSpec(path=str(path), format="mooncake"))
    assert [request.time_s for request in trace.requests] == sorted(time_ms / 1000 for time_ms in times)
    blocks = list(islice(trace_units(trace, repeat=repeat), 3))
    assert len(blocks) == (3 if repeat else 1)
    units = np.concatenate(blocks)
    assert (np.diff(units) >= 0).all()
    assert units[len(times) - 1] == pytest.approx(len(times) - 1)


def test_a_trace_may_say_more_than_is_used_and_leave_ids_out(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(
        '{"timestamp": 5, "input_length": 700, "output_length": 0, "type": "text"}\n'
        '{"timestamp": 1005.5, "input_length": 0, "output_length": 9, "hash_ids": [7]}\n'
    )
    first, second = replay(workload("mooncake", path=path), 1, 2)
    assert (len(content(first)), first.max_tokens) == (700, 1)
    assert (len(content(second)), second.max_tokens) == (1, 9)


BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.mark.parametrize(
    ("format_name", "text", "complaint"),
    [
        ("mooncake", "", "0 requests in an instant"),
        ("mooncake", '{"timestamp": 1, "input_length": 3, "output_length": 1}\n' * 2, "2 requests in an instant"),
        ("mooncake", "\n", "line 1: "),
        ("mooncake", "[1, 2]\n", "line 1: Expected object, got array"),
        ("mooncake", '{"timestamp": 1, "input_length": 3}\n', "line 1: Object missing required field output_length"),
        (
            "mooncake",
            '{"timestamp": "1", "input_length": 3, "output_length": 1}\n',
            "line 1: timestamp: Expected float",
        ),
        (
            "mooncake",
            '{"timestamp": -1, "input_length": 3, "output_length": 1}\n',
            "line 1: timestamp: Expected float >=",
        ),
        ("mooncake", '{"timestamp": NaN, "input_length": 3, "output_length": 1}\n', "line 1: JSON is malformed"),
        (
            "mooncake",
            '{"timestamp": 1, "input_length": 3.5, "output_length": 1}\n',
            "line 1: input_length: Expected int",
        ),
        ("mooncake", '{"timestamp": 1, "input_length": 99999999999, "output_length": 1}\n', "line 1: input_length"),
        (
            "mooncake",
            '{"timestamp": 1, "input_length": 513, "output_length": 1, "hash_ids": [4]}\n',
            "line 1: hash_ids: 513 tokens are 2 blocks of 512, got 1 ids",
        ),
        (
            "mooncake",
            '{"timestamp": 1, "input_length": 3, "output_length": 1, "hash_ids": [-4]}\n',
            "line 1: hash_ids[0]: Expected int >= 0",
        ),
        (
            "mooncake",
            '{"timestamp": 1, "input_length": 3, "output_length": 1}' + " " * 1_000_000,
            "line 1: longer than",
        ),
        ("burstgpt", AZURE, "line 1: no column Timestamp; there is TIMESTAMP, ContextTokens"),
        ("burstgpt", BURST + "5,ChatGPT,3,4,7\n", "line 2: expected 6 fields, got 5"),
        (
            "burstgpt",
            BURST + "5,ChatGPT,3,4,7,API log\nx,ChatGPT,3,4,7,API log\n",
            "line 3: Timestamp: expected seconds",
        ),
        ("burstgpt", BURST + "nan,ChatGPT,3,4,7,API log\n", "line 2: Timestamp: expected seconds"),
        ("burstgpt", BURST + "5,ChatGPT,-3,4,7,API log\n", "line 2: Request tokens: expected a whole number"),
        ("burstgpt", BURST + "5,ChatGPT,3,,7,API log\n", "line 2: Response tokens: expected a whole number"),
        ("burstgpt", BURST + '5,"Chat\n', "line 2: not CSV"),
        ("burstgpt", BURST + "\n", "line 2: expected 6 fields, got 0"),
        ("azure", AZURE + "yesterday,3,4\n", "line 2: TIMESTAMP: expected a time such as 2023-11-16"),
        ("azure", AZURE + "2024-05-10 00:00:00.0+00:00,3,٣\n", "line 2: GeneratedTokens: expected a whole number"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, format_name: Any, text: str, complaint: str) -> None:
    path = tmp_path / "wrong"
    path.write_text(text)
    with pytest.raises(TraceError) as refused:
        read_trace(TraceSpec(path=str(path), format=format_name))
    assert str(refused.value).startswith("wrong: ")
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_no_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\x89PNG\xff\xfe\n" * 9)
    for path, complaint in (
        (tmp_path / "binary", "not UTF-8"),
        (tmp_path, "no such file"),
        (tmp_path / "x", "no such"),
    ):
        with pytest.raises(TraceError, match=complaint):
            read_trace(TraceSpec(path=str(path), format="burstgpt"))


def test_both_releases_of_azure_times_are_read(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(f"\ufeff{AZURE}2024-05-10 00:00:00.009930+00:00,3,4\r\n2024-05-10 00:00:02.5099300,5,6\r\n")
    trace = read_trace(TraceSpec(path=str(path), format="azure"))
    assert trace.span_s == pytest.approx(2.5)
    assert [(r.line, r.input_tokens, r.output_tokens) for r in trace.requests] == [(2, 3, 4), (3, 5, 6)]
