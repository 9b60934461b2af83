"""transformers' continuous batching, driven by the harness: ``--engine transformers``.

Only its public interface is used (``init_continuous_batching`` and the manager that it returns, transformers 5.14 and
later). The manager generates in a thread of its own and stamps every token with the time at which it knew it; a
request's stamps come with its end, so that nothing is copied for every token. It tells nothing of its steps, of
its KV memory, and of hits in its prefix cache: those figures stay blank. A request that must give up its blocks starts
again as a new one: when it first ran, and when its tokens until then came, is forgotten, and stays blank too.
"""

import time
from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig

from pbench.engine.request import Request, SamplingParams
from pbench.external.checks import BLOCK_SIZE, config_of_transformers
from pbench.external.errors import ExternalError
from pbench.external.target import Receipt, Received, RequestOutcome
from pbench.external.transformers_model import ATTENTION, PeerModel, load_model

if TYPE_CHECKING:
    from pbench.job import EngineOptions, ServerAccess

_STOP_S = 20.0
_LOOK_S = 0.2  # how often the warm-up looks whether the thread still lives


class TransformersTarget:
    """A model behind transformers' continuous batching manager."""

    def __init__(self, options: "EngineOptions") -> None:
        self._config = config_of_transformers(options)
        if options.device == "cpu" and options.num_threads:
            torch.set_num_threads(options.num_threads)
        self._model: PeerModel = load_model(options)
        if options.dtype == "float32":  # which flash attention, that it would look for, cannot compute
            self._model.set_attn_implementation(f"paged|{ATTENTION}")
        self._num_blocks = options.kv_memory_bytes // (BLOCK_SIZE * self._config.slot_bytes)
        # A dictionary, for the class is not typed. -1: no token ends a request.
        greedy = GenerationConfig.from_dict({"do_sample": False, "eos_token_id": -1})
        self._manager = self._model.init_continuous_batching(
            generation_config=greedy,
            continuous_batching_config=ContinuousBatchingConfig(
                block_size=BLOCK_SIZE,
                num_blocks=self._num_blocks,
                max_batch_tokens=options.max_batch_tokens,
                max_requests_per_batch=options.max_running,
                allow_block_sharing=options.is_prefix_cached,
                # None: transformers decides by the attention that it found.
                use_cuda_graph=None if options.has_cuda_graphs else False,
                use_async_batching=None if options.has_async_steps else False,
            ),
        )
        self._requests: dict[str, tuple[Request, int]] = {}  # unfinished ones, and when they were added
        self._num_started_again = 0

    @property
    def has_unfinished(self) -> bool:
        """See ``ExternalTarget``."""
        return bool(self._requests)

    def add_request(self, request: Request) -> None:
        """See ``ExternalTarget``.

        Raises:
            ExternalError: the manager takes no more requests.

        """
        name = str(request.request_id)
        added_ns = time.monotonic_ns()  # before: the thread may schedule the request while the call still returns
        added = self._manager.add_request(
            list(request.prompt_token_ids),
            request_id=name,
            max_new_tokens=request.sampling.max_tokens,
            record_timestamps=True,
            eos_token_id=-1,
        )
        if added is None:
            raise ExternalError("transformers takes no more requests: its generation thread has stopped")
        self._requests[name] = (request, added_ns)

    def receive(self, timeout_ns: int) -> Received:
        """See ``ExternalTarget``.

        Raises:
            ExternalError: the manager's thread died and told nothing of what was left.

        """
        result = self._manager.get_result(timeout=timeout_ns / 1e9)
        if result is None and not self._manager.is_running():
            raise ExternalError("transformers' generation thread has stopped; its last words are in the log")
        return self._read(result)

    def _read(self, result: Any) -> Received:
        """The result, and all that have come besides."""
        receipts: list[Receipt] = []
        ended: list[RequestOutcome] = []
        while result is not None:
            self._take(result, receipts, ended)
            result = self._manager.get_result(timeout=0)
        return Received(receipts, ended, len(receipts))

    def _take(
        self, result: Any, receipts: list[Receipt], ended: list[RequestOutcome], *, is_over: bool = False
    ) -> None:
        known = self._requests.pop(result.request_id, None)
        if known is None:
            return
        request, added_ns = known
        times_ns = [_nanoseconds(stamp) for stamp in result.timestamps or ()]
        receipts += [Receipt(request.request_id, time_ns, 1) for time_ns in times_ns]
        status = "unfinished" if is_over else "failed" if result.error is not None else "finished"
        has_started_again = len(times_ns) < len(result.generated_tokens)
        self._num_started_again += has_started_again
        scheduled_ns = None
        if result.lifespan[0] > 0 and not has_started_again:
            scheduled_ns = _nanoseconds(result.lifespan[0])
        ended.append(
            RequestOutcome(
                request_id=request.request_id,
                status=status,
                arrival_ns=request.arrival_ns,
                added_ns=added_ns,
                num_prompt_tokens=len(request.prompt_token_ids),
                num_output_tokens=len(result.generated_tokens),
                num_sequences=1,
                first_scheduled_ns=scheduled_ns,
                first_token_ns=times_ns[0] if times_ns and not has_started_again else None,
                finished_ns=times_ns[-1] if times_ns and status == "finished" else None,
                reason=result.error if status == "failed" else None,
                output_token_ids=tuple(result.generated_tokens),
            )
        )

    def warm_up(self) -> int | None:
        """See ``ExternalTarget``."""
        config = self._config
        self._manager.warmup()  # captures CUDA graphs where it uses them
        longest = max(1, min(config.max_length, config.max_batch_tokens, self._num_blocks * BLOCK_SIZE) - 2)
        prompts = [longest, *([1] * min(config.max_running, self._num_blocks))]
        for index, length in enumerate(prompts):
            tokens = array("i", [position % config.model.vocab_size for position in range(length)])
            self.add_request(Request(-1 - index, tokens, SamplingParams(max_tokens=2)))
        self._manager.start()  # not before there is something to do: 5.14 could not start without
        failed = [outcome for outcome in self._drain() if outcome.status == "failed"]
        if failed:
            raise ExternalError(f"transformers failed while it warmed up: {failed[0].reason}")
        self._num_started_again = 0
        return None

    def _drain(self) -> list[RequestOutcome]:
        ended: list[RequestOutcome] = []
        while self.has_unfinished:
            ended += self.receive(round(_LOOK_S * 1e9)).ended
        return ended

    def pool(self) -> Mapping[str, int]:
        """See ``ExternalTarget``."""
        num_slots = self._num_blocks * BLOCK_SIZE
        return {
            "num_slots": num_slots,
            "slot_bytes": self._config.slot_bytes,
            "pool_bytes": num_slots * self._config.slot_bytes,
            "block_size": BLOCK_SIZE,
            "weights_bytes": self._weights_bytes(),
        }

    def memory_bytes(self) -> Mapping[str, int]:
        """See ``ExternalTarget``. What it needs besides is not known apart from activations."""
        return {"weights": self._weights_bytes(), "pool": self.pool()["pool_bytes"]}

    def _weights_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self._model.parameters())

    def facts(self) -> Mapping[str, Any]:
        """See ``ExternalTarget``."""
        resolved = self._manager.continuous_batching_config
        return {
            "block_size": BLOCK_SIZE,
            "version": transformers.__version__,
            "attention": str(self._model.config._attn_implementation),
            "has_cuda_graphs": any(resolved.cuda_graph_booleans),
            "has_async_steps": bool(resolved.use_async_batching),
        }

    def notes(self) -> Sequence[str]:
        """See ``ExternalTarget``."""
        notes = ["transformers tells nothing of its steps, its KV memory and its prefix cache"]
        if self._num_started_again:
            notes.append(
                f"{self._num_started_again} requests started again because the pool was full: transformers then forgets"
                " when their first tokens came, so TTFT, queue time and time per output token are of the others only"
            )
        return notes

    def give_up(self) -> Received:
        """See ``ExternalTarget``."""
        if not self.has_unfinished:
            return Received()
        self.close()
        receipts: list[Receipt] = []
        ended: list[RequestOutcome] = []
        while (result := self._manager.get_result(timeout=0)) is not None:
            # What had ended by itself has no error; the rest was failed by stopping.
            self._take(result, receipts, ended, is_over=result.error is not None)
        return Received(receipts, ended)

    def close(self) -> None:
        """See ``ExternalTarget``."""
        if self._manager.is_running():
            self._manager.stop(block=True, timeout=_STOP_S, hard_stop=True)


def _nanoseconds(stamp: float) -> int:
    """A stamp of transformers in nanoseconds of ``time.monotonic_ns()``.

    It is of ``time.perf_counter()``, in seconds, which Linux and macOS read from the same clock.
    """
    return round(stamp * 1e9)


def load_transformers(options: "EngineOptions", _access: "ServerAccess") -> TransformersTarget:
    """Load the model, and start transformers' continuous batching around it.

    Raises:
        ExternalError: it cannot be loaded.

    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ExternalError("device 'cuda' is not available on this machine; use --device cpu")
    try:
        return TransformersTarget(options)
    except OSError as error:
        raise ExternalError(f"transformers cannot load model {options.model}: {error}") from error
