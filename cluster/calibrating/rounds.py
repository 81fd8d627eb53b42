"""What is asked of an engine that is measured, and what it answers: lines of JSON between two processes."""

import msgspec


class Round(msgspec.Struct, frozen=True):
    """Prompts of so many tokens each, all inserted at once into an idle engine; so many tokens are wanted of each."""

    prompts: int
    prompt_tokens: int
    new_tokens: int


class Order(msgspec.Struct, frozen=True):
    """Make these rounds in turn, again and again for `seconds` if that is more than 0, else once."""

    rounds: tuple[Round, ...]
    seconds: float = 0.0


class Taken(msgspec.Struct, frozen=True):
    """How a round went. first_s: from the first insert to the last first token. gaps_s: between the tokens of each step
    and the one before, while all sequences ran, seconds."""

    round: Round
    first_s: float
    gaps_s: tuple[float, ...]


class Loaded(msgspec.Struct, frozen=True):
    """The first answer: the model is in memory. error: or why it is not, one line."""

    load_s: float = 0.0
    kv_bytes_per_token: int = 0
    weights_bytes: int = 0
    blas_active: bool = False
    error: str = ""


Answer = list[Taken]
