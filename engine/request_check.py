"""What makes a request impossible, told before it is queued."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np

from pbench.engine.beam_search import EarlyStopping
from pbench.engine.config import EngineConfig
from pbench.engine.errors import RequestError
from pbench.engine.memory import KVMemory
from pbench.engine.request import Request, SamplingParams


def check_request(request: Request, config: EngineConfig, memory: KVMemory, *, can_decode: bool) -> None:
    """Refuse a request that could never run.

    Raises:
        RequestError: naming the value and what to change.
    """
    sampling = request.sampling
    num_prompt, where = len(request.prompt_token_ids), f"request {request.request_id}"
    if num_prompt < 1 or sampling.max_tokens < 1:
        raise RequestError(
            f"{where} has {num_prompt} prompt tokens and max_tokens {sampling.max_tokens}; both must be at least 1"
        )
    if num_prompt + sampling.max_tokens > config.max_length:
        raise RequestError(
            f"{where} has {num_prompt} prompt tokens and up to {sampling.max_tokens} output tokens, more than"
            f" max_length {config.max_length}; raise --max-length"
        )
    if not 1 <= sampling.num_sequences <= config.max_running:
        raise RequestError(
            f"{where} asks for {sampling.num_sequences} sequences (n {sampling.n}, beam_width"
            f" {sampling.beam_width}); between 1 and max_running {config.max_running} can run"
        )
    _check_choice(where, sampling, config.model.vocab_size)
    _check_stop(where, sampling, can_decode=can_decode)
    if sampling.beam_width > 1:
        _check_beams(where, sampling)
        if not memory.can_fork:
            raise RequestError(f"{where} wants beam search, which {config.memory} cannot do; use paged")
    smallest, largest = _bounds(request.prompt_token_ids)
    if not 0 <= smallest <= largest < config.model.vocab_size:
        raise RequestError(f"{where} has a token id outside the vocabulary of {config.model.vocab_size}")
    if not memory.can_ever_hold(request):
        raise RequestError(f"{where} does not fit the pool of {config.num_slots} slots; raise --kv-memory")


def _check_choice(where: str, sampling: SamplingParams, vocab_size: int) -> None:
    if not 0 <= sampling.temperature < math.inf:
        raise RequestError(f"{where} has temperature {sampling.temperature}; it must be 0 or more, and finite")
    if sampling.top_k < 0:
        raise RequestError(f"{where} has top_k {sampling.top_k}; it must be 1 or more, or 0 for all tokens")
    if not 0 < sampling.top_p <= 1:
        raise RequestError(
            f"{where} has top_p {sampling.top_p}; it must be above 0 and at most 1, which keeps all tokens"
        )
    if not 0 <= sampling.min_p <= 1:
        raise RequestError(f"{where} has min_p {sampling.min_p}; it must be from 0, which keeps all tokens, to 1")
    if not 0 < sampling.repetition_penalty < math.inf:
        raise RequestError(
            f"{where} has repetition_penalty {sampling.repetition_penalty}; it must be above 0 and finite; 1 is none"
        )
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= vocab_size:
        raise RequestError(
            f"{where} has logprobs {sampling.logprobs}; it must be from 0 to the {vocab_size} tokens of the vocabulary"
        )


def _check_stop(where: str, sampling: SamplingParams, *, can_decode: bool) -> None:
    if isinstance(sampling.stop, str):
        raise RequestError(f"{where} has stop {sampling.stop!r}; give a tuple of texts, ({sampling.stop!r},)")
    if "" in sampling.stop:
        raise RequestError(f"{where} has an empty stop string, which would end it at once; leave it out")
    if sampling.stop and not (can_decode and sampling.detokenize):
        remedy = "give the engine a decode function" if sampling.detokenize else "leave detokenize on"
        raise RequestError(f"{where} has the stop string {sampling.stop[0]!r}, which needs text; {remedy}")


def _check_beams(where: str, sampling: SamplingParams) -> None:
    if sampling.early_stopping not in get_args(EarlyStopping):
        known = ", ".join(get_args(EarlyStopping))
        raise RequestError(f"{where} has early_stopping {sampling.early_stopping!r}; known: {known}")
    if sampling.n > sampling.beam_width:
        raise RequestError(f"{where} asks for n = {sampling.n} hypotheses of {sampling.beam_width} beams")
    if replace(sampling, temperature=1.0).options() is not None or sampling.stop:
        raise RequestError(
            f"{where} wants beam search, which takes no top_k, top_p, min_p, repetition_penalty, logprobs or stop"
            " strings; leave them out, or use beam_width 1"
        )


def _bounds(token_ids: Sequence[int]) -> tuple[int, int]:
    """The smallest and the largest id; a packed prompt is not unpacked for it."""
    if isinstance(token_ids, array):
        numbers = np.asarray(token_ids)
        return int(numbers.min()), int(numbers.max())
    return min(token_ids), max(token_ids)
