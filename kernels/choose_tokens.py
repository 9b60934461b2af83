"""Choosing a token from each row of logits: greedily, or at random among the tokens that filters keep.

The steps and their order are those of transformers' logits processors, on a row x of float32 logits::

    x = x * penalty where x < 0, x / penalty elsewhere, for tokens seen before    (Keskar et al., "CTRL", 2019)
    z = x / temperature
    top-k   keep tokens with z >= the k-th largest
    top-p   keep tokens above which less than p of the remaining probability lies (Holtzman et al., ICLR 2020)
    min-p   keep tokens with a probability of at least min_p times the largest    (Nguyen et al., 2024)

Tokens of equal logits are kept or dropped together. The choice is the Gumbel-max trick's (Gumbel 1954; Maddison et
al., "A* Sampling", NeurIPS 2014): argmax of z + g over the kept tokens, where g = -log(-log u) and u is the SplitMix64
(Steele et al., OOPSLA 2014) of (key, token) alone. So what else is in the batch changes nothing.

The kernel sorts nothing. The k-th largest logit is found by a search over the float32s' ordered bits, eight pivots a
pass. Top-p needs no threshold: every set of kept tokens holds all tokens above any of its own, so if the argmax over a
superset is kept, it is the argmax over the kept tokens, and if it is not, nothing at or below it is kept. So the
kernel chooses, asks what probability lies above the choice, and repeats above it until the choice is kept (the
rejection sampling of Ye et al., "FlashInfer", MLSys 2025, with noise that stays the same from round to round, which
makes it exact). The first round is the last with a probability of about p; a round halves what is left.

Noise is computed in float64 as the reference does, but only for tiles in which float32 says that the best may lie.
"""

import torch

from pbench.kernels.compiler import jit, tl
from pbench.kernels.launch import FLOAT_DTYPES, check_contiguous, check_dtype, check_rows, check_shape, runs_on_triton

# What ``rules`` holds for each row of logits.
INVERSE_TEMPERATURE = 0  # 0: greedy, which needs no filters
TOP_K = 1  # 0: all
TOP_P = 2
LOG_MIN_P = 3  # -inf: all
PENALTY = 4  # 1: none
SEEN_ROW = 5  # of ``seen``; negative: none
NUM_RULES = 6

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_FIRST_FACTOR, _SECOND_FACTOR = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@jit()
def _load_logits(
    row_ptr: tl.pointer_type,
    seen_ptr: tl.pointer_type,
    columns: tl.tensor,
    penalty: tl.tensor,
    is_penalised: tl.tensor,
    VOCAB_SIZE: tl.constexpr,
    HAS_SEEN: tl.constexpr,
) -> tl.tensor:
    """A tile of penalised float32 logits; -inf behind the vocabulary, and no negative zero."""
    mask = columns < VOCAB_SIZE
    x = tl.load(row_ptr + columns, mask=mask, other=float("-inf")).to(tl.float32)
    if HAS_SEEN:
        is_seen = tl.load(seen_ptr + columns, mask=mask & is_penalised, other=0) != 0
        x = tl.where(is_seen, tl.where(x < 0, x * penalty, tl.div_rn(x, penalty)), x)
    return x + 0.0


@jit()
def _ordered(x: tl.tensor) -> tl.tensor:
    """Int32s in the order of the float32s ``x``."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@jit()
def _random_bits(key: tl.tensor, columns: tl.tensor) -> tl.tensor:
    """53 random bits for each column."""
    x = (key + columns.to(tl.int64) * -7046029254386353131).to(tl.uint64, bitcast=True)  # the golden gamma, signed
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    x = x ^ (x >> 31)
    return (x >> 11).to(tl.int64)


@jit()
def _rough_noise(bits: tl.tensor) -> tl.tensor:
    """Gumbel noise in float32, within 1e-4: where u is close to 1, log u is taken from 1 - u."""
    u = (bits.to(tl.float32) + 0.5) * 1.1102230246251565e-16
    v = ((9007199254740991 - bits).to(tl.float32) + 0.5) * 1.1102230246251565e-16
    series = v * (1.0 + v * (0.5 + v * 0.3333333))
    exponential = tl.where(v < 0.01, series, -tl.log(tl.where(v < 0.5, 1.0 - v, u)))
    return -tl.log(exponential)


@jit(
    do_not_specialize=("row_stride", "seen_stride"),
    do_not_specialize_on_alignment=("logits_ptr", "seen_ptr", "rules_ptr", "keys_ptr", "tokens_ptr"),
)
def _choose_tokens_kernel(
    logits_ptr: tl.pointer_type,  # (num_rows, VOCAB_SIZE)
    keys_ptr: tl.pointer_type,  # (num_rows,) int64
    rules_ptr: tl.pointer_type,  # (NUM_RULES, num_rows) float64
    seen_ptr: tl.pointer_type,  # (num_seen_rows, VOCAB_SIZE) uint8
    tokens_ptr: tl.pointer_type,  # (num_rows,) int64
    row_stride: tl.tensor,
    seen_stride: tl.tensor,
    VOCAB_SIZE: tl.constexpr,
    HAS_SEEN: tl.constexpr,
    TILE: tl.constexpr,
    NUM_PIVOTS: tl.constexpr,
) -> None:
    """Grid: (rows,)."""
    row, num_rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    inverse_temperature = tl.load(rules_ptr + row)
    top_k = tl.load(rules_ptr + num_rows + row).to(tl.int32)
    top_p = tl.load(rules_ptr + 2 * num_rows + row)
    log_min_p = tl.load(rules_ptr + 3 * num_rows + row)
    penalty = tl.load(rules_ptr + 4 * num_rows + row).to(tl.float32)
    seen_row = tl.load(rules_ptr + 5 * num_rows + row).to(tl.int64)
    is_penalised = seen_row >= 0
    row_ptr = logits_ptr + row * row_stride
    row_seen_ptr = seen_ptr + tl.maximum(seen_row, 0) * seen_stride
    lanes = tl.arange(0, TILE)

    # The largest logit and the first token that has it.
    largest = tl.full((TILE,), float("-inf"), tl.float32)
    smallest = tl.full((TILE,), float("inf"), tl.float32)
    largest_column = lanes
    for start in range(0, VOCAB_SIZE, TILE):
        columns = start + lanes
        x = _load_logits(row_ptr, row_seen_ptr, columns, penalty, is_penalised, VOCAB_SIZE, HAS_SEEN)
        largest_column = tl.where(x > largest, columns, largest_column)
        largest = tl.maximum(largest, x)
        smallest = tl.minimum(smallest, tl.where(columns < VOCAB_SIZE, x, float("inf")))
    x_max = tl.max(largest, 0)
    token = tl.min(tl.where(largest == x_max, largest_column, VOCAB_SIZE - 1), 0)

    if inverse_temperature > 0:
        z_max = x_max.to(tl.float64) * inverse_temperature
        # Ordered bits that a kept token has at least: the k-th largest's, where k are asked for. At least k tokens
        # have ``floor``, and fewer have ``ceiling`` + 1.
        floor = _ordered(tl.min(smallest, 0)).to(tl.int64)
        if (top_k > 0) & (top_k < VOCAB_SIZE):
            ceiling = _ordered(x_max).to(tl.int64)
            while floor < ceiling:
                steps = tl.arange(1, NUM_PIVOTS + 1).to(tl.int64)
                pivots = floor + ((ceiling - floor) * steps + NUM_PIVOTS - 1) // NUM_PIVOTS
                counts = tl.zeros((TILE, NUM_PIVOTS), tl.int32)
                for start in range(0, VOCAB_SIZE, TILE):
                    columns = start + lanes
                    x = _load_logits(row_ptr, row_seen_ptr, columns, penalty, is_penalised, VOCAB_SIZE, HAS_SEEN)
                    is_above = _ordered(x)[:, None] >= pivots.to(tl.int32)[None, :]
                    counts += (is_above & (columns < VOCAB_SIZE)[:, None]).to(tl.int32)
                has_enough = tl.sum(counts, 0) >= top_k
                floor = tl.max(tl.where(has_enough, pivots, floor), 0)
                ceiling = tl.min(tl.where(has_enough, ceiling, pivots - 1), 0)

        # The probability that top-k leaves, in units of the largest token's.
        total = tl.zeros((TILE,), tl.float32)
        if top_p < 1:
            for start in range(0, VOCAB_SIZE, TILE):
                columns = start + lanes
                x = _load_logits(row_ptr, row_seen_ptr, columns, penalty, is_penalised, VOCAB_SIZE, HAS_SEEN)
                share = tl.exp((x.to(tl.float64) * inverse_temperature - z_max).to(tl.float32))
                total += tl.where((_ordered(x) >= floor.to(tl.int32)) & (columns < VOCAB_SIZE), share, 0.0)
        allowed = top_p * tl.sum(total, 0).to(tl.float64)

        key = tl.load(keys_ptr + row)
        is_kept = False
        while not is_kept:
            best = tl.full((), float("-inf"), tl.float64)
            best_x = x_max
            for start in range(0, VOCAB_SIZE, TILE):
                columns = start + lanes
                x = _load_logits(row_ptr, row_seen_ptr, columns, penalty, is_penalised, VOCAB_SIZE, HAS_SEEN)
                z = x.to(tl.float64) * inverse_temperature
                can_win = (_ordered(x) >= floor.to(tl.int32)) & (z - z_max >= log_min_p) & (columns < VOCAB_SIZE)
                bits = _random_bits(key, columns)
                rough = tl.where(can_win, z + _rough_noise(bits).to(tl.float64), float("-inf"))
                if tl.max(rough, 0) >= best - 1e-3:
                    uniform = (bits.to(tl.float64) + 0.5) * 1.1102230246251565e-16
                    exact = tl.where(can_win, z - tl.log(-tl.log(uniform)), float("-inf"))
                    tile_best = tl.max(exact, 0)
                    if tile_best > best:
                        column = tl.min(tl.where(exact == tile_best, columns, VOCAB_SIZE - 1), 0)
                        best_x = tl.max(tl.where(columns == column, x, float("-inf")), 0)
                        best, token = tile_best, column
            # What lies above the choice. If nothing does, it is kept whatever p is.
            is_kept = True
            if (top_p < 1) & (best_x < x_max):
                above = tl.zeros((TILE,), tl.float32)
                for start in range(0, VOCAB_SIZE, TILE):
                    columns = start + lanes
                    x = _load_logits(row_ptr, row_seen_ptr, columns, penalty, is_penalised, VOCAB_SIZE, HAS_SEEN)
                    share = tl.exp((x.to(tl.float64) * inverse_temperature - z_max).to(tl.float32))
                    above += tl.where((x > best_x) & (columns < VOCAB_SIZE), share, 0.0)
                is_kept = tl.sum(above, 0).to(tl.float64) < allowed
                floor = _ordered(best_x).to(tl.int64) + 1

    tl.store(tokens_ptr + row, token.to(tl.int64))
    if HAS_SEEN:
        tl.store(row_seen_ptr + token, 1, mask=is_penalised)


def choose_tokens(
    logits: torch.Tensor, keys: torch.Tensor, rules: torch.Tensor, seen: torch.Tensor | None = None
) -> torch.Tensor:
    """Choose a token from every row of ``logits``, by the row's rules.

    Args:
        logits: ``(num_rows, vocab_size)``, float32, bfloat16 or float16; rows may lie apart. No NaN; a row of nothing
            but -inf gives token 0.
        keys: ``(num_rows,)`` int64, of the noise; see ``noise_keys``.
        rules: ``(NUM_RULES, num_rows)`` float64, what the constants of this file name.
        seen: ``(num_seen_rows, vocab_size)`` uint8, not 0 for tokens that the penalty meets; None: no row has one.
            Every row's choice is marked in its row, which belongs to one row of logits alone.

    Returns:
        ``(num_rows,)`` int64.

    Raises:
        ValueError: a shape, dtype or stride that does not fit, naming the argument.
    """
    if logits.dim() != 2 or logits.shape[1] < 1:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; expected (num_rows, vocab_size)")
    num_rows, vocab_size = logits.shape
    check_dtype("logits", logits, *FLOAT_DTYPES)
    check_rows("logits", logits)
    check_shape("keys", keys, (num_rows,))
    check_dtype("keys", keys, torch.int64)
    check_contiguous("keys", keys)
    check_shape("rules", rules, (NUM_RULES, num_rows))
    check_dtype("rules", rules, torch.float64)
    check_contiguous("rules", rules)
    if seen is not None:
        check_shape("seen", seen, (seen.shape[0], vocab_size))
        check_dtype("seen", seen, torch.uint8)
        check_contiguous("seen", seen)
    launch = choose_tokens_triton if runs_on_triton(logits) else choose_tokens_reference
    return launch(logits, keys, rules, seen)


def choose_tokens_triton(
    logits: torch.Tensor, keys: torch.Tensor, rules: torch.Tensor, seen: torch.Tensor | None = None
) -> torch.Tensor:
    """Launch the kernel on checked arguments (see ``choose_tokens``)."""
    num_rows, vocab_size = logits.shape
    out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows:
        _choose_tokens_kernel[(num_rows,)](
            logits,
            keys,
            rules,
            keys if seen is None else seen,
            out,
            logits.stride(0),
            vocab_size,
            VOCAB_SIZE=vocab_size,
            HAS_SEEN=seen is not None,
            TILE=4096 if vocab_size > 4096 else 512,
            NUM_PIVOTS=8,
            num_warps=16 if vocab_size > 4096 else 4,
        )
    return out


def choose_tokens_reference(
    logits: torch.Tensor, keys: torch.Tensor, rules: torch.Tensor, seen: torch.Tensor | None = None
) -> torch.Tensor:
    """``choose_tokens`` in plain torch."""
    x = penalised_logits(logits, rules, seen)
    tokens = x.argmax(dim=-1)
    rows = (rules[INVERSE_TEMPERATURE] > 0).nonzero().flatten()
    if len(rows):
        z = x[rows].double() * rules[INVERSE_TEMPERATURE, rows, None]
        z = z.masked_fill(~kept_tokens(z, rules[:, rows]), -torch.inf)
        tokens[rows] = (z + gumbel_noise(keys[rows], logits.shape[1])).argmax(dim=-1)
    if seen is not None:
        is_penalised = rules[SEEN_ROW] >= 0
        seen[rules[SEEN_ROW, is_penalised].long(), tokens[is_penalised]] = 1
    return tokens


def penalised_logits(logits: torch.Tensor, rules: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
    """The float32 logits after the repetition penalty."""
    x = logits.float()
    if seen is None:
        return x
    is_penalised = rules[SEEN_ROW] >= 0
    is_seen = (seen[rules[SEEN_ROW].long().clamp(min=0)] != 0) & is_penalised[:, None]
    penalty = rules[PENALTY, :, None].float()
    return torch.where(is_seen, torch.where(x < 0, x * penalty, x / penalty), x)


def kept_tokens(z: torch.Tensor, rules: torch.Tensor) -> torch.Tensor:
    """Which tokens the filters keep: ``z``, float64 logits over the temperature, to bools of its shape."""
    vocab_size = z.shape[1]
    ordered = z.sort(dim=-1, descending=True).values
    top_k = torch.where(rules[TOP_K] > 0, rules[TOP_K], vocab_size).long().clamp(max=vocab_size)
    kept = z >= ordered.gather(1, top_k[:, None] - 1)
    ordered = ordered.masked_fill(ordered < ordered.gather(1, top_k[:, None] - 1), -torch.inf)
    # What lies strictly above a token: where equals stand together, above the first of them.
    cumulative = torch.nn.functional.pad(ordered.softmax(dim=-1).cumsum(dim=-1), (1, 0))
    above = cumulative.gather(1, torch.searchsorted(-ordered, -z))
    is_most_likely = z == z.amax(dim=-1, keepdim=True)
    top_p = rules[TOP_P, :, None]
    kept &= (above < top_p) | is_most_likely | (top_p == 1)
    return kept & (z - z.amax(dim=-1, keepdim=True) >= rules[LOG_MIN_P, :, None])


def gumbel_noise(keys: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """The noise of each row's tokens: (num_rows, vocab_size) float64."""
    bits = _mix(keys[:, None] + torch.arange(vocab_size, device=keys.device) * _signed(_GOLDEN_GAMMA))
    uniform = _shift_right(bits, 11).double().add_(0.5).mul_(2.0**-53)
    return uniform.log_().neg_().log_().neg_()


def noise_keys(seeds: list[int], positions: list[int]) -> torch.Tensor:
    """What the noise of rows depends on: int64 keys, far apart for all (seed, position); 32 bits of a seed count."""
    packed = torch.tensor([seed & 0xFFFFFFFF for seed in seeds], dtype=torch.int64) << 32
    return _mix((packed ^ torch.tensor(positions, dtype=torch.int64)) + _signed(_GOLDEN_GAMMA))


def _mix(x: torch.Tensor) -> torch.Tensor:
    """The finaliser of SplitMix64 on int64, wrapping."""
    x = (x ^ _shift_right(x, 30)) * _signed(_FIRST_FACTOR)
    x = (x ^ _shift_right(x, 27)) * _signed(_SECOND_FACTOR)
    return x ^ _shift_right(x, 31)


def _shift_right(x: torch.Tensor, num_bits: int) -> torch.Tensor:
    """Logical shift: torch's >> on int64 keeps the sign."""
    return (x >> num_bits) & ((1 << (64 - num_bits)) - 1)


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x
