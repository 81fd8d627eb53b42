"""The engine with real MLX. One run's tokens are judged by another run's, batched otherwise."""

import itertools
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster.engine.weights import model_directory
from cluster.node import EngineDied, ModelFailed, ModelLoaded, SequenceProgress
from cluster.protocol import Token
from tests.engine.harness import MODEL, WAIT_S, Start, StepClock, prompts

pytestmark = pytest.mark.live


def test_a_loaded_model_has_run_a_token(start: Start) -> None:
    bench = start()
    loaded = bench.events[0]
    assert isinstance(loaded, ModelLoaded)
    assert loaded.weights_s + loaded.first_token_s == pytest.approx(loaded.load_s)
    assert 2_000_000 < loaded.weights_bytes < 10_000_000
    assert loaded.load_s > 0
    assert loaded.kv_bytes_per_token == 2 * 4 * 128 * 4  # keys and values, layers, hidden, float32
    assert bench.engine.memory()["active_bytes"] > 2_000_000


def test_neighbours_do_not_change_tokens(start: Start) -> None:
    bench = start()
    jobs = [(prompt, 64) for prompt in prompts(8)]
    alone = [bench.complete(job)[0] for job in jobs]
    assert bench.complete(*jobs) == alone
    assert [len(tokens) for tokens in alone] == [64] * 8
    # Otherwise this would compare nothing.
    assert min(len(set(tokens)) for tokens in alone) >= 16
    assert len({tuple(tokens[-16:]) for tokens in alone}) == 8


def test_a_sequence_that_joins_later_changes_nothing(start: Start) -> None:
    bench = start()
    first, second = prompts(2)
    alone = [bench.complete((first, 80))[0], bench.complete((second, 40))[0]]
    early = bench.insert(first, 80)
    bench.wait(lambda: len(bench.tokens(early)) >= 1)
    late = bench.insert(second, 40)
    bench.finish(early, late)
    assert [bench.tokens(early), bench.tokens(late)] == alone


@pytest.mark.parametrize("delivered", [1, 17, 39])
def test_a_migrated_sequence_goes_on_exactly(start: Start, delivered: int) -> None:
    bench = start()
    for prompt in prompts(3):
        (whole,) = bench.complete((prompt, 40))
        assert bench.complete((prompt + whole[:delivered], 40 - delivered)) == [whole[delivered:]]


def test_a_removed_sequence_frees_its_slot_and_is_silent(start: Start) -> None:
    bench = start(batch_max=1)
    long, short = prompts(2)
    removed = bench.insert(long, 4000)
    bench.wait(lambda: len(bench.tokens(removed)) >= 3)
    bench.engine.remove(removed)
    bench.engine.remove(removed)
    bench.engine.remove(12345)
    after = bench.insert(short, 20)
    bench.finish(after)
    assert len(bench.tokens(removed)) < 4000
    assert not any(each.finish for each in bench.progress(removed))
    named = [each.sequence for report in bench.reports() for each in report.progress]
    assert named == sorted(named)
    assert bench.complete((short, 20)) == [bench.tokens(after)]


def test_more_sequences_than_slots_take_turns(start: Start) -> None:
    bench = start(batch_max=2)
    jobs = [(prompt, 12) for prompt in prompts(5)]
    assert bench.complete(*jobs) == [start().complete(job)[0] for job in jobs]
    most = max(len([each for each in report.progress if not each.finish]) for report in bench.reports())
    assert most <= 2


def test_no_more_decode_together_than_may_when_long_prompts_end_together(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bare generator lets more in: it does not count the prompts that it is still reading."""
    from mlx_lm.generate import GenerationBatch

    batches, decode = [], GenerationBatch.next
    monkeypatch.setattr(GenerationBatch, "next", lambda batch: (batches.append(len(batch)), decode(batch))[1])
    bench = start(batch_max=2, prefill_step=64)
    running = bench.insert([1, 2, 3], 60)
    others = [bench.insert([*range(1, length)], 8) for length in (232, 200, 100, 90)]
    bench.finish(running, *others)
    assert max(batches) == 2
    assert [bench.tokens(number) for number in others[1:2]] == start().complete(([*range(1, 200)], 8))


def test_sequences_that_wait_for_a_slot_can_be_removed_and_end_with_their_model(start: Start) -> None:
    bench = start(batch_max=1)
    running, removed, waiting = (bench.insert([1, 2, 3], 4000) for _ in range(3))
    bench.wait(lambda: bool(bench.progress(running)))
    bench.engine.remove(removed)
    bench.engine.unload(MODEL)
    bench.engine.remove(running)
    bench.finish(waiting)
    assert bench.progress(waiting) == [SequenceProgress(waiting, (), (), "error")]
    assert not bench.progress(removed)


def test_reports_come_at_first_tokens_and_finishes(start: Start) -> None:
    """With a clock that stands still nothing is ever due, so these are the only reports, each with all the news."""
    bench = start(step_s=0.0)
    bench.hold()
    first, second = (bench.insert(prompt, length) for prompt, length in zip(prompts(2), (5, 9), strict=True))
    bench.release()
    bench.finish(first, second)
    shape = [[(each.sequence, len(each.tokens), each.finish) for each in report.progress] for report in bench.reports()]
    assert shape == [
        [(first, 1, None), (second, 1, None)],
        [(first, 4, "length"), (second, 4, None)],
        [(second, 4, "length")],
    ]
    assert sum(report.steps for report in bench.reports()) == 9


def test_reports_come_after_flush_s(start: Start) -> None:
    bench = start(step_s=1.0, flush_s=0.5)
    (tokens,) = bench.complete((prompts(1)[0], 12))
    assert [len(report.progress[0].tokens) for report in bench.reports()] == [1] * 12
    rare = start(step_s=1.0, flush_s=9.0)
    assert rare.complete((prompts(1)[0], 12)) == [tokens]
    # The clock is read three times in a step, so 9 s have passed after the third.
    assert [len(report.progress[0].tokens) for report in rare.reports()] == [1, 3, 3, 3, 2]


def test_each_token_has_its_own_time(start: Start) -> None:
    bench = start(step_s=1.0, flush_s=9.0)
    number = bench.insert(prompts(1)[0], 12)
    bench.finish(number)
    times_s = [time_s for each in bench.progress(number) for time_s in each.times_s]
    assert len(times_s) == 12
    assert all(earlier < later for earlier, later in itertools.pairwise(times_s))


def test_an_end_token_stops_and_is_dropped(start: Start, tmp_path: Path) -> None:
    plain = start()
    prompt = prompts(1)[0]
    (whole,) = plain.complete((prompt, 64))
    position = next(index for index in range(8, 64) if whole[index] not in whole[:index])
    for file in model_directory(MODEL).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": whole[position]}))
    other = str(tmp_path)
    plain.engine.load(other)
    stopped = plain.insert(prompt, 64, other)
    # Both models decode in turn.
    going_on = plain.insert(prompt, 64)
    plain.finish(stopped, going_on)
    assert plain.tokens(stopped) == whole[:position]
    assert plain.progress(stopped)[-1].finish == "stop"
    assert plain.tokens(going_on) == whole


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "model"),
    [([], 5, MODEL), ([1], 0, MODEL), ([512], 5, MODEL), ([-1], 5, MODEL), ([1], 5, "not-loaded")],
)
def test_an_insert_that_cannot_run_is_an_error(start: Start, prompt: list[Token], max_tokens: int, model: str) -> None:
    bench = start()
    number = bench.insert(prompt, max_tokens, model)
    bench.finish(number)
    assert bench.progress(number) == [SequenceProgress(number, (), (), "error")]
    assert len(bench.complete(([1], 3))[0]) == 3


def test_a_model_that_cannot_be_loaded(start: Start, tmp_path: Path) -> None:
    bench = start()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    for number, name in enumerate(["no-such-model", str(broken)], start=2):
        bench.engine.load(name)
        bench.wait(lambda number=number: len(bench.events) == number)  # type: ignore[misc]
        failed = bench.events[-1]
        assert isinstance(failed, ModelFailed)
        assert failed.model == name
        assert failed.reason
        assert "\n" not in failed.reason
    assert len(bench.complete(([1], 3))[0]) == 3


def test_an_engine_can_be_closed_while_it_loads(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx_lm

    from cluster.engine import batch

    bench = start()
    reading, go_on = threading.Event(), threading.Event()
    read = mlx_lm.load

    def slowly(*arguments: object, **options: object) -> object:
        reading.set()
        go_on.wait(WAIT_S)
        return read(*arguments, **options)

    monkeypatch.setattr(mlx_lm, "load", slowly)
    monkeypatch.setattr(batch, "_READ_AT_ONCE_BYTES", 1)
    monkeypatch.setattr(batch, "_run_first_tokens", lambda generator: pytest.fail("the load went on"))
    bench.engine.unload(MODEL)
    bench.engine.load(MODEL)
    assert reading.wait(WAIT_S)
    count = len(bench.events)
    assert not bench.engine.close(0.05)
    go_on.set()
    assert bench.engine.close(WAIT_S)
    assert len(bench.events) == count


def test_weights_read_in_pieces_are_the_weights(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.engine import batch

    whole = start()
    monkeypatch.setattr(batch, "_READ_AT_ONCE_BYTES", 100_000)
    pieces = start()
    job = (prompts(1)[0], 30)
    assert pieces.complete(job) == whole.complete(job)
    assert isinstance(pieces.events[0], ModelLoaded)
    assert isinstance(whole.events[0], ModelLoaded)
    assert pieces.events[0].weights_bytes == whole.events[0].weights_bytes


def test_unloading_ends_the_models_sequences(start: Start) -> None:
    bench = start()
    number = bench.insert(prompts(1)[0], 4000)
    bench.wait(lambda: bool(bench.progress(number)))
    loaded_bytes = bench.engine.memory()["active_bytes"]
    bench.engine.unload(MODEL)
    bench.finish(number)
    assert bench.progress(number)[-1].finish == "error"
    weights_bytes = (model_directory(MODEL) / "model.safetensors").stat().st_size
    assert bench.engine.memory()["active_bytes"] < loaded_bytes - 0.9 * weights_bytes
    late = bench.insert([1], 3)
    bench.finish(late)
    assert bench.progress(late)[-1].finish == "error"


def test_totals_add_up(start: Start) -> None:
    bench = start()
    bench.complete(([1, 2, 3, 4], 10), ([5, 6], 10))
    totals = bench.engine.totals()
    assert totals.decode_tokens == 20
    assert totals.steps == sum(report.steps for report in bench.reports())
    assert totals.prefill_tokens == 3 + 1
    assert totals.decode_s > 0
    assert totals.prefill_s > 0


def test_death_of_the_thread_is_told_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lm.generate import BatchGenerator

    bench = start()

    def out_of_memory(generator: object) -> None:
        raise RuntimeError("[metal] out of memory\nsecond line")

    monkeypatch.setattr(BatchGenerator, "next", out_of_memory)
    bench.insert([1], 3)
    bench.wait(lambda: isinstance(bench.events[-1], EngineDied))
    assert bench.events[-1] == EngineDied("RuntimeError: [metal] out of memory")
    assert bench.engine.close(WAIT_S)
    count = len(bench.events)
    bench.insert([1], 3)
    bench.engine.remove(1)
    assert len(bench.events) == count


def test_a_process_with_a_closed_engine_ends_normally() -> None:
    """Several times, because MLX aborts only about every second process whose streams were left behind."""
    script = (
        "import queue, time\n"
        "from cluster.engine.mlx import MlxEngine\n"
        "from cluster.node import Insert\n"
        "events = queue.Queue()\n"
        "options = {'batch_max': 1, 'prefill_batch_max': 1, 'prefill_step': 64, 'flush_s': 1.0}\n"
        "engine = MlxEngine(events.put, time.monotonic, **options)\n"
        "engine.load('tiny')\n"
        "events.get()\n"
        "engine.insert(Insert(1, 'tiny', (1, 2), 1000))\n"
        "events.get()\n"
        "assert engine.close(60)\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) for _ in range(4)]
    complaints = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0] * 4, complaints


def test_too_many_commands_are_refused(start: Start) -> None:
    from cluster.engine.mlx import COMMANDS_MAX, CommandsFull

    bench = start()
    bench.hold()
    for _ in range(COMMANDS_MAX):
        bench.engine.remove(99)
    with pytest.raises(CommandsFull, match=str(COMMANDS_MAX)):
        bench.engine.remove(99)
    bench.release()


def test_an_idle_engine_does_nothing(start: Start) -> None:
    clock = StepClock(0.001)
    bench = start(clock=clock)
    bench.complete(([1], 3))
    sleeper = threading.Event()
    sleeper.wait(0.1)
    readings = clock.readings
    sleeper.wait(0.1)
    assert clock.readings == readings
