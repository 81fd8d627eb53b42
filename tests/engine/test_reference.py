import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.engine import reference
from cluster.engine.reference_cache import Completion, ReferenceCache
from cluster.protocol import Token

Jobs = list[tuple[bytes, reference.Prompt]]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Token], int]]:
    """Replaces mlx-lm by counting up from the prompt's last token, ending at multiples of 10. Logs what is computed."""
    log: list[tuple[list[Token], int]] = []

    def count_up(directory: Path, jobs: Jobs) -> Iterator[tuple[list[bytes], list[Completion]]]:
        for key, (tokens, max_tokens) in jobs:
            log.append((list(tokens), max_tokens))
            end = 10 - tokens[-1] % 10
            made = tuple(tokens[-1] + step for step in range(1, min(end, max_tokens + 1)))
            yield [key], [Completion(made, end <= max_tokens)]

    monkeypatch.setattr(reference, "_computed", count_up)
    monkeypatch.setattr(reference, "model_directory", Path)
    monkeypatch.setattr(reference, "_cache_key", lambda directory: f"key-{directory}")
    return log


def test_cache_is_used_when_long_enough_or_ended(computed: list[tuple[list[Token], int]], tmp_path: Path) -> None:
    assert reference.completions("m", [([1, 2], 3)], tmp_path) == [[3, 4, 5]]
    assert reference.completions("m", [([1, 2], 2)], tmp_path) == [[3, 4]]
    assert computed == [([1, 2], 3)]
    assert reference.completions("m", [([1, 2], 99)], tmp_path) == [[3, 4, 5, 6, 7, 8, 9]]
    assert reference.completions("m", [([1, 2], 1000)], tmp_path) == [[3, 4, 5, 6, 7, 8, 9]]
    assert computed == [([1, 2], 3), ([1, 2], 99)]


def test_an_end_beyond_the_limit_is_not_an_end(computed: list[tuple[list[Token], int]], tmp_path: Path) -> None:
    """A completion cut exactly before its end token must not be taken for an ended one."""
    assert reference.completions("m", [([8], 1)], tmp_path) == [[9]]
    reference.completions("m", [([8], 5)], tmp_path)
    assert len(computed) == 2
    reference.completions("m", [([8], 6)], tmp_path)
    assert len(computed) == 2


def test_models_do_not_share_a_cache(computed: list[tuple[list[Token], int]], tmp_path: Path) -> None:
    reference.completions("m", [([1], 3)], tmp_path)
    reference.completions("n", [([1], 3)], tmp_path)
    reference.completions("n", [([1], 3)], None)
    assert len(computed) == 3


def test_same_prompt_is_computed_once_with_its_longest_limit(computed: list[tuple[list[Token], int]]) -> None:
    answers = reference.completions("m", [([1], 2), ([3, 1], 4), ([1], 5), ([1], 1)], None)
    assert answers == [[2, 3], [2, 3, 4, 5], [2, 3, 4, 5, 6], [2]]
    assert computed == [([1], 5), ([3, 1], 4)]


@pytest.mark.parametrize("prompt", [([], 3), ([1], 0)])
def test_a_prompt_without_completion(prompt: reference.Prompt) -> None:
    with pytest.raises(ValueError, match="no completion"):
        reference.completions("m", [prompt], None)


def test_cache_drops_the_oldest(tmp_path: Path) -> None:
    with ReferenceCache(tmp_path / "c.sqlite", bytes_max=40) as cache:
        for number in range(5):
            cache.add({bytes([number]): Completion((1, 2, 3), False)})
        assert [cache.find(bytes([number]), 3) is not None for number in range(5)] == [False, False, True, True, True]


def test_cache_keeps_the_longer_completion(tmp_path: Path) -> None:
    with ReferenceCache(tmp_path / "c.sqlite") as cache:
        cache.add({b"k": Completion((1, 2, 3), False)})
        cache.add({b"k": Completion((1, 2), False)})
        assert cache.find(b"k", 3) == Completion((1, 2, 3), False)
        assert cache.find(b"k", 4) is None


def test_cache_takes_many_writers(tmp_path: Path) -> None:
    def write(writer: int) -> None:
        with ReferenceCache(tmp_path / "c.sqlite") as cache:
            for number in range(10):
                cache.add({bytes([writer, number]): Completion((writer, number), True)})

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    with ReferenceCache(tmp_path / "c.sqlite") as cache:
        found = [cache.find(bytes([writer, number]), 2) for writer in range(4) for number in range(10)]
    assert None not in found


def test_first_difference() -> None:
    assert reference.first_difference([1, 2, 3], [1, 9, 3]) == 1
    assert reference.first_difference([1, 2], [1, 2, 3]) is None
    assert reference.first_difference([], [1]) is None


@pytest.mark.live
def test_real_references(tmp_path: Path) -> None:
    random_ = random.Random(5)
    prompts = [([random_.randrange(507) for _ in range(random_.randrange(1, 40))], 24) for _ in range(20)]
    answers = reference.compute("tiny", prompts, tmp_path)
    assert [len(answer) for answer in answers] == [24] * 20
    assert len({tuple(answer) for answer in answers}) == 20
    assert reference.compute("tiny", prompts[::-1], tmp_path) == answers[::-1]
    # The forward pass over all positions is another way to the same tokens.
    gaps = reference.compute_gaps(
        "tiny", [(tokens, answer) for (tokens, _), answer in zip(prompts, answers, strict=True)]
    )
    assert max(map(max, gaps)) < 1e-4
    wrong = [*answers[0][:7], (answers[0][7] + 1) % 507, *answers[0][8:]]
    gap = reference.gap_at_first_difference("tiny", prompts[0][0], wrong, answers[0])
    assert gap is not None
    assert gap > 1e-3
    assert reference.gap_at_first_difference("tiny", prompts[0][0], answers[0][:5], answers[0]) is None


@pytest.mark.live
def test_a_failing_child_says_why() -> None:
    with pytest.raises(reference.ReferenceFailed, match="no model 'no-such-model'"):
        reference.compute("no-such-model", [([1], 1)])
    with pytest.raises(reference.ReferenceFailed, match="no answer within"):
        reference.compute("tiny", [([1], 1)], timeout_s=0.01)
