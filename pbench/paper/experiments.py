"""The memory experiments of the PagedAttention paper, measured again with this engine's scheduler and memories.

Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention", SOSP 2023. The setting
is the paper's: OPT-13B's KV in two-byte numbers, 15 728 slots, sequences of at most 2048 tokens, an A100 with 40 GB,
lengths drawn with the means of its datasets. No model runs: a step takes the time of a roofline.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from pbench.engine.config import EngineConfig
from pbench.engine.engine import make_memory
from pbench.engine.hardware import find_hardware
from pbench.engine.memory import KVMemory
from pbench.engine.model_config import load_model_config
from pbench.engine.request import Request, SamplingParams
from pbench.engine.roofline import Speed
from pbench.paper.orca import orca_memory
from pbench.paper.saturation import Saturation, saturate
from pbench.reports.paper import FIGURE_2, PaperBar
from pbench.workloads.catalogue import load_workload
from pbench.workloads.tokens import prompt_token_ids
from pbench.workloads.workload import Workload

Decoding: TypeAlias = Literal["sampling", "beams"]

ORCA_POW2, ORCA_ORACLE = "Orca (Pow2)", "Orca (Oracle)"

MODEL = "opt-13b"
GPU = "a100-40gb"
NUM_SLOTS = 15_728
MAX_LENGTH = 2048
MEAN_LENGTHS = {"sharegpt": (161.31, 337.99), "alpaca": (19.31, 58.45)}  # prompt, output tokens

# Lengths are clipped, and requests longer than MAX_LENGTH dropped: ShareGPT is drawn with larger means, so that what is
# left has the dataset's.
_PARAMETERS: Mapping[str, dict[str, str]] = {
    "sharegpt": {"input_mean": "167", "output_mean": "358", "input_clip": "1536", "output_clip": "1536"},
    "alpaca": {},
}

# Requests that run together on ShareGPT, in the order of the rows of figure 2 (section 6.2).
_MEAN_RUNNING = (7.00, 9.81, 13.62, 30.42)

# Memory that sharing saves in parallel sampling, in % of the blocks needed without it: 2 to 6 samples (section 6.3).
SAMPLING_SAVED_PCT = {"alpaca": (6.1, 9.8), "sharegpt": (16.2, 30.5)}
# The same in beam search, widths 2 to 6 (section 6.3).
BEAM_SAVED_PCT = {"alpaca": (37.6, 55.2), "sharegpt": (44.3, 66.3)}
NUM_SAMPLES = (2, 4, 6)

# What the bars of figure 2 are here, and how they differ from the paper's.
BAR_NOTES = {
    "contiguous:max": "as the paper's Orca (Max)",
    "contiguous:pow2": (
        "does not know the output: an extent starts at the power of two above the known tokens and is doubled, by"
        " moving it where it must; so it holds less than the paper's and pays with moves and preemptions"
    ),
    "contiguous:oracle": "the paper's rule, but first fit, which rounds nothing up, where the paper's has buddies",
    "paged": "as the paper's vLLM, blocks of 16",
    ORCA_POW2: "the paper's rule and layout: prompt and power of two above the true output, at admission, buddies",
    ORCA_ORACLE: "the paper's rule and layout: what buddies round up counts as external there and here",
}


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of figure 2: a memory of this engine, or Orca as the paper lays it out, beside the paper's figures."""

    label: str
    measured: Saturation
    published: Mapping[str, float]  # % of the pool by part of KVUsage; "external" with what was never allocated
    published_mean_running: float


@dataclass(frozen=True, slots=True)
class SharingSaving:
    """What sharing among the samples, or the beams, of a request saves."""

    dataset: str
    num_sequences: int
    measured: Saturation
    published_range_pct: tuple[float, float]  # over 2 to 6 sequences


def figure_2(num_requests: int, seed: int) -> Iterator[Bar]:
    """Measure the four memories of figure 2, then the paper's Orca where its rule or its layout is another.

    Raises:
        UsageError: ``num_requests`` are too few to fill the pool.

    """
    workload = lengths("sharegpt", num_requests, seed)
    specs = ("contiguous:max", "contiguous:pow2", "contiguous:oracle", "paged")
    rows = list(zip(FIGURE_2, _MEAN_RUNNING, strict=True))
    for spec, (published, mean_running) in zip(specs, rows, strict=True):
        config = engine_config(spec)
        yield _bar(spec, make_memory(config), config, workload, published, mean_running)
    for label, rule, (published, mean_running) in ((ORCA_POW2, "pow2", rows[1]), (ORCA_ORACLE, "oracle", rows[2])):
        memory = orca_memory(rule, NUM_SLOTS, MAX_LENGTH)
        config = engine_config("contiguous:oracle")
        yield _bar(label, memory, config, workload, published, mean_running)


def sharing_savings(
    decoding: Decoding, num_requests: int, seed: int, datasets: Sequence[str] = tuple(SAMPLING_SAVED_PCT)
) -> Iterator[SharingSaving]:
    """Measure what parallel sampling, or beam search, saves on the lengths of each dataset.

    Which beams live on is decided as in ``pbench.engine.simulation``: no model says it.

    Raises:
        UsageError: ``num_requests`` are too few to fill the pool.

    """
    for dataset in datasets:
        workload = lengths(dataset, num_requests, seed)
        for num_samples in NUM_SAMPLES:
            config = engine_config("paged")
            measured = saturate(make_memory(config), config, _requests(workload, decoding, num_samples), _speed())
            published = SAMPLING_SAVED_PCT if decoding == "sampling" else BEAM_SAVED_PCT
            yield SharingSaving(dataset, num_samples, measured, published[dataset])


def lengths(dataset: str, num_requests: int, seed: int) -> Workload:
    """The requests of a dataset of MEAN_LENGTHS."""
    overrides = _PARAMETERS[dataset] | {"num_requests": str(num_requests)}
    return load_workload(f"{dataset}-lengths", seed=seed, max_length=MAX_LENGTH, overrides=overrides)


def engine_config(memory: str) -> EngineConfig:
    """The paper's setting for one memory; nothing but the KV memory limits how many requests run."""
    model = load_model_config(MODEL)
    return EngineConfig(
        model=model,
        memory=memory,
        kv_memory_bytes=NUM_SLOTS * model.kv_bytes_per_token("float16"),
        max_length=MAX_LENGTH,
        max_batch_tokens=MAX_LENGTH,
        max_running=MAX_LENGTH,
        is_prefix_cached=False,
        dtype="float16",
    )


def _bar(
    label: str,
    memory: KVMemory,
    config: EngineConfig,
    workload: Workload,
    published: PaperBar,
    published_mean_running: float,
) -> Bar:
    measured = saturate(memory, config, _requests(workload, "sampling", 1), _speed())
    return Bar(label, measured, published.percent_by_kind, published_mean_running)


def _requests(workload: Workload, decoding: Decoding, num_sequences: int) -> Iterator[Request]:
    vocab_size = load_model_config(MODEL).vocab_size
    for request in workload.requests:
        tokens = prompt_token_ids(request, vocab_size=vocab_size, seed=workload.seed)
        sampling = SamplingParams(request.output_length, beam_width=num_sequences, ignore_eos=True)
        if decoding == "sampling":
            sampling = replace(sampling, beam_width=1, n=num_sequences, temperature=1.0, seed=workload.seed)
        yield Request(request.request_id, tokens, sampling)


def _speed() -> Speed:
    return Speed.of(find_hardware(GPU), overhead_ns=0)
