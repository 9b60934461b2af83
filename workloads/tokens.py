"""From a request to the token ids of its prompt."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pbench.workloads.errors import WorkloadError
from pbench.workloads.request import WorkloadRequest
from pbench.workloads.streams import Stream

_NUM_CACHED_RUNS = 512  # a run that is made again costs about 20 us; the cache is for prompts shared by many


def prompt_token_ids(request: WorkloadRequest, *, vocab_size: int, seed: int) -> list[int]:
    """Token ids of the request's prompt: ``input_length`` numbers in 0..vocab_size - 1.

    Ids that the request carries are returned as they are. Otherwise each segment gives the first tokens of the
    stream named by (seed, key), so equal segments are equal tokens, and any machine makes the same ones.

    Raises:
        WorkloadError: the request carries an id that the vocabulary does not have.
    """
    if request.prompt_token_ids is not None:
        largest = max(request.prompt_token_ids, default=0)
        if largest >= vocab_size:
            raise WorkloadError(
                f"request {request.request_id} has token id {largest} in its prompt, but the model's vocabulary ends"
                f" at {vocab_size - 1}; use the model that the workload was recorded for, or leave prompt_token_ids out"
            )
        return list(request.prompt_token_ids)
    token_ids: list[int] = []
    for key, length in request.segments:
        token_ids += token_run(seed, key, length, vocab_size).tolist()
    return token_ids


@lru_cache(maxsize=_NUM_CACHED_RUNS)
def token_run(seed: int, key: int, length: int, vocab_size: int) -> npt.NDArray[np.int32]:
    """The first ``length`` token ids of the stream named by (seed, key). Shape (length,), int32, read-only."""
    run = Stream(seed, f"tokens/{key}").integers(length, 0, vocab_size - 1).astype(np.int32)
    run.setflags(write=False)  # shared by all who ask
    return run
