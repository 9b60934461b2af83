"""What ``pbench run`` uses for every option that is left out, on the CPU and on a GPU."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunDefaults:
    """Defaults of one kind of device."""

    model: str
    dtype: str
    kv_memory_bytes: int
    max_length: int
    max_batch_tokens: int
    max_running: int
    limit: int | None  # requests; None: all of the workload
    num_threads: int  # that the engine computes with on the CPU; 0: as torch decides


# A pool of 4 reservations: small enough that memory, not the processor, limits the baseline.
CPU_DEFAULTS = RunDefaults(
    model="tiny",
    dtype="float32",
    kv_memory_bytes=4 * 2**20,
    max_length=2048,
    max_batch_tokens=2048,
    max_running=128,
    limit=96,
    num_threads=1,  # the tiny model's tensors are too small to be shared out
)

GPU_DEFAULTS = RunDefaults(
    model="llama-1b",
    dtype="bfloat16",
    kv_memory_bytes=4 * 2**30,
    max_length=4096,
    max_batch_tokens=8192,
    max_running=256,
    limit=None,
    num_threads=0,
)

DEFAULTS = {"cpu": CPU_DEFAULTS, "cuda": GPU_DEFAULTS}
