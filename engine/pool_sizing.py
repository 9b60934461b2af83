"""How large the pool may be: a share of the GPU's memory, less all that is in use when the largest step has run."""

import gc
from array import array
from dataclasses import replace

import torch

from pbench.engine.config import EngineConfig
from pbench.engine.engine import Engine
from pbench.engine.errors import ConfigError
from pbench.engine.model import Model
from pbench.engine.request import Request, SamplingParams
from pbench.engine.runner import Runner


def size_pool(config: EngineConfig, model: Model) -> EngineConfig:
    """The configuration with ``kv_memory_bytes`` measured, if ``gpu_memory_utilization`` asks for it.

    An engine with a pool just large enough runs what takes the most memory: it captures its CUDA graphs, then computes
    as many tokens as a step may have, for as many sequences as may run, each of which wants all that can be wanted of a
    token. What the GPU holds then, but for that pool, is what it will hold beside any pool: weights, buffers, graphs,
    activations, what torch keeps of them, the driver's own, and other processes.

    Raises:
        ConfigError: nothing is left for a pool.
    """
    if config.gpu_memory_utilization is None:
        return config
    in_use = _bytes_beside_pool(config, model)
    _, total = torch.cuda.mem_get_info()
    left = int(config.gpu_memory_utilization * total) - in_use
    block_bytes = config.block_size * config.slot_bytes
    if left < block_bytes:
        raise ConfigError(
            f"gpu_memory_utilization {config.gpu_memory_utilization} of {total} bytes leaves no room for KV: all else,"
            f" when the largest step runs, takes {in_use}; raise --gpu-memory-utilization or lower --max-batch-tokens"
        )
    return replace(config, kv_memory_bytes=left // block_bytes * block_bytes, gpu_memory_utilization=None)


def _bytes_beside_pool(config: EngineConfig, model: Model) -> int:
    prompt_length = max(min(config.max_batch_tokens // config.max_running, config.max_length - 2), 1)
    num_blocks = config.max_running * (-(-(prompt_length + 2) // config.block_size) + 1)
    num_blocks += num_blocks // 50  # which admission keeps back
    small = replace(
        config,
        memory="paged",
        preemption="recompute",
        has_partial_hits=False,
        kv_memory_bytes=num_blocks * config.block_size * config.slot_bytes,
        gpu_memory_utilization=None,
    )
    runner = Runner(small, model)
    engine = Engine(small, runner)
    runner.compile_ahead([prompt_length])
    runner.warm_up()
    for request in _largest_step(small, prompt_length):
        engine.add_request(request)
    while engine.has_unfinished:
        engine.step()
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    in_use = total - free - runner.pool.nbytes
    del engine, runner
    gc.collect()
    torch.cuda.empty_cache()
    return in_use


def _largest_step(config: EngineConfig, prompt_length: int) -> list[Request]:
    vocab_size = config.model.vocab_size
    sampling = SamplingParams(
        max_tokens=min(2, config.max_length - prompt_length),
        temperature=1.0,
        top_k=50,
        top_p=0.9,
        repetition_penalty=1.1,
        logprobs=min(20, vocab_size),
        ignore_eos=True,
    )
    prompts = (
        array("i", ((7 * index + offset) % vocab_size for offset in range(prompt_length)))
        for index in range(config.max_running)
    )
    return [Request(index, prompt, sampling) for index, prompt in enumerate(prompts)]
