"""The engine: one model, one scheduler, one sampler, and two memories behind the ``KVMemory`` protocol.

It imports ``pbench.kernels`` and nothing else of ours. It never sees the harness: it exposes its state
(``StepRecord``, ``KVUsage``, ``RequestRecord``) and the harness reads it.

What users need can be imported from here, see docs/engine.md. Each name is loaded when it is first asked for, so that
importing this package loads neither torch nor numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pbench.engine.config import EngineConfig
    from pbench.engine.engine import Engine, StepOutput
    from pbench.engine.errors import ConfigError, EngineError, RequestError, WeightsError
    from pbench.engine.loading import load_engine
    from pbench.engine.model_config import load_model_config
    from pbench.engine.records import Completion, RequestRecord, StepRecord, TokenOutput
    from pbench.engine.request import Request, SamplingParams

_MODULE_BY_NAME = {
    "Completion": "records",
    "ConfigError": "errors",
    "Engine": "engine",
    "EngineConfig": "config",
    "EngineError": "errors",
    "Request": "request",
    "RequestError": "errors",
    "RequestRecord": "records",
    "SamplingParams": "request",
    "StepOutput": "engine",
    "StepRecord": "records",
    "TokenOutput": "records",
    "WeightsError": "errors",
    "load_engine": "loading",
    "load_model_config": "model_config",
}

__all__ = [
    "Completion",
    "ConfigError",
    "Engine",
    "EngineConfig",
    "EngineError",
    "Request",
    "RequestError",
    "RequestRecord",
    "SamplingParams",
    "StepOutput",
    "StepRecord",
    "TokenOutput",
    "WeightsError",
    "load_engine",
    "load_model_config",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_BY_NAME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
