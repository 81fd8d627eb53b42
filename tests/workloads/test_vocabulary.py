"""Prompts in a real tokenizer and its chat template."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from workloads.schedule import build_schedule, first_requests
from workloads.spec import SystemPrompts, WorkloadSpec
from workloads.vocabulary import ByteVocabulary, PromptVocabulary, TokenizerVocabulary

TEMPLATE = (
    "{{ '<|begin|>' }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] | trim"
    " + '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def write_model(directory: Path, template: str | None) -> Path:
    """A directory with a byte-level tokenizer whose merges reach over line ends and spaces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["\nbada bada", "\nfego mila", "lomi tabo suda bada"] * 9, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if template is not None:
        settings["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), TEMPLATE)


def test_prompts_say_what_the_template_says(model: Path) -> None:
    vocabulary = TokenizerVocabulary(model)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    schedule = build_schedule(WorkloadSpec(sessions=1), 50, 1, 1, vocabulary)
    first, second = (tokenizer.decode(list(r.prompt), skip_special_tokens=False) for r in schedule[:2])
    assert first.startswith("<|begin|><|user|>\n")
    assert first.endswith("<|end|>\n<|assistant|>\n")
    assert second.startswith(first)
    assert second.removeprefix(first).count("<|end|>\n<|user|>\n") == 1


def test_each_turn_begins_with_the_prompt_before(model: Path) -> None:
    schedule = build_schedule(WorkloadSpec(sessions=1, turns_max=9), 9, 1, 1, TokenizerVocabulary(model))
    for before, after in pairwise(schedule):
        if after.turn:
            assert after.prompt[: len(before.prompt)] == before.prompt


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_content_has_exactly_the_tokens_asked_for(model: Path, count: int) -> None:
    vocabularies: list[PromptVocabulary] = [ByteVocabulary(), TokenizerVocabulary(model)]
    for vocabulary in vocabularies:
        one, again = (vocabulary.content(np.random.default_rng(3), count) for _ in range(2))
        assert one == again
        assert len(one) == count


def test_an_unusable_directory_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such model directory"):
        TokenizerVocabulary(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no tokenizer") as refused:
        TokenizerVocabulary(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        (None, "no usable chat template"),
        ("{{ raise_exception('only the system may speak') }}", "only the system may speak"),
        ("{{ messages[-1]['content'] }}", "does not show every message"),
    ],
)
def test_an_unusable_template_is_refused(tmp_path: Path, template: str | None, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        TokenizerVocabulary(write_model(tmp_path, template))


def test_a_system_prompt_stands_where_the_template_puts_it(model: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    spec = WorkloadSpec(sessions=1, turns_max=2, system_prompts=SystemPrompts(count=1, tokens=7))
    first, second = first_requests(spec, 2, 1, TokenizerVocabulary(model))
    text = tokenizer.decode(list(first.prompt), skip_special_tokens=False)
    assert text.startswith("<|begin|><|system|>\n")
    assert text.count("<|end|>\n<|user|>\n") == 1
    assert second.prompt[: len(first.prompt)] == first.prompt
    refusing = TEMPLATE.replace(
        "{% for message",
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}{% for message",
    )
    markers = TokenizerVocabulary(write_model(tmp_path, refusing)).markers
    assert markers.before_system is None
    assert markers.opening((5, 6)) == (*markers.before_first, 5, 6)
