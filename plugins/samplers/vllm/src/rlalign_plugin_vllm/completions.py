"""What a vLLM server is asked for one response, and what its answer says: tokens, log-probs, what was left to choose.

Written after what a server of vLLM 0.32 on a CPU was seen to answer to `/v1/completions`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rlalign import Response, RLAlignError, Sampling
from rlalign_plugin_vllm.servers import Failed

REMOVED = -9999.0
"""The log-prob of a token that may not be chosen: JSON has no −∞."""
TOKEN = "token_id:"
"""What a listed token's name begins with, under `--return-tokens-as-token-ids`."""


def request(
    model: str,
    prompt: Sequence[int],
    how: Sampling,
    seed: int,
    *,
    steps: int,
    ends: Sequence[int],
    listed: int,
) -> dict[str, Any]:
    """One response. All that `generation_config.json` may set is said, so that it sets nothing."""
    return {
        "model": model,
        "prompt": list(prompt),
        "n": 1,
        "seed": seed,
        "max_tokens": steps,
        "min_tokens": min(how.min_new_tokens, steps),
        "temperature": 0.0 if how.greedy else how.temperature,
        "top_p": how.top_p,
        "top_k": how.top_k,
        "min_p": how.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": list(how.stop),
        "stop_token_ids": list(ends),
        "logprobs": listed if how.narrows else 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def response(said: bytes, asked: Mapping[str, Any], how: Sampling) -> Response:
    """The response in an answer. `Failed` where it is none that this request can have."""
    try:
        (choice,) = json.loads(said)["choices"]
        tokens, reason = [int(token) for token in choice["token_ids"]], choice["finish_reason"]
        logprobs = [float(x) for x in choice["logprobs"]["token_logprobs"]]
        tops = choice["logprobs"]["top_logprobs"] if how.narrows else None
        kept = None if tops is None else [_kept(top, asked["logprobs"], how) for top in tops]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Failed(f"its answer is no single completion ({type(error).__name__}: {error})") from error
    if wrong := _wrong(tokens, logprobs, kept, reason, asked):
        raise Failed(wrong)
    return Response(tokens, logprobs, reason == "stop", kept)


def _kept(top: Mapping[str, float], listed: int, how: Sampling) -> Collection[int]:
    """The tokens that were left to choose from: known where the list goes on to one that was removed."""
    found = {int(name.removeprefix(TOKEN)): x for name, x in top.items()}
    kept = {token for token, x in found.items() if x > REMOVED}
    if len(kept) == len(found):
        cause = ", ".join(f"{name}: {getattr(how, name):g}" for name in ("top_k", "top_p", "min_p"))
        raise RLAlignError(
            f"{cause} left more tokens to choose from at some step than the {listed} that a server lists (`listed`), "
            "and what was left is not known; raise `listed`, and `--max-logprobs` of servers that run, or have more "
            "tokens removed"
        )
    return kept


def _wrong(
    tokens: Sequence[int],
    logprobs: Sequence[float],
    kept: Sequence[Collection[int]] | None,
    reason: str,
    asked: Mapping[str, Any],
) -> str | None:
    steps, stops = asked["max_tokens"], [*asked["stop_token_ids"]]
    if not tokens or len(tokens) > steps:
        return f"it gave {len(tokens)} tokens where 1 to {steps} were asked for"
    if len(logprobs) != len(tokens) or (kept is not None and len(kept) != len(tokens)):
        listed = "" if kept is None else f" and {len(kept)} lists"
        return f"it gave {len(logprobs)} log-probs{listed} for {len(tokens)} tokens"
    if kept is not None and any(token not in some for token, some in zip(tokens, kept, strict=True)):
        return "it chose a token that was not left to choose"
    if reason == "length" and len(tokens) == steps:
        return None
    if reason == "stop" and (tokens[-1] in stops or asked["stop"]):
        return None
    return f"it ended after {len(tokens)} of {steps} tokens, at token {tokens[-1]}, for the reason {reason!r}"
