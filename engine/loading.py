"""Loading an engine with a real model."""

from pathlib import Path

import torch

from pbench.engine.config import EngineConfig
from pbench.engine.engine import Engine
from pbench.engine.errors import ConfigError
from pbench.engine.model import Model
from pbench.engine.model_config import FP8
from pbench.engine.pool_sizing import size_pool
from pbench.engine.runner import Runner
from pbench.engine.text_stream import Decode
from pbench.engine.weights import load_weights, random_weights
from pbench.kernels.launch import FP8_CAPABILITY


def load_engine(config: EngineConfig, weights: str | None = None, decode: Decode | None = None) -> Engine:
    """Load the model, allocate the pool, and put an engine around them.

    Args:
        config: what to run.
        weights: a Hugging Face folder with safetensors; None for random weights from ``config.seed``.
        decode: see ``Engine``.

    Raises:
        ConfigError: the device is not there, or the pool cannot hold the smallest request.
        WeightsError: the weights do not fit the model.
    """
    config, model = _load(config, weights)
    return Engine(config, Runner(config, model), decode=decode)


def measure_pool(config: EngineConfig, weights: str | None = None) -> EngineConfig:
    """The configuration that ``load_engine`` would load, with the size of the pool that it would measure.

    Raises:
        ConfigError, WeightsError: as for ``load_engine``.
    """
    return _load(config, weights)[0]


def _load(config: EngineConfig, weights: str | None) -> tuple[EngineConfig, Model]:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' is not available on this machine; use --device cpu")
    if config.device == "cuda" and config.kv_dtype == FP8 and torch.cuda.get_device_capability() < FP8_CAPABILITY:
        raise ConfigError("kv_dtype 'fp8' needs a GPU of compute capability 8.9 or later; leave out --kv-dtype")
    if config.device == "cpu" and (config.num_threads or config.is_batch_invariant):
        torch.set_num_threads(config.num_threads or 1)
    if config.gpu_memory_utilization is None:
        config.check_pool(1, 1)
    dtype, device = getattr(torch, config.dtype), torch.device(config.device)
    model = Model(config.model, dtype, device, is_batch_invariant=config.is_batch_invariant)
    if weights is None:
        random_weights(model, config.seed)
    else:
        load_weights(model, Path(weights))
    config = size_pool(config, model)
    config.check_pool(1, 1)
    return config, model
