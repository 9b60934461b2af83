"""Every figure that a summary may have: its names, its unit, which way is better, and what it means."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """How a figure of a summary is named, measured and judged."""

    name: str
    label: str
    unit: str  # "tok/s", "ms", "%", "bytes", "J", "s", "" for a count
    is_higher_better: bool | None  # None: neither
    help: str


METRICS: tuple[Metric, ...] = (
    Metric(
        "output_tokens_per_s",
        "output tokens/s",
        "tok/s",
        True,
        "generated tokens over the wall time of the whole workload",
    ),
    Metric(
        "steady_output_tokens_per_s",
        "output tokens/s, steady",
        "tok/s",
        True,
        "generated tokens over time in the stretch in which the throughput was steady (MSER)",
    ),
    Metric(
        "total_tokens_per_s",
        "total tokens/s",
        "tok/s",
        True,
        "prompt and generated tokens over the wall time of the whole workload",
    ),
    Metric(
        "requests_per_s",
        "requests/s",
        "req/s",
        True,
        "finished requests over the wall time of the whole workload",
    ),
    Metric("duration_s", "duration", "s", False, "from the first request offered to the last token"),
    *(
        Metric(f"{name}_ms_p{percent}", f"{label}, {word}", "ms", False, meaning)
        for name, label, meaning in (
            ("ttft", "TTFT", "time from a request's intended arrival to its first token"),
            ("ttft_sent", "TTFT from send", "time from when a request was given to the engine to its first token"),
            ("queue", "queue time", "from a request's intended arrival to the first step that computes for it"),
            ("itl", "inter-token latency", "gap between one token of a sequence and the next, over all tokens"),
            ("tpot", "time per output token", "mean gap between a request's tokens after its first"),
            ("e2e", "end-to-end latency", "from a request's intended arrival to its last token"),
            ("e2e_sent", "end-to-end from send", "from when a request was given to the engine to its last token"),
        )
        for percent, word in ((50, "median"), (90, "p90"), (99, "p99"))
    ),
    Metric(
        "goodput_requests_per_s",
        "goodput",
        "req/s",
        True,
        "requests that kept every target of --slo, over the wall time of the whole workload",
    ),
    Metric("slo_attainment_pct", "targets kept", "%", True, "requests that kept every target of --slo, of all offered"),
    Metric(
        "peak_running",
        "most requests together",
        "",
        True,
        "largest number of requests that held KV memory in one step",
    ),
    Metric("mean_running", "mean requests together", "", True, "requests that held KV memory, averaged over time"),
    Metric(
        "waste_pct",
        "waste",
        "%",
        False,
        "reserved + internal + external, share of the pool, averaged over time",
    ),
    Metric(
        "held_waste_pct",
        "waste of what is held",
        "%",
        False,
        "reserved + internal, share of the slots that requests hold: waste however much of the pool is in use",
    ),
    Metric(
        "token_state_pct",
        "token states",
        "%",
        True,
        "slots that hold KV of live tokens, share of the pool, averaged over time",
    ),
    Metric(
        "reserved_pct",
        "reserved",
        "%",
        False,
        "slots held for tokens still to come, share of the pool, averaged over time",
    ),
    Metric(
        "internal_pct",
        "internal fragmentation",
        "%",
        False,
        "slots held that are never filled, share of the pool, averaged over time",
    ),
    Metric(
        "external_pct",
        "external fragmentation",
        "%",
        False,
        "free slots that the next request cannot use because they are not contiguous",
    ),
    Metric(
        "cached_pct",
        "cached",
        "%",
        None,
        "slots kept only for the prefix cache, share of the pool, averaged over time",
    ),
    Metric("free_pct", "free", "%", None, "free slots, share of the pool, averaged over time"),
    Metric(
        "prefix_hit_rate_pct",
        "prefix hit rate",
        "%",
        True,
        "prompt tokens whose KV came from the cache, share of all prompt tokens",
    ),
    Metric(
        "near_miss_rate_pct",
        "prefix near misses",
        "%",
        None,
        "prompt tokens that the pool had, but in a block that goes on otherwise or is unfinished, share of all",
    ),
    Metric(
        "shared_saved_pct",
        "saved by sharing",
        "%",
        True,
        "token slots that sharing saves, share of the slots needed without it, averaged over time",
    ),
    Metric(
        "shared_saved_bytes", "saved by sharing, mean", "bytes", True, "memory that sharing saves, averaged over time"
    ),
    Metric(
        "shared_blocks_pct",
        "shared blocks",
        "%",
        None,
        "blocks that several sequences hold, share of the blocks that any holds, averaged over time",
    ),
    Metric(
        "shared_part_bytes",
        "shared part, mean",
        "bytes",
        None,
        "size of the blocks that several sequences hold, averaged over time",
    ),
    Metric(
        "shared_part_saved_pct",
        "saved of the shared part",
        "%",
        True,
        "what sharing saves of the memory that the shared blocks' tokens would take without it: 1 - 1 / sharers",
    ),
    Metric("mean_sharers", "mean sharers", "", None, "sequences that hold a shared block, on average over time"),
    Metric(
        "preemptions",
        "preemptions",
        "",
        False,
        "times a running request lost its KV because the pool was full",
    ),
    Metric("recomputed_tokens", "recomputed tokens", "", False, "tokens computed once more after a preemption"),
    Metric("forks", "forks", "", None, "sequences that began as a copy of another, sharing all its blocks"),
    Metric("copied_blocks", "copied blocks", "", None, "blocks copied on write"),
    Metric("copied_bytes", "copied on write", "bytes", None, "size of the blocks copied on write"),
    Metric("swapped_blocks", "swapped blocks", "", None, "blocks copied to host memory because the pool was full"),
    Metric("moved_slots", "moved slots", "", None, "token slots moved because a contiguous extent had to grow"),
    Metric("evicted_blocks", "evicted blocks", "", None, "cached blocks given up for new data"),
    Metric(
        "peak_device_used_bytes",
        "peak GPU memory (NVML)",
        "bytes",
        False,
        "largest memory in use on the GPU, by all processes",
    ),
    Metric(
        "peak_torch_reserved_bytes",
        "peak torch reserved",
        "bytes",
        False,
        "largest memory held by torch's allocator",
    ),
    Metric("peak_torch_allocated_bytes", "peak torch allocated", "bytes", False, "largest memory in tensors"),
    Metric(
        "peak_process_rss_bytes",
        "peak process memory",
        "bytes",
        False,
        "largest resident memory of the worker process",
    ),
    Metric(
        "peak_torch_inactive_bytes",
        "peak torch inactive",
        "bytes",
        False,
        "largest memory in free pieces of blocks that torch's allocator has split",
    ),
    Metric(
        "peak_device_process_bytes",
        "peak GPU memory of the process (NVML)",
        "bytes",
        False,
        "largest memory in use on the GPU by the worker process, where the driver tells",
    ),
    Metric(
        "peak_host_used_bytes", "peak host memory", "bytes", None, "largest memory in use on the host, by all processes"
    ),
    Metric("mean_process_cpu_pct", "CPU of the worker", "%", None, "share of one core, averaged over the samples"),
    Metric("energy_j", "energy", "J", False, "GPU energy from the first sample to the last"),
    Metric("joules_per_output_token", "energy per output token", "J", False, "GPU energy over generated tokens"),
    Metric("num_steps", "steps", "", None, "engine steps"),
    Metric("num_prompt_tokens", "prompt tokens", "", None, "tokens of the prompts of requests that gave out a token"),
    Metric("num_output_tokens", "output tokens", "", None, "generated tokens"),
    Metric("num_finished", "finished requests", "", None, "requests that ran to their end"),
)
