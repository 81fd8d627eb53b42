"""A cluster that stays up, asked with the official client of OpenAI's API."""

import json
import os
import shlex
import signal
import subprocess
from pathlib import Path

import openai
import psutil
import pytest
import requests

from cluster import serve
from cluster.engine.weights import model_directory
from cluster.live.serving import key_in_shell
from tests.gateway_fuzz import fuzz
from tests.serving import Serving

KEY = "a-key-of-this-test"
KEYS = f"{KEY}, another"
EXIT_USAGE, EXIT_INFRASTRUCTURE = 2, 5


def client(serving: Serving, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{serving.url}/v1", api_key=key, max_retries=0, timeout=30)


def _chats_and_streams(serving: Serving, ai: openai.OpenAI) -> None:
    asked = [{"role": "user", "content": "What is a whale?"}]
    whole = ai.chat.completions.create(model="tiny", messages=asked, max_tokens=24)
    assert whole.usage is not None
    assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", 24)
    events = list(
        ai.chat.completions.create(
            model="tiny", messages=asked, max_tokens=24, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert text == whole.choices[0].message.content
    assert events[-1].usage is not None
    assert events[-1].usage.total_tokens == whole.usage.total_tokens
    assert len(events) < 24, "tokens that come together go out together"
    stop = text[9:12]
    stopped = ai.chat.completions.create(model="tiny", messages=asked, max_tokens=24, stop=stop)
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.content == text[: text.index(stop)]
    assert stopped.usage is not None
    # Its text is shorter than that, and a token has at least one letter.
    assert stopped.usage.completion_tokens <= text.index(stop) + len(stop)
    completion = ai.completions.create(model="tiny", prompt="Once", max_tokens=5)
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 5
    assert [model.id for model in ai.models.list()] == ["tiny"]
    assert ai.models.retrieve("tiny").id == "tiny"


def _second_turn_finds_the_first(ai: openai.OpenAI) -> None:
    turns = [{"role": "user", "content": "Tell me about whales and the sea, at some length, please."}]
    for turn in range(2):
        answer = ai.chat.completions.create(
            model="tiny", messages=turns, max_tokens=16, extra_body={"session_id": "whales"}
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        if turn == 1:
            assert answer.usage.prompt_tokens_details.cached_tokens >= 20
        turns += [
            {"role": "assistant", "content": answer.choices[0].message.content or ""},
            {"role": "user", "content": "And then?"},
        ]


def _errors_are_typed(serving: Serving, ai: openai.OpenAI) -> None:
    asked = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.NotFoundError) as unknown:
        ai.chat.completions.create(model="gpt-4", messages=asked)
    assert unknown.value.code == "MODEL_NOT_FOUND"
    with pytest.raises(openai.NotFoundError) as unknown:
        ai.models.retrieve("owner/no-such-model")
    assert unknown.value.code == "MODEL_NOT_FOUND"
    with pytest.raises(openai.BadRequestError) as refused:
        ai.chat.completions.create(model="tiny", messages=asked, n=2)
    assert (refused.value.code, refused.value.param) == ("INVALID_REQUEST", "n")
    with pytest.raises(openai.BadRequestError) as long:
        ai.chat.completions.create(model="tiny", messages=asked, max_tokens=100_000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        client(serving, "a-wrong-key").models.list()


def _who_goes_away_frees_the_slot(serving: Serving, ai: openai.OpenAI) -> None:
    stream = ai.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=4_000, stream=True
    )
    next(iter(stream))
    serving.await_level("open_requests", "worker", 1, 1)
    stream.close()
    serving.await_level("open_requests", "worker", 0, 0, limit_s=4)
    serving.await_level("open_requests", "controller", 0, 0)


def _a_killed_worker_comes_back(serving: Serving, ai: openai.OpenAI) -> None:
    os.kill(serving.pid_of("worker-0"), signal.SIGKILL)
    serving.await_line(r"^worker-0: up again, pid \d+", 30)
    # Its client waits for a worker as long as the policy holds a request back, and then asks once more.
    patient = ai.with_options(max_retries=8)
    patient.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=4)


@pytest.mark.live
def test_a_served_cluster_keeps_what_the_api_promises() -> None:
    arguments = ("--model", "tiny", "--workers", "1", "--api-key-env", "TEST_KEYS")
    with Serving(*arguments, environment={"TEST_KEYS": KEYS}) as serving:
        ai = client(serving)
        _chats_and_streams(serving, ai)
        _errors_are_typed(serving, ai)
        _second_turn_finds_the_first(ai)
        _who_goes_away_frees_the_slot(serving, ai)
        assert requests.get(f"{serving.url}/readyz", timeout=10).status_code == 200
        assert serving.metrics()["mlxc_gateway_time_to_first_token_seconds_count"] >= 5
        pasted = subprocess.run(
            ["/bin/sh", "-c", serving.curl], env={"PATH": os.environ["PATH"], "TEST_KEYS": KEYS}, capture_output=True
        )
        assert json.loads(pasted.stdout)["object"] == "chat.completion", shlex.quote(serving.curl)
        _a_killed_worker_comes_back(serving, ai)
        assert not any(KEY in line for line in serving.lines)
        for node in ("controller-0", "gateway"):
            assert KEY not in str(psutil.Process(serving.pid_of(node)).environ())
        for process in serving.family.alive():
            assert KEY not in process
            assert "nats://" not in process
        serving.kill()
        assert serving.left() == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--workers", "0"), "1 to 64, got"),
        (("--policy", "nowhere"), "no policy profile"),
        (("--port", "70000"), "0 to 65535, got"),
        (("--api-key-env", "NO_SUCH_VARIABLE"), "NO_SUCH_VARIABLE"),
        (("--model", "nosuch"), "--model: no model 'nosuch': it has to be `tiny`"),
        (("--model", "/nonexistent/model"), "--model: no model '/nonexistent/model'"),
    ],
)
def test_wrong_usage_is_told_before_anything_starts(
    arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = serve.main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == EXIT_USAGE
    lines = capsys.readouterr().err.splitlines()
    assert told in lines[-1]
    assert len([line for line in lines if "error" in line or line.startswith("cluster.serve: ")]) == 1


@pytest.mark.parametrize("value", ["one", "one,two", " ,one\ttwo", "one\ntwo", "o$n`e\\x,two"])
def test_the_line_to_paste_has_the_first_key_and_does_not_show_it(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEYS", value)
    keys = value.replace(",", " ").split()
    shown = key_in_shell("TEST_KEYS", keys)
    assert keys[0] not in shown
    told = subprocess.run(["/bin/sh", "-c", f'printf %s "Bearer {shown}"'], capture_output=True, text=True, check=True)
    assert told.stdout == f"Bearer {keys[0]}"


@pytest.mark.parametrize("arguments", [("--model", "smollm2-135m"), ("--host", "192.0.2.1")])
def test_what_cannot_be_had_is_told_in_one_line(
    arguments: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Where nothing was pulled yet.
    monkeypatch.setenv("MLX_CHAOS_CACHE", str(tmp_path))
    assert serve.main(arguments) == EXIT_INFRASTRUCTURE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cluster.serve: ")
    assert arguments[1] in line


@pytest.mark.live
@pytest.mark.verify
def test_every_process_is_started_again_and_ctrl_c_ends_all_in_order(tmp_path: Path) -> None:
    with Serving("--workers", "2", "--controllers", "2", "--log-dir", str(tmp_path)) as serving:
        ai = client(serving).with_options(max_retries=8)
        for name in ("worker-1", "controller-0", "gateway", "nats-server"):
            os.kill(serving.pid_of(name), signal.SIGKILL)
            serving.await_line(rf"^{name}: up again, pid \d+", 60)
            answer = ai.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=4
            )
            assert answer.choices[0].finish_reason == "length"
        assert serving.interrupt() == 130
        assert serving.left(2.0) == []


@pytest.mark.live
@pytest.mark.verify
def test_a_real_model_knows_the_capital_of_france() -> None:
    # Not skipped without it: `make verify` pulls it before, and evidence that is missing has to be seen.
    model_directory("smollm2-135m")
    with Serving("--model", "smollm2-135m") as serving:
        ai = client(serving)
        asked = [{"role": "user", "content": "What is the capital of France?"}]
        answer = ai.chat.completions.create(model="smollm2-135m", messages=asked, max_tokens=24, temperature=0)
        assert "Paris" in (answer.choices[0].message.content or "")
        assert answer.choices[0].finish_reason == "stop"
        stream = ai.chat.completions.create(model="smollm2-135m", messages=asked, max_tokens=24, stream=True)
        text = "".join(event.choices[0].delta.content or "" for event in stream)
        assert text == answer.choices[0].message.content


@pytest.mark.live
@pytest.mark.verify
@pytest.mark.timeout(1_800)
def test_ten_thousand_requests_of_every_kind_leave_nothing() -> None:
    findings, _, _ = fuzz(10_000, seed=1)
    assert findings.wrong == []
    assert sum(findings.answers.values()) >= 9_000
