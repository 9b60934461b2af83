"""A pool as large as the GPU's memory allows beside the largest step."""

import dataclasses
import gc
from collections.abc import Iterator

import pytest
import torch

from pbench.engine.config import EngineConfig
from pbench.engine.engine import Engine, StepOutput
from pbench.engine.errors import ConfigError
from pbench.engine.loading import load_engine
from pbench.engine.model import Model
from pbench.engine.model_config import PRESETS
from pbench.engine.pool_sizing import size_pool
from pbench.engine.request import Request, SamplingParams
from pbench.engine.weights import random_weights

CONFIG = EngineConfig(model=PRESETS["tiny"], max_length=128, max_batch_tokens=256, max_running=8)


def asking(config: EngineConfig, utilization: float) -> EngineConfig:
    """The configuration of a GPU, for tests without one."""
    copied = dataclasses.replace(config)
    object.__setattr__(copied, "gpu_memory_utilization", utilization)
    return copied


def tiny_model() -> Model:
    model = Model(PRESETS["tiny"], torch.float32, torch.device("cpu"))
    random_weights(model, 0)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"memory": "contiguous:max"},
        {"memory": "static", "max_running": 3},
        {"max_length": 2},
        {"max_batch_tokens": 8, "block_size": 64},
    ],
    ids=str,
)
def test_the_pool_is_what_the_largest_step_leaves(changes: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tokens as fit a step, for as many sequences as may run, in one step; then as many decodes."""
    config = dataclasses.replace(CONFIG, **changes)  # type: ignore[arg-type]
    outputs: list[StepOutput] = []
    step = Engine.step

    def step_and_note(engine: Engine) -> StepOutput:
        outputs.append(step(engine))
        return outputs[-1]

    def mem_get_info() -> tuple[int, int]:
        pool_bytes = outputs[-1].record.usage.pool * config.slot_bytes
        return 600_000_000 - pool_bytes, 1_000_000_000

    monkeypatch.setattr(Engine, "step", step_and_note)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    sized = size_pool(asking(config, 0.9), tiny_model())
    most = min(config.max_batch_tokens, config.max_running * max(config.max_length - 2, 1))
    assert most - config.max_running < outputs[0].record.num_prefill_tokens <= most
    assert {output.record.num_output_tokens for output in outputs} == {config.max_running}
    assert sum(output.record.num_preempted for output in outputs) == 0
    assert all(token.score is not None for token in outputs[0].tokens)
    assert sized.gpu_memory_utilization is None
    block_bytes = config.block_size * config.slot_bytes
    assert sized.kv_memory_bytes == (900_000_000 - 400_000_000) // block_bytes * block_bytes
    with pytest.raises(ConfigError, match=r"0.3 of 1000000000 bytes leaves no room for KV: all else, when the largest"):
        size_pool(asking(config, 0.3), tiny_model())


def test_a_pool_of_fixed_size_stays_as_it_is() -> None:
    assert size_pool(CONFIG, tiny_model()) is CONFIG


@pytest.mark.parametrize("utilization", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(utilization: float) -> None:
    with pytest.raises(ConfigError, match="must be above 0 and at most 1"):
        dataclasses.replace(CONFIG, device="cuda", gpu_memory_utilization=utilization)


def test_without_a_gpu_it_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization 0.9 needs a GPU.*give --kv-memory instead"):
        dataclasses.replace(CONFIG, gpu_memory_utilization=0.9)


@pytest.fixture
def whole_gpu() -> Iterator[None]:
    """No memory that an earlier test left, and none left for later ones, some of which run in another process."""
    gc.collect()
    torch.cuda.empty_cache()
    yield
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.gpu
@pytest.mark.usefixtures("whole_gpu")
@pytest.mark.parametrize("has_cuda_graphs", [True, False])
def test_the_gpu_is_filled_to_its_share_and_no_further(has_cuda_graphs: bool) -> None:
    """After the engine has warmed up and run steps of every option, with prompts as long as they may be."""
    free, total = torch.cuda.mem_get_info()
    if total - free > 2 * 2**30:
        pytest.skip("others hold memory of this GPU, and may take more meanwhile")
    config = EngineConfig(
        model=PRESETS["qwen3-0.6b"],
        device="cuda",
        dtype="bfloat16",
        max_length=4096,
        gpu_memory_utilization=0.5,
        has_cuda_graphs=has_cuda_graphs,
    )
    engine = load_engine(config)
    engine.warm_up()
    sampling = SamplingParams(max_tokens=4, temperature=1.0, top_p=0.9, repetition_penalty=1.2, logprobs=20)
    for index in range(256):
        engine.add_request(Request(index, [index] * (32 if index else 4000), sampling))
    while engine.has_unfinished:
        engine.step()
    torch.cuda.synchronize()
    free, _ = torch.cuda.mem_get_info()
    assert total - free <= 0.5 * total + 512 * 2**20
    assert total - free >= 0.5 * total - 2 * 2**30, "memory was left that the pool could have had"
    assert engine.pool_bytes == engine.memory_bytes()["pool"] > 0.3 * total
