"""The shapes on which kernels are timed: decode from 1 x 8192 to 256 x 4096, ragged, prefill, both, shared prefixes.

The heads are those of an 8-billion model of the Llama family; the products of decode steps are those of a small model
too. On the CPU everything is scaled down to what takes milliseconds.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pbench.engine.model_config import PRESETS, ModelConfig

PRODUCT = "few-row product"
GATED = "few-row gated product"
ADDED = "few-row product + add + rms norm"
PROJECTED = "few-row product + rotary + write kv"
INVARIANT = "invariant product"
INVARIANT_ATTENTION = "invariant attention"
RAGGED_SIGMA = 0.9
RAGGED_LONGEST = 32768


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of one layer."""

    num_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128

    @property
    def kv_numel(self) -> int:
        """K and V elements of one token."""
        return 2 * self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """A batch of sequences that one attention kernel serves in one call."""

    kernel: str  # "decode", "ragged", "prefill", "mixed", "shared", "window" or "soft cap"
    name: str
    context_lens: tuple[int, ...]  # tokens, those of the call included
    is_prefill: bool = False  # every token of the context is a query; else the last one is
    num_shared_tokens: int = 0  # at the start of every context, in the same blocks
    window: int | None = None  # tokens that a query sees at most
    soft_cap: float | None = None
    num_decodes: int = 0  # where prompts follow them: so many sequences have one query
    prompt_lens: tuple[int, ...] = ()  # the queries of each prompt, the last tokens of its context

    @property
    def query_lens(self) -> tuple[int, ...]:
        """Query tokens of each sequence."""
        if self.prompt_lens:
            return (*(1,) * self.num_decodes, *self.prompt_lens)
        return self.context_lens if self.is_prefill else (1,) * len(self.context_lens)

    @property
    def num_queries(self) -> int:
        """Query tokens of all sequences."""
        return sum(self.query_lens)

    def flops(self, heads: Heads) -> int:
        """Of scores and weighted sums; a causal prefill counts half its square."""
        pairs = 0
        for length, count in zip(self.context_lens, self.query_lens, strict=True):
            seen = length if self.window is None else min(length, self.window)
            rising = min(count, seen)  # so many queries see one token more than the one before them
            pairs += count * seen - rising * rising // 2
        return 4 * heads.num_heads * heads.head_dim * pairs

    def num_bytes(self, heads: Heads, element_bytes: int, kv_element_bytes: int) -> int:
        """The least that must move: every token's KV once, a shared one's once for all, queries and results.

        What no query sees is not counted.
        """
        seen = self.context_lens
        if self.window is not None and not self.is_prefill:
            seen = tuple(min(length, self.window) for length in seen)
        own = sum(length - self.num_shared_tokens for length in seen)
        num_rows = 2 * self.num_queries * heads.num_heads * heads.head_dim
        return (own + self.num_shared_tokens) * heads.kv_numel * kv_element_bytes + num_rows * element_bytes


@dataclass(frozen=True, slots=True)
class ProductShape:
    """The rows of a decode step times one weight of a layer, and what follows it."""

    kernel: str  # PRODUCT, INVARIANT; GATED: silu(gate) * up; ADDED: to the residual stream, whose norm is next
    name: str
    num_rows: int
    num_columns: int  # of the product: gate and up together
    depth: int

    @property
    def flops(self) -> int:
        """Of the product."""
        return 2 * self.num_rows * self.num_columns * self.depth

    def num_bytes(self, element_bytes: int) -> int:
        """The least that must move: weight, rows and results; of a sum the residual before and after, and its norm."""
        columns = self.num_columns
        row_numel = {PRODUCT: columns, INVARIANT: columns, GATED: columns // 2, ADDED: 3 * columns}[self.kernel]
        return (columns * self.depth + self.num_rows * (self.depth + row_numel)) * element_bytes


@dataclass(frozen=True, slots=True)
class BenchSize:
    """How large the bench is."""

    heads: Heads
    length_divisor: int  # of every length
    max_batch: int
    num_copied_blocks: int
    num_row_tokens: tuple[int, ...]  # batches of the kernels that treat every token apart
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_choices: tuple[int, ...]  # batches of token choices
    models: tuple[ModelConfig, ...]  # whose products are timed; the vocabulary of "most likely" is the first one's
    projected_models: tuple[ModelConfig, ...]  # that engines project and write K and V of in one launch
    num_product_rows: tuple[int, ...]
    num_uploaded: int  # numbers that a step takes from the host
    num_most_likely: tuple[int, ...]  # rows of which the most likely token is chosen


GPU_SIZE = BenchSize(
    Heads(),
    length_divisor=1,
    max_batch=1 << 30,
    num_copied_blocks=1024,
    num_row_tokens=(256, 8192),
    hidden_size=4096,
    intermediate_size=14336,
    vocab_size=128256,
    num_choices=(1, 32, 256),
    models=(PRESETS["qwen3-0.6b"], PRESETS["llama-8b"]),
    projected_models=(PRESETS["qwen3-0.6b"], PRESETS["llama-1b"]),
    num_product_rows=(8, 64, 176),
    num_uploaded=1536,
    num_most_likely=(8, 64, 176, 256),
)
CPU_SIZE = BenchSize(
    Heads(4, 2, 32),
    length_divisor=32,
    max_batch=4,
    num_copied_blocks=32,
    num_row_tokens=(16, 64),
    hidden_size=128,
    intermediate_size=256,
    vocab_size=1000,
    num_choices=(4,),
    models=(PRESETS["tiny"],),
    projected_models=(PRESETS["tiny"],),
    num_product_rows=(8,),
    num_uploaded=32,
    num_most_likely=(8,),
)

_UNIFORM = (
    (1, 8192),
    (8, 2048),
    (8, 32768),
    (32, 1024),
    (64, 512),
    (64, 4096),
    (128, 2048),
    (256, 512),
    (256, 1024),
    (256, 4096),
)
_RAGGED = ((256, 512), (128, 1024), (64, 2048), (32, 4096), (16, 8192))  # batch, mean
_PREFILL = ((1, 2048), (4, 2048), (1, 8192), (1, 32768))
# Prompts, new tokens of each, their cached prefix; decodes, context of each.
_MIXED = ((1, 2048, 0, 128, 1024), (1, 512, 0, 255, 1024), (4, 1984, 0, 256, 1024), (8, 256, 1024, 64, 4096))
_SHARED = ((256, 8192, 256), (256, 1024, 256), (64, 1024, 256), (32, 4096, 512))  # batch, shared, own
_WINDOWED = ((8, 32768, 4096, False), (64, 4096, 1024, False), (1, 32768, 4096, True))  # batch, length, window, prefill
_CAPPED = ((64, 4096, False), (1, 8192, True))  # batch, length, prefill
_CAP = 50.0  # Gemma 2's
_INVARIANT = ((64, 4096, False), (1, 2048, True))  # batch, length, prefill
_TUNED = {
    "decode": ("1 x 8192", "8 x 2048", "32 x 1024", "256 x 512", "64 x 4096", "256 of mean 512", "32 of mean 4096"),
    "prefill": ("1 x 2048", "4 x 2048", "1 x 8192"),
    "shared": ("256 x (8192 + 256)", "64 x (1024 + 256)", "32 x (4096 + 512)"),
}
_TAXED = ((64, 4096), (256, 1024), (8, 32768), (64, 512))


def attention_shapes(size: BenchSize, seed: int) -> Iterator[AttentionShape]:
    """All shapes of all attention kernels."""
    for batch, length in _UNIFORM:
        yield _uniform("decode", batch, length, size)
    for full_batch, mean in _RAGGED:
        batch, divisor = min(full_batch, size.max_batch), size.length_divisor
        lens = tuple(max(length // divisor, 1) for length in ragged_lens(batch, mean, seed))
        yield AttentionShape("ragged", f"{batch} of mean {mean // divisor}", lens)
    for batch, length in _PREFILL:
        yield replace(_uniform("prefill", batch, length, size), is_prefill=True)
    for mixed in _MIXED:
        yield _mixed(*mixed, size)
    for full_batch, *parts in _SHARED:
        batch, (shared, own) = min(full_batch, size.max_batch), (part // size.length_divisor for part in parts)
        lens = (shared + own,) * batch
        yield AttentionShape("shared", f"{batch} x ({shared} + {own})", lens, num_shared_tokens=shared)
    for batch, length, full_window, is_prefill in _WINDOWED:
        shape, window = _uniform("window", batch, length, size), full_window // size.length_divisor
        name = f"{_kind(is_prefill)} {shape.name} within {window}"
        yield replace(shape, name=name, is_prefill=is_prefill, window=window)
    for batch, length, is_prefill in _CAPPED:
        shape = _uniform("soft cap", batch, length, size)
        yield replace(shape, name=f"{_kind(is_prefill)} {shape.name}", is_prefill=is_prefill, soft_cap=_CAP)


def invariant_attention_shapes(size: BenchSize) -> Iterator[AttentionShape]:
    """What is attended to with the same bits whatever else is."""
    for batch, length, is_prefill in _INVARIANT:
        shape = _uniform(INVARIANT_ATTENTION, batch, length, size)
        yield replace(shape, name=f"{_kind(is_prefill)} {shape.name}", is_prefill=is_prefill)


def taxed_shapes(size: BenchSize) -> Iterator[AttentionShape]:
    """Decode shapes on which block tables are compared with contiguous extents."""
    for batch, length in _TAXED:
        yield _uniform("decode", batch, length, size)


def tuning_shapes(kernel: str, size: BenchSize, seed: int) -> Iterator[AttentionShape]:
    """The shapes that decide which tiling of "decode" (ragged batches too), "prefill" or "shared" is fastest."""
    kernels = ("decode", "ragged") if kernel == "decode" else (kernel,)
    for shape in attention_shapes(size, seed):
        if shape.kernel in kernels and shape.name in _TUNED[kernel]:
            yield shape


def product_shapes(size: BenchSize) -> Iterator[ProductShape]:
    """The four products of a layer of each model, with every number of rows."""
    for config in size.models:
        hidden, wide = config.hidden_size, config.intermediate_size
        layer = (
            (PRODUCT, "qkv", config.query_size + 2 * config.kv_size, hidden),
            (ADDED, "o", hidden, config.query_size),
            (GATED, "gate_up", 2 * wide, hidden),
            (ADDED, "down", hidden, wide),
        )
        for num_rows in size.num_product_rows:
            for kernel, weight, num_columns, depth in layer:
                yield ProductShape(kernel, f"{config.name} {weight}, {num_rows} rows", num_rows, num_columns, depth)


def invariant_product_shapes(size: BenchSize) -> Iterator[ProductShape]:
    """The first product of a layer of each model, multiplied with the same bits whatever else is."""
    for shape in product_shapes(size):
        if shape.kernel == PRODUCT:
            yield replace(shape, kernel=INVARIANT)


def ragged_lens(batch: int, mean: int, seed: int) -> tuple[int, ...]:
    """Lognormal lengths of that mean before they are clipped, the same for the same seed."""
    generator = random.Random(f"{seed} {batch} {mean}")
    mu = math.log(mean) - RAGGED_SIGMA**2 / 2
    drawn = (round(generator.lognormvariate(mu, RAGGED_SIGMA)) for _ in range(batch))
    return tuple(min(max(length, 1), RAGGED_LONGEST) for length in drawn)


def _mixed(num_prompts: int, new: int, prefix: int, num_decodes: int, length: int, size: BenchSize) -> AttentionShape:
    num_prompts, num_decodes = min(num_prompts, size.max_batch), min(num_decodes, size.max_batch)
    new, prefix, length = (part // size.length_divisor for part in (new, prefix, length))
    return AttentionShape(
        "mixed",
        f"{num_prompts} x {new}{f' over {prefix}' if prefix else ''} + {num_decodes} x {length}",
        (length,) * num_decodes + (prefix + new,) * num_prompts,
        num_decodes=num_decodes,
        prompt_lens=(new,) * num_prompts,
    )


def _kind(is_prefill: bool) -> str:
    return "prefill" if is_prefill else "decode"


def _uniform(kernel: str, batch: int, length: int, size: BenchSize) -> AttentionShape:
    batch, length = min(batch, size.max_batch), length // size.length_divisor
    return AttentionShape(kernel, f"{batch} x {length}", (length,) * batch)
