"""The engine's configuration: enters once, is passed down, and never changes."""

from dataclasses import dataclass

from pbench.engine.block_pool import num_blocks_for
from pbench.engine.errors import ConfigError
from pbench.engine.eviction import EVICTION_POLICIES
from pbench.engine.model_config import DTYPE_BYTES, FP8, ModelConfig
from pbench.engine.preemption import PREEMPTION_MODES
from pbench.engine.reservation import reservation_for

KV_DTYPES = ("auto", FP8)
MEMORY_SPECS = ("paged", "contiguous:max", "contiguous:pow2", "contiguous:oracle", "static")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything that decides what an engine does.

    ``kv_memory_bytes`` is the size of the pool, the same for every memory: what fits is rounded down to whole
    blocks (paged) or slots (contiguous). With ``gpu_memory_utilization`` it is measured when the engine is loaded:
    what that share of the GPU's memory leaves beside everything else (``pbench.engine.pool_sizing``).
    """

    model: ModelConfig
    memory: str = "paged"  # one of MEMORY_SPECS
    kv_memory_bytes: int = 64 * 1024 * 1024
    gpu_memory_utilization: float | None = None  # above 0, at most 1; None: the pool is as large as it says above
    block_size: int = 16  # slots in a block; paged only
    max_length: int = 2048  # prompt and output tokens of one sequence, at most
    max_batch_tokens: int = 8192  # tokens that one step computes, at most
    max_running: int = 256  # sequences that hold KV at once, at most
    is_prefill_chunked: bool = True  # a prompt may be computed over several steps
    is_prefix_cached: bool = True  # paged only
    has_partial_hits: bool = False  # the prefix cache hits parts of blocks too, and copies them; paged only
    eviction: str = "lru"  # one of EVICTION_POLICIES: which cached block goes first; paged only
    preemption: str = "recompute"  # one of PREEMPTION_MODES: what happens to a request that must make room; paged only
    host_kv_memory_bytes: int = 0  # host memory for swapped blocks
    dtype: str = "float32"  # "float32" | "bfloat16" | "float16"
    kv_dtype: str = "auto"  # of K and V in the pool: as dtype, or "fp8": half a 16-bit pool, and less exact
    device: str = "cpu"  # "cpu" | "cuda"
    num_threads: int = 0  # that torch computes with on the CPU; 0: as torch decides
    seed: int = 0  # of random weights
    has_cuda_graphs: bool = True  # replay decode steps from CUDA graphs; without meaning on the CPU
    has_async_steps: bool = True  # launch a step before the tokens of the last are known; of no use on the CPU
    is_batch_invariant: bool = False  # logits of a request do not depend, to the bit, on what runs with it; slower

    def __post_init__(self) -> None:
        if self.memory not in MEMORY_SPECS:
            raise ConfigError(f"engine {self.memory!r} is unknown; known: {', '.join(MEMORY_SPECS)}")
        if self.dtype not in DTYPE_BYTES:
            raise ConfigError(f"dtype {self.dtype!r} is unknown; known: {', '.join(DTYPE_BYTES)}")
        if self.kv_dtype not in KV_DTYPES:
            raise ConfigError(f"kv_dtype {self.kv_dtype!r} is unknown; known: {', '.join(KV_DTYPES)}")
        if self.block_size < 1 or self.block_size & (self.block_size - 1):
            raise ConfigError(f"block size {self.block_size} is not a power of two")
        for name in ("kv_memory_bytes", "max_length", "max_batch_tokens", "max_running"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.gpu_memory_utilization is not None:
            if not 0 < self.gpu_memory_utilization <= 1:
                raise ConfigError(f"gpu_memory_utilization {self.gpu_memory_utilization} must be above 0 and at most 1")
            if self.device != "cuda":
                raise ConfigError(
                    f"gpu_memory_utilization {self.gpu_memory_utilization} needs a GPU, and the device is"
                    f" {self.device!r}; give --kv-memory instead"
                )
        if self.eviction not in EVICTION_POLICIES:
            raise ConfigError(f"eviction policy {self.eviction!r} is unknown; known: {', '.join(EVICTION_POLICIES)}")
        if self.preemption not in PREEMPTION_MODES:
            raise ConfigError(f"preemption {self.preemption!r} is unknown; known: {', '.join(PREEMPTION_MODES)}")
        if self.memory == "paged" and self.preemption != "recompute" and self.num_host_blocks < 1:
            raise ConfigError(
                f"preemption {self.preemption!r} needs host memory for at least a block of"
                f" {self.block_size * self.slot_bytes} bytes; raise --host-memory"
            )
        if self.max_batch_tokens < self.max_running:
            raise ConfigError(
                f"max_batch_tokens {self.max_batch_tokens} is below max_running {self.max_running}: a step could not"
                " give every running sequence a token; raise --max-batch-tokens"
            )
        if not self.is_prefill_chunked and self.max_batch_tokens < self.max_length:
            raise ConfigError(
                f"without chunked prefill a whole prompt must fit a step: max_batch_tokens {self.max_batch_tokens} is"
                f" below max_length {self.max_length}; raise --max-batch-tokens"
            )
        if self.is_batch_invariant and self.device == "cpu" and self.num_threads > 1:
            raise ConfigError(
                f"batch invariance on the CPU needs one thread, not {self.num_threads}: where threads divide a sum"
                " depends on how much there is to sum; use --threads 1"
            )
        if self.max_length > self.model.max_position_embeddings:
            raise ConfigError(
                f"max_length {self.max_length} exceeds the {self.model.max_position_embeddings} positions of model"
                f" {self.model.name}; lower --max-length"
            )

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Of each layer, how many tokens a token sees at most, its own included; None: all before it."""
        windows = map(self.model.window_of, range(self.model.num_layers))
        # No sequence is longer than the window: it cuts nothing, and what sequences share may be read together.
        return tuple(None if window is not None and window >= self.max_length else window for window in windows)

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot: K and V of one token in every layer."""
        return self.model.kv_bytes_per_token(self.dtype if self.kv_dtype == "auto" else self.kv_dtype)

    @property
    def num_slots(self) -> int:
        """Slots of the pool: whole blocks for paged memory, single slots for contiguous."""
        num_slots = self.kv_memory_bytes // self.slot_bytes
        return num_slots // self.block_size * self.block_size if self.memory == "paged" else num_slots

    @property
    def num_host_blocks(self) -> int:
        """Blocks of host memory that preempted requests can be swapped to; none where nothing swaps."""
        if self.memory != "paged" or self.preemption == "recompute":
            return 0
        return self.host_kv_memory_bytes // (self.block_size * self.slot_bytes)

    def num_slots_for(self, num_prompt_tokens: int, max_tokens: int, n: int = 1) -> int:
        """Slots of the smallest pool in which a request of ``n`` samples can run to its end."""
        if self.memory == "paged":
            return num_blocks_for(num_prompt_tokens, max_tokens, n, self.block_size) * self.block_size
        return n * reservation_for(self.memory, self.max_length).last_slots(num_prompt_tokens + max_tokens - 1)

    def check_pool(self, num_prompt_tokens: int, max_tokens: int, n: int = 1) -> None:
        """Refuse a pool that could not run a request, before anything is allocated.

        Raises:
            ConfigError: naming the smallest pool that would do.
        """
        num_needed = self.num_slots_for(num_prompt_tokens, max_tokens, n)
        if num_needed > self.num_slots:
            held = "blocks for its tokens" if self.memory == "paged" else f"a reservation of {num_needed // n} tokens"
            samples = f" for each of its {n} samples" if n > 1 else ""
            smallest = num_needed * self.slot_bytes
            raise ConfigError(
                f"KV memory of {self.kv_memory_bytes} bytes is too small for {self.memory}: the hungriest request"
                f" ({num_prompt_tokens} prompt and up to {max_tokens} output tokens) needs {held}{samples}, {smallest}"
                f" bytes at {self.slot_bytes} bytes a token; use --kv-memory {smallest} or more"
            )
