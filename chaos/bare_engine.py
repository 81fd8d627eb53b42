"""`python -m chaos.bare_engine DIR`: mlx-lm's BatchGenerator and nothing else, for chaos.baseline_sides.

Each line of standard input is a block of conversations; the answer is a line with tokens and times.
"""

import contextlib
import sys
import time
from typing import Any

import msgspec

from chaos.baseline_sides import BareBlock, Block


def main() -> int:
    """Serve blocks until standard input ends."""
    import mlx_lm
    from mlx_lm.generate import BatchGenerator

    network, tokenizer = mlx_lm.load(sys.argv[1])
    stops = [[token] for token in tokenizer.eos_token_ids]
    for line in sys.stdin.buffer:
        asked = msgspec.json.decode(line, type=BareBlock)
        limit = asked.in_flight
        generator = BatchGenerator(network, stop_tokens=stops, completion_batch_size=limit, prefill_batch_size=limit)
        prompts = [tokenizer.apply_chat_template(each, add_generation_prompt=True) for each in asked.conversations]
        block = _complete(generator, prompts, asked.max_tokens, limit)
        generator.close()
        sys.stdout.buffer.write(msgspec.json.encode(block) + b"\n")
        sys.stdout.buffer.flush()
    return 0


def _complete(generator: Any, prompts: list[list[int]], max_tokens: list[int], in_flight: int) -> Block:
    """Keep so many in the generator until all prompts are complete."""
    began_s = time.perf_counter()
    inserted: dict[int, float] = {}
    first: dict[int, float] = {}
    tokens = taken = ended = 0
    while ended < len(prompts):
        free = min(in_flight - (taken - ended), len(prompts) - taken)
        if free > 0:
            now = time.perf_counter()
            uids = generator.insert(prompts[taken : taken + free], max_tokens[taken : taken + free])
            inserted.update((uid, now) for uid in uids)
            taken += free
        for response in generator.next_generated():
            now = time.perf_counter()
            first.setdefault(response.uid, now - inserted[response.uid])
            # The token that ends a completion is none of it, as the servers count.
            tokens += response.finish_reason != "stop"
            ended += response.finish_reason is not None
    return Block(tokens, time.perf_counter() - began_s, list(first.values()))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
