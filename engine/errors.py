"""Errors that the engine raises for a user's mistake. A broken invariant of our own asserts instead.

EngineError
├── ConfigError       an impossible configuration: pool too small, unknown preset, unknown architecture
├── WeightsError      a model folder whose weights are missing, of the wrong shape, or unreadable
└── RequestError      a request that this engine can never serve
"""


class EngineError(Exception):
    """Base of all errors of the engine. The message names the value, where it stands, and the remedy."""


class ConfigError(EngineError):
    """A configuration that cannot work."""


class WeightsError(EngineError):
    """Weights that do not fit the model's configuration."""


class RequestError(EngineError):
    """A request that could never run in this engine."""
