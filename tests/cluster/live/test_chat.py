"""Text comes out of a stream whole, however it was cut into tokens and chunks."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.engine.weights import model_directory
from cluster.live.chat import ChatTokenizer, ChatUnavailable, Detokenizer, StopFinder

TINY = ChatTokenizer(model_directory("tiny"))
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\ufffd"), max_size=40)
CHUNKS = st.lists(st.integers(1, 7), max_size=80)


def cut(tokens: list[int], sizes: list[int]) -> list[list[int]]:
    """The tokens in chunks of these sizes, then one by one."""
    chunks, at = [], 0
    for size in sizes:
        chunks.append(tokens[at : at + size])
        at += size
    return [chunk for chunk in [*chunks, *([token] for token in tokens[at:])] if chunk]


@given(TEXT, CHUNKS)
@example("日本語 🎉 ñ", [])
def test_detokenising_gives_the_text_and_never_half_a_character(text: str, sizes: list[int]) -> None:
    detokenizer = TINY.detokenizer()
    pieces = [detokenizer.push(chunk) for chunk in cut(list(TINY.text(text)), sizes)]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.end() == text


@given(st.text(st.sampled_from("aé日🎉 "), min_size=1, max_size=30), CHUNKS)
def test_all_but_an_unfinished_character_comes_at_once(text: str, sizes: list[int]) -> None:
    # One token for each byte: the worst that a vocabulary can do to a character.
    tokens = list(text.encode())
    detokenizer = Detokenizer(lambda ids: bytes(ids).decode(errors="replace"))
    given_so_far = ""
    pushed: list[int] = []
    for chunk in cut(tokens, sizes):
        given_so_far += detokenizer.push(chunk)
        pushed += chunk
        assert given_so_far == bytes(pushed).decode(errors="ignore")
    assert detokenizer.end() == ""


@given(st.lists(st.integers(0, TINY.vocabulary_size - 1), max_size=120), CHUNKS)
def test_rubbish_comes_out_too_and_is_not_held_for_ever(tokens: list[int], sizes: list[int]) -> None:
    detokenizer = TINY.detokenizer()
    text = ""
    for chunk in cut(tokens, sizes):
        text += detokenizer.push(chunk)
        assert len(detokenizer._held) <= 23
    text += detokenizer.end()
    # What is broken may show as one sign or several, according to where the chunks end; nothing else may differ.
    assert text.replace("\ufffd", "") == TINY.decode(tokens).replace("\ufffd", "")


def test_a_character_that_is_never_finished_shows_at_the_end() -> None:
    detokenizer = Detokenizer(lambda ids: bytes(ids).decode(errors="replace"))
    assert detokenizer.push(list("ok é".encode())[:-1]) == "ok "
    assert detokenizer.end() == "\ufffd"


@given(
    st.text(st.sampled_from("abc"), max_size=30),
    st.lists(st.text(st.sampled_from("abc"), min_size=1, max_size=5), max_size=4),
    CHUNKS,
)
def test_stop_strings_are_found_wherever_the_chunks_end(text: str, stops: list[str], sizes: list[int]) -> None:
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(ends)[1]] if ends else text
    finder = StopFinder(stops)
    given_so_far, at = "", 0
    for size in [*sizes, *[1] * len(text)]:
        given_so_far += finder.push(text[at : at + size])
        at += size
        assert expected.startswith(given_so_far)
    assert finder.found == bool(ends)
    if not finder.found:
        given_so_far += finder.end()
    assert given_so_far == expected


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    finder = StopFinder(["\n\nUser:", "END"])
    assert finder.push("Hello\n") == "Hello"
    assert finder.push("\nUse") == ""
    assert finder.push("ful E") == "\n\nUseful "
    assert finder.push("ND of it") == ""
    assert finder.found


def test_a_chat_is_rendered_by_the_models_own_template() -> None:
    tokens = TINY.chat([{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}])
    assert TINY._tokenizer.decode(tokens, skip_special_tokens=False) == (
        "<|system|>be brief<|end|><|user|>hi<|end|><|assistant|>"
    )


def test_it_renders_as_transformers_does() -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(model_directory("tiny")), local_files_only=True)
    messages = [{"role": "user", "content": "one two 日本"}, {"role": "assistant", "content": "three"}]
    messages.append({"role": "user", "content": "{{ 7 * 7 }}"})
    expected = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert list(TINY.chat(messages)) == expected


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(model_directory("tiny"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def _set_template(model: Path, template: object) -> None:
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))


def test_a_template_that_refuses_a_chat_says_why_in_one_line(model: Path) -> None:
    _set_template(model, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(ValueError, match="roles must alternate"):
        ChatTokenizer(model).chat([{"role": "user", "content": "hi"}])


def test_a_template_may_not_reach_out_of_its_sandbox(model: Path) -> None:
    _set_template(model, "{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(ValueError, match="unsafe"):
        ChatTokenizer(model).chat([{"role": "user", "content": "hi"}])


def test_templates_come_in_lists_in_files_and_with_marks_for_training(model: Path) -> None:
    _set_template(model, [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}])
    assert ChatTokenizer(model).chat([]) == TINY.text("yes")
    (model / "chat_template.jinja").write_text("{% generation %}{{ bos_token }}{{ eos_token }}{% endgeneration %}")
    assert ChatTokenizer(model).chat([]) == TINY.text("<|end|>")


def test_a_model_without_a_template_still_continues_texts(model: Path) -> None:
    _set_template(model, None)
    tokenizer = ChatTokenizer(model)
    assert tokenizer.text("abc") == TINY.text("abc")
    with pytest.raises(ValueError, match="no chat template"):
        tokenizer.chat([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("damage", ["{", "[]", '{"version": "1.0"}'])
def test_a_damaged_tokenizer_is_told_in_one_line(model: Path, damage: str) -> None:
    (model / "tokenizer.json").write_text(damage)
    with pytest.raises(ChatUnavailable, match="no usable tokenizer") as caught:
        ChatTokenizer(model)
    assert "\n" not in str(caught.value)
