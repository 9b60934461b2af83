import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation import LogitsProcessorList, TemperatureLogitsWarper

from pbench.kernels.choose_tokens import (
    NUM_RULES,
    choose_tokens,
    choose_tokens_reference,
    choose_tokens_triton,
    gumbel_noise,
    kept_tokens,
    noise_keys,
    penalised_logits,
)


def make_rules(num_rows, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, penalty=1.0, is_seen=False):
    rules = torch.zeros(NUM_RULES, num_rows, dtype=torch.float64)
    rules[0] = 1 / temperature if temperature else 0.0
    rules[1], rules[2], rules[3], rules[4] = top_k, top_p, math.log(min_p) if min_p else -math.inf, penalty
    rules[5] = torch.arange(num_rows) if is_seen else -1
    return rules


def make_keys(num_rows, seed=0):
    return noise_keys([seed] * num_rows, list(range(num_rows)))


def random_logits(num_rows, vocab_size, spread=3.0):
    generator = torch.Generator().manual_seed(vocab_size)
    return spread * torch.randn(num_rows, vocab_size, generator=generator)


OPTIONS = [
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"temperature": 1.5},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10**6},
    {"top_p": 1e-6},
    {"top_p": 0.3},
    {"top_p": 0.95, "temperature": 2.0},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"penalty": 1.3},
    {"temperature": 0.0, "penalty": 1.3},
    {"temperature": 0.0, "penalty": 0.7},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.02, "penalty": 1.1, "temperature": 0.6},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("num_rows", "vocab_size"), [(1, 1), (4, 2), (3, 97), (2, 513), (1, 4097)])
def test_kernel_chooses_what_the_reference_does(device, options, num_rows, vocab_size):
    logits = random_logits(num_rows, vocab_size)
    generator = torch.Generator().manual_seed(1)
    seen = (torch.rand(num_rows, vocab_size, generator=generator) < 0.3).to(torch.uint8)
    rules = make_rules(num_rows, **options, is_seen="penalty" in options)
    for seed in range(2):
        keys, seen_before = make_keys(num_rows, seed), seen.clone()
        expected = choose_tokens_reference(logits, keys, rules, seen)
        seen_there = seen_before.to(device)
        tokens = choose_tokens_triton(logits.to(device), keys.to(device), rules.to(device), seen_there)
        assert tokens.tolist() == expected.tolist()
        assert torch.equal(seen_there.cpu(), seen), "the choice is marked as seen, and nothing else"


def test_rows_with_rules_of_their_own_do_not_meet(device):
    logits = random_logits(len(OPTIONS), 600)
    columns = [make_rules(1, **options) for options in OPTIONS]
    keys, rules = make_keys(len(OPTIONS)), torch.cat(columns, 1)
    together = choose_tokens_triton(logits.to(device), keys.to(device), rules.to(device))
    apart = [
        choose_tokens_triton(logits[row : row + 1].to(device), keys[row : row + 1].to(device), column.to(device)).item()
        for row, column in enumerate(columns)
    ]
    assert together.tolist() == apart == choose_tokens_reference(logits, keys, rules).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5}, {"top_k": 5, "top_p": 0.5}])
def test_ties_are_kept_together_and_the_first_wins_greedily(device, dtype, options):
    logits = random_logits(8, 700).mul(0.5).round().mul(2).to(dtype)  # a dozen values, so that every limit is a tie
    logits[3] = -0.0
    logits[4, ::2], logits[4, 1::2] = 0.0, -0.0
    keys, rules = make_keys(8), make_rules(8, **options)
    expected = choose_tokens_reference(logits, keys, rules)
    tokens = choose_tokens_triton(logits.to(device), keys.to(device), rules.to(device))
    assert tokens.tolist() == expected.tolist()
    if "temperature" in options:
        assert tokens.tolist() == [row.tolist().index(row.max()) for row in logits]


# Nothing minus nothing: numpy tells, under the interpreter.
@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_tokens_of_probability_zero_are_never_chosen(device, options):
    logits = torch.full((4, 600), -math.inf)
    logits[0, 77] = -3.0
    logits[1, [5, 599]] = torch.tensor([1.0, 1.5])
    logits[2, 100:110] = torch.arange(10.0)
    keys, rules = make_keys(4), make_rules(4, **options)
    tokens = choose_tokens_triton(logits.to(device), keys.to(device), rules.to(device)).tolist()
    assert tokens == choose_tokens_reference(logits, keys, rules).tolist()
    assert tokens[0] == 77
    assert tokens[1] in (5, 599)
    assert tokens[2] in range(100, 110)
    assert tokens[3] == 0, "nothing is likely: the first"


# Nothing minus nothing: numpy tells, under the interpreter.
@pytest.mark.filterwarnings("ignore:invalid value encountered")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    vocab_size=st.integers(1, 1100),
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([0.0, 1e-6, 0.3, 1.0, 50.0]),
    top_k=st.integers(0, 40),
    top_p=st.sampled_from([1e-9, 0.1, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    penalty=st.sampled_from([0.5, 1.0, 3.0]),
    spread=st.sampled_from([0.0, 0.01, 3.0, 1e4]),
    impossible=st.sampled_from([0.0, 0.5, 1.0]),  # share of the tokens
)
def test_kernel_chooses_what_the_reference_does_whatever_comes(
    device, vocab_size, seed, temperature, top_k, top_p, min_p, penalty, spread, impossible
):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(2, vocab_size, generator=generator)
    logits[torch.rand(2, vocab_size, generator=generator) < impossible] = -math.inf
    seen = (torch.rand(2, vocab_size, generator=generator) < 0.5).to(torch.uint8)
    rules = make_rules(2, temperature, top_k, top_p, min_p, penalty, is_seen=penalty != 1)
    keys, seen_there = make_keys(2, seed), seen.clone().to(device)
    expected = choose_tokens_reference(logits, keys, rules, seen)
    tokens = choose_tokens_triton(logits.to(device), keys.to(device), rules.to(device), seen_there)
    assert tokens.tolist() == expected.tolist()
    assert torch.equal(seen_there.cpu(), seen)


def test_rows_of_a_wider_tensor_are_read_in_place(device):
    wide = random_logits(6, 300).to(device)
    view = wide[::2, 40:260]
    keys, rules = make_keys(3).to(device), make_rules(3, top_k=9, top_p=0.9).to(device)
    assert torch.equal(choose_tokens_triton(view, keys, rules), choose_tokens_triton(view.contiguous(), keys, rules))


def test_no_rows_give_no_tokens(device):
    arguments = (torch.zeros(0, 9), make_keys(0), make_rules(0))
    assert choose_tokens_triton(*(argument.to(device) for argument in arguments)).shape == (0,)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab_size", [32000, 128256, 151936])
def test_kernel_chooses_what_the_reference_does_at_the_sizes_of_models(vocab_size, dtype):
    logits = random_logits(len(OPTIONS) * 8, vocab_size).to(dtype)
    keys = make_keys(len(logits))
    rules = torch.cat([make_rules(1, **options) for options in OPTIONS], 1).repeat(1, 8)
    expected = choose_tokens_reference(logits, keys, rules)
    tokens = choose_tokens(logits.cuda(), keys.cuda(), rules.cuda()).cpu()
    # Where the limit of top-p falls between two float32 sums, a choice may differ: for one row in a hundred at most.
    assert (tokens != expected).sum() <= len(logits) // 100


# The reference against transformers


def warped(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, penalty=1.0, history=None):
    """What transformers' processors make of the logits, in the order of ``generate``."""
    processors = LogitsProcessorList()
    if penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(penalty))
    processors.append(TemperatureLogitsWarper(temperature))
    if top_k:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(TopPLogitsWarper(top_p))
    if min_p:
        processors.append(MinPLogitsWarper(min_p))
    return processors(history, logits)


@pytest.mark.parametrize("options", [options for options in OPTIONS if options.get("temperature", 1.0)], ids=str)
@pytest.mark.parametrize("vocab_size", [2, 97, 1000, 32000])
def test_the_filtered_distribution_is_that_of_transformers(options, vocab_size):
    logits = random_logits(5, vocab_size)
    generator = torch.Generator().manual_seed(2)
    history = torch.randint(0, vocab_size, (5, 40), generator=generator)
    expected = warped(logits, **options, history=history)
    seen = torch.zeros(5, vocab_size, dtype=torch.uint8).scatter_(1, history, 1)
    rules = make_rules(5, **options, is_seen=True)
    z = penalised_logits(logits, rules, seen).double() * rules[0, :, None]
    kept = kept_tokens(z, rules)
    assert torch.equal(kept, expected > -math.inf)
    ours = z.masked_fill(~kept, -math.inf).softmax(-1).float()
    torch.testing.assert_close(ours, expected.softmax(-1), rtol=2e-5, atol=1e-7)


def test_what_is_kept_is_chosen_as_often_as_its_probability_says(device):
    """All filters, 4000 draws, in standard errors; where there is no GPU the reference's, for they are many."""
    logits = random_logits(1, 40, spread=1.5)
    options = {"temperature": 1.3, "top_k": 12, "top_p": 0.9, "min_p": 0.05}
    rules = make_rules(4000, **options)
    tokens = choose_tokens(logits.expand(4000, -1).to(device), make_keys(4000).to(device), rules.to(device))
    expected = warped(logits, **options).softmax(-1)[0].double()
    counts = torch.bincount(tokens.cpu(), minlength=40)
    assert counts[expected == 0].sum() == 0
    deviations = (counts / 4000 - expected) / (expected * (1 - expected) / 4000).sqrt().clamp(min=1e-9)
    assert deviations[expected > 0].abs().max() < 4


def test_noise_is_gumbel_s():
    noise = gumbel_noise(make_keys(20), 5000)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.05)
    assert noise.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3)}, "logits has shape"),
        ({"logits": torch.zeros(3, 8, dtype=torch.float64)}, "logits is float64"),
        ({"logits": torch.zeros(8, 3).T}, "logits has strides"),
        ({"keys": torch.zeros(4, dtype=torch.int64)}, "keys has shape"),
        ({"keys": torch.zeros(3, dtype=torch.int32)}, "keys is int32"),
        ({"rules": torch.zeros(NUM_RULES, 3)}, "rules is float32"),
        ({"rules": torch.zeros(3, NUM_RULES, dtype=torch.float64)}, "rules has shape"),
        ({"seen": torch.zeros(3, 8, dtype=torch.bool)}, "seen is bool"),
        ({"seen": torch.zeros(3, 9, dtype=torch.uint8)}, "seen has shape"),
    ],
)
def test_launcher_names_the_argument_that_does_not_fit(change, message):
    arguments = {"logits": torch.zeros(3, 8), "keys": make_keys(3), "rules": make_rules(3), "seen": None}
    with pytest.raises(ValueError, match=message):
        choose_tokens(**arguments | change)
