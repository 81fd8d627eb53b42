"""The reference completions against which delivered tokens are judged.

They are computed with mlx-lm alone, so that a mistake of our engine cannot hide in them, and in a process of their own
(`python -m cluster.engine.reference`): it has the right BLAS preloaded, and the caller stays free of MLX.
"""

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import threading
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from cluster.engine.blas import find_blas, preload_environment
from cluster.engine.reference_cache import Completion, ReferenceCache
from cluster.engine.weights import cache_home, data_types, fingerprint, model_directory
from cluster.protocol import Token

BATCH = 16
_FORWARD_STEP = 512  # positions whose logits are in memory at once
_GPU_PACKAGES = ("mlx-cuda", "mlx-cuda-12", "mlx-cuda-13")

Prompt = tuple[Sequence[Token], int]
"""The tokens of a prompt, and how many new tokens are wanted at most."""


class ReferenceFailed(RuntimeError):
    """The process that computes references has failed. The message ends with the last line of its complaint."""


class CompletionsRequest(msgspec.Struct, frozen=True, tag="completions"):
    """Asks a child process for `completions`. cache: a directory or None."""

    model: str
    prompts: list[tuple[list[Token], int]]
    cache: str | None


class GapsRequest(msgspec.Struct, frozen=True, tag="gaps"):
    """Asks a child process for `gaps`."""

    model: str
    cases: list[tuple[list[Token], list[Token]]]


Request = CompletionsRequest | GapsRequest


def compute(
    model: str, prompts: Sequence[Prompt], cache: Path | None = None, *, timeout_s: float = 600.0
) -> list[list[Token]]:
    """`completions`, computed in a child process. cache: a directory; None for the user's own.

    Raises ReferenceFailed, also when `timeout_s` has passed.
    """
    directory = str(cache or cache_home() / "references")
    request = CompletionsRequest(model, [(list(tokens), max_tokens) for tokens, max_tokens in prompts], directory)
    return msgspec.msgpack.decode(_in_child(request, timeout_s), type=list[list[Token]])


def compute_gaps(
    model: str, cases: Sequence[tuple[Sequence[Token], Sequence[Token]]], *, timeout_s: float = 600.0
) -> list[list[float]]:
    """`gaps`, computed in a child process. Raises ReferenceFailed, also when `timeout_s` has passed."""
    request = GapsRequest(model, [(list(prompt), list(delivered)) for prompt, delivered in cases])
    return msgspec.msgpack.decode(_in_child(request, timeout_s), type=list[list[float]])


def first_difference(delivered: Sequence[Token], reference: Sequence[Token]) -> int | None:
    """The first index at which both have a token and it differs; None when one is a beginning of the other."""
    pairs = enumerate(zip(delivered, reference, strict=False))
    return next((index for index, (ours, theirs) in pairs if ours != theirs), None)


def gap_at_first_difference(
    model: str, prompt: Sequence[Token], delivered: Sequence[Token], reference: Sequence[Token]
) -> float | None:
    """How much better, in nats, the reference's best token is than the delivered one where they first differ.

    Rounding moves log-probabilities by about 1e-5 in float32: a gap of that size is a near-tie, a larger one is a bug.
    None when nothing differs. Computed in a child process; `compute_gaps` serves many cases at once.
    """
    index = first_difference(delivered, reference)
    if index is None:
        return None
    (gaps_nats,) = compute_gaps(model, [(prompt, delivered[: index + 1])])
    return gaps_nats[index]


def is_exact(model: str) -> bool:
    """Whether tokens of `model` can be compared one by one here: float32 weights, computed by the CPU.

    On a GPU a kernel is chosen by the batch's shape, so a near-tie may fall to either side. Raises ModelUnavailable.
    """
    on_cpu = sys.platform == "linux" and not any(map(_is_installed, _GPU_PACKAGES))
    return on_cpu and data_types(model_directory(model)) == {"F32"}


def completions(model: str, prompts: Sequence[Prompt], cache: Path | None) -> list[list[Token]]:
    """The greedy completion of each prompt, without end token, computed in this process.

    cache: a directory for what has been computed already, or None. Raises ModelUnavailable, and ValueError for an
    empty prompt or a limit below 1.
    """
    for tokens, max_tokens in prompts:
        if not tokens or max_tokens < 1:
            raise ValueError(f"a prompt of {len(tokens)} tokens with {max_tokens} new ones has no completion")
    directory = model_directory(model)
    if cache is None:
        return _complete(directory, prompts, None)
    with ReferenceCache(cache / f"{_cache_key(directory)}.sqlite") as store:
        return _complete(directory, prompts, store)


def gaps(model: str, cases: Sequence[tuple[Sequence[Token], Sequence[Token]]]) -> list[list[float]]:
    """For each (prompt, delivered tokens): how much worse each delivered token is than the best one, in nats.

    Teacher-forced: each position sees the prompt and the tokens delivered before it. 0.0 is the greedy choice.
    Computed in this process. Raises ModelUnavailable.
    """
    import mlx_lm

    network, _ = mlx_lm.load(str(model_directory(model)))
    return [_gaps(network, list(prompt), list(delivered)) for prompt, delivered in cases]


def _is_installed(package: str) -> bool:
    return next(iter(importlib.metadata.distributions(name=package)), None) is not None


def _cache_key(directory: Path) -> str:
    """Everything that decides a greedy completion: weights, their element types, MLX's versions and the device."""
    versions = [importlib.metadata.version(package) for package in ("mlx", "mlx-lm")]
    types = "-".join(sorted(data_types(directory)))
    return "_".join([fingerprint(directory), types, *versions, sys.platform])


def _complete(directory: Path, prompts: Sequence[Prompt], store: ReferenceCache | None) -> list[list[Token]]:
    # The same prompt with several limits is one completion: the longest.
    wanted: dict[bytes, Prompt] = {}
    keys = [prompt_key(tokens) for tokens, _ in prompts]
    for key, (tokens, max_tokens) in zip(keys, prompts, strict=True):
        if key not in wanted or wanted[key][1] < max_tokens:
            wanted[key] = (tokens, max_tokens)
    known: dict[bytes, Completion] = {}
    missing = []
    for key, prompt in wanted.items():
        found = store.find(key, prompt[1]) if store else None
        if found is None:
            missing.append(key)
        else:
            known[key] = found
    # Sorted, because a batch costs as much as its longest prompt for each of its sequences.
    missing.sort(key=lambda key: (len(wanted[key][0]), wanted[key][1]))
    for batch, results in _computed(directory, [(key, wanted[key]) for key in missing]):
        done = dict(zip(batch, results, strict=True))
        known |= done
        if store:
            store.add(done)
    return [list(known[key].tokens[: prompt[1]]) for key, prompt in zip(keys, prompts, strict=True)]


def prompt_key(tokens: Sequence[Token]) -> bytes:
    """A hash of 16 bytes that names a prompt."""
    return hashlib.blake2b(array("I", tokens).tobytes(), digest_size=16).digest()


def _computed(directory: Path, jobs: list[tuple[bytes, Prompt]]) -> Iterator[tuple[list[bytes], list[Completion]]]:
    """Complete the jobs in batches; each comes with its keys as soon as it is ready."""
    if not jobs:
        return
    import mlx_lm

    network, tokenizer = mlx_lm.load(str(directory))
    ends = [[token] for token in sorted(tokenizer.eos_token_ids)]
    for start in range(0, len(jobs), BATCH):
        batch = jobs[start : start + BATCH]
        yield [key for key, _ in batch], _complete_batch(network, ends, [prompt for _, prompt in batch])


def _complete_batch(network: Any, ends: list[list[Token]], prompts: list[Prompt]) -> list[Completion]:
    from mlx_lm.generate import BatchGenerator

    generator = BatchGenerator(network, stop_tokens=ends, completion_batch_size=BATCH)
    uids = generator.insert([list(tokens) for tokens, _ in prompts], [max_tokens for _, max_tokens in prompts])
    tokens: dict[int, list[Token]] = {uid: [] for uid in uids}
    finish: dict[int, str] = {}
    while len(finish) < len(uids):
        for response in generator.next_generated():
            if response.finish_reason != "stop":
                tokens[response.uid].append(response.token)
            if response.finish_reason is not None:
                finish[response.uid] = response.finish_reason
    generator.close()
    return [Completion(tuple(tokens[uid]), finish[uid] == "stop") for uid in uids]


def _gaps(network: Any, prompt: list[Token], delivered: list[Token]) -> list[float]:
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    if not delivered:
        return []
    cache = make_prompt_cache(network)
    # The logits at a position judge the token after it; the last delivered token is only judged.
    inputs = prompt + delivered[:-1]
    result: list[float] = []
    for start in range(0, len(inputs), _FORWARD_STEP):
        block = inputs[start : start + _FORWARD_STEP]
        logits = network(mx.array([block]), cache=cache)[0].astype(mx.float32)
        first = max(0, len(prompt) - 1 - start)
        if first >= len(block):
            mx.eval([part.state for part in cache])
            continue
        judged = delivered[start + first - len(prompt) + 1 :][: len(block) - first]
        scores = logits[first:]
        chosen = mx.take_along_axis(scores, mx.array(judged)[:, None], axis=-1)[:, 0]
        result += (scores.max(axis=-1) - chosen).tolist()
    return result


def _in_child(request: Request, timeout_s: float) -> bytes:
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | preload_environment(find_blas()) | {"PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryFile() as complaints:
        child = subprocess.Popen(
            [sys.executable, "-m", "cluster.engine.reference"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=environment,
        )
        timer = threading.Timer(timeout_s, child.kill)
        timer.start()
        with child:
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                # The pipe stays open until the answer is here: its end tells the child that nobody waits any more.
                _write_frame(child.stdin, msgspec.msgpack.encode(request))
                answer = _read_frame(child.stdout)
            except BrokenPipeError:
                answer = None
            finally:
                late = not timer.is_alive()
                timer.cancel()
                child.kill()
        if answer is not None:
            return answer
        complaints.seek(0)
        lines = complaints.read().decode(errors="replace").strip().splitlines()
    reason = f"no answer within {timeout_s:g} s" if late else (lines[-1] if lines else "it said nothing")
    raise ReferenceFailed(f"the reference process has failed: {reason}")


def _write_frame(stream: IO[bytes], payload: bytes) -> None:
    stream.write(len(payload).to_bytes(8, "little") + payload)
    stream.flush()


def _read_frame(stream: IO[bytes]) -> bytes | None:
    """The next frame, or None when the stream ends before it is complete."""
    header = stream.read(8)
    if len(header) < 8:
        return None
    payload = stream.read(int.from_bytes(header, "little"))
    return payload if len(payload) == int.from_bytes(header, "little") else None


def _die_with_parent() -> None:
    # os.read, because a thread inside sys.stdin's lock would stop the interpreter from ending.
    while os.read(0, 1):
        pass
    os._exit(1)


def _serve() -> None:
    """Answer the one request on standard input. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    payload = _read_frame(sys.stdin.buffer)
    if payload is None:
        return
    threading.Thread(target=_die_with_parent, daemon=True).start()
    match msgspec.msgpack.decode(payload, type=Request):
        case CompletionsRequest(model=model, prompts=prompts, cache=cache):
            answer: Any = completions(model, prompts, Path(cache) if cache else None)
        case GapsRequest(model=model, cases=cases):
            answer = gaps(model, cases)
    _write_frame(answers, msgspec.msgpack.encode(answer))


if __name__ == "__main__":
    _serve()
