"""What is asked of an engine that is measured, and what it answers: lines of JSON between two processes."""

import msgspec


class Round(msgspec.Struct, frozen=True):
    """Prompts of so many tokens each, all inserted at once into an idle engine; so many tokens are wanted of each."""

    prompts: int
    prompt_tokens: int
    new_tokens: int


class Chats(msgspec.Struct, frozen=True):
    """So many chats side by side, each of which asks its next turn as soon as it has an answer, `turns` each.

    A turn goes on from a kept cache of `cached_tokens`, with so many tokens more, and its own cache is kept. Where that
    is 0 no cache is kept at all.
    """

    chats: int
    turns: int
    cached_tokens: int
    prompt_tokens: int
    new_tokens: int


class Order(msgspec.Struct, frozen=True):
    """Make these rounds in turn, again and again for `seconds` if that is more than 0, else once; then these chats."""

    rounds: tuple[Round, ...]
    seconds: float = 0.0
    chats: tuple[Chats, ...] = ()


class Taken(msgspec.Struct, frozen=True):
    """How a round went. first_s: from the first insert to the last first token. gaps_s: between the tokens of each step
    and the one before, while all sequences ran, seconds."""

    round: Round
    first_s: float
    gaps_s: tuple[float, ...]


class Chatted(msgspec.Struct, frozen=True):
    """How chats went. whole_s: all turns. first_s: mean time to the first token, of the `turns` that had one."""

    chats: Chats
    whole_s: float
    first_s: float
    turns: int


class Loaded(msgspec.Struct, frozen=True):
    """The first answer: the model is in memory. error: or why it is not, one line."""

    load_s: float = 0.0
    kv_bytes_per_token: int = 0
    weights_bytes: int = 0
    blas_active: bool = False
    error: str = ""


class Answer(msgspec.Struct, frozen=True):
    """To an Order."""

    taken: list[Taken]
    chatted: list[Chatted]
