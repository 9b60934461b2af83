"""The kinds of engines that are not ours: how ``--engine`` names them, and which settings mean nothing to them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pbench.engine.config import MEMORY_SPECS
from pbench.errors import UsageError
from pbench.units import printable

if TYPE_CHECKING:
    from pbench.external.target import ExternalTarget
    from pbench.job import EngineOptions, ServerAccess


@dataclass(frozen=True, slots=True)
class ExternalKind:
    """One kind of engine. ``unused`` are the fields of ``EngineOptions`` that mean nothing to it."""

    name: str  # what a spec begins with
    form: str  # what a spec looks like
    factory: str  # module:attribute, called with (EngineOptions, ServerAccess)
    is_local: bool  # runs in the worker's process, so that what the worker samples is its own
    unused: frozenset[str]

    def load(self, options: "EngineOptions", access: "ServerAccess") -> "ExternalTarget":
        """Load the engine, or connect to it."""
        module, _, attribute = self.factory.partition(":")
        target: ExternalTarget = getattr(import_module(module), attribute)(options, access)
        return target


# Ours alone: how the scheduler and the memories of this project are set up.
_OURS = frozenset(
    {
        *("memory", "kv_dtype", "is_prefill_chunked", "has_partial_hits", "eviction", "preemption"),
        *("host_kv_memory_bytes", "is_batch_invariant"),
    }
)

EXTERNAL_KINDS = (
    ExternalKind(
        name="transformers",
        form="transformers",
        factory="pbench.external.transformers_target:load_transformers",
        is_local=True,
        unused=_OURS | {"block_size"},
    ),
    ExternalKind(
        name="openai",
        form="openai:URL",
        factory="pbench.external.openai_target:connect",
        is_local=False,
        # The model gives the vocabulary that prompts are drawn from.
        unused=_OURS
        | {
            *("block_size", "kv_memory_bytes", "max_batch_tokens", "max_running", "is_prefix_cached", "dtype"),
            *("device", "num_threads", "has_cuda_graphs", "has_async_steps"),
        },
    ),
)


def external_kind(spec: str) -> ExternalKind | None:
    """The kind of engine that ``spec`` names; None for an engine of ours, and for nonsense."""
    name, separator, rest = spec.partition(":")
    for kind in EXTERNAL_KINDS:
        if name == kind.name and bool(separator and rest) == (":" in kind.form):
            return kind
    return None


def check_spec(spec: str) -> None:
    """Refuse a spec that names no engine.

    Raises:
        UsageError: naming those that are known.

    """
    if spec not in MEMORY_SPECS and external_kind(spec) is None:
        known = ", ".join((*MEMORY_SPECS, *(kind.form for kind in EXTERNAL_KINDS)))
        raise UsageError(f"--engine {printable(spec)} is unknown; known: {known}")


def recorded_config(options: "EngineOptions") -> dict[str, Any]:
    """An engine's options as the record keeps them: None where an option means nothing to the engine."""
    kind = external_kind(options.memory)
    unused = kind.unused if kind is not None else frozenset()
    return {name: None if name in unused else value for name, value in asdict(options).items()}


def unused_notes(options: "EngineOptions") -> tuple[str, ...]:
    """Which settings mean nothing to an engine, for people; none for an engine of ours."""
    kind = external_kind(options.memory)
    if kind is None:
        return ()
    names = ", ".join(name for name in asdict(options) if name in kind.unused - {"memory"})
    return (f"it has settings of its own; not applied: {names}",)


def common_config(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the engines of a run have in common but for their memory: of every setting the first that was applied."""
    return {
        name: next((config[name] for config in configs if config[name] is not None), None)
        for name in configs[0]
        if name != "memory"
    }
