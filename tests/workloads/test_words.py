"""Prompts as words: conversations that grow, and whose beginnings stay what they were."""

from itertools import pairwise

from workloads.schedule import build_schedule
from workloads.spec import SystemPrompts, WorkloadSpec
from workloads.words import WORDS, WordVocabulary, messages, text


def test_words_differ_and_a_prompt_has_as_many_as_asked() -> None:
    assert len(set(WORDS)) == len(WORDS) > 4000
    spec = WorkloadSpec(arrivals="constant", prompt_tokens=7, output_tokens=3, sessions=1, turns_max=3)
    first = build_schedule(spec, 1.0, 2.0, 1, WordVocabulary())[0]
    (message,) = messages(first.prompt)
    assert message.role == "user"
    assert len(message.content.split()) == 7


def test_a_chat_is_told_as_turns_and_each_turn_begins_with_the_one_before() -> None:
    spec = WorkloadSpec(
        arrivals="constant", prompt_tokens=5, output_tokens=4, sessions=1, turns_max=4,
        system_prompts=SystemPrompts(count=1, tokens=6),
    )  # fmt: skip
    turns = [request.prompt for request in build_schedule(spec, 4.0, 1.0, 1, WordVocabulary())]
    assert len(turns) == 4
    roles = [message.role for message in messages(turns[2])]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    for before, after in pairwise(turns):
        assert messages(after)[: len(messages(before))] == messages(before)
        assert text(after).startswith(text(before))
        assert text(after).endswith("\nassistant:")
