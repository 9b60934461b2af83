"""Beam search: the same hypotheses as transformers, from blocks that beams share."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pbench.engine.beam_search import BeamSearch, Candidate, EarlyStopping
from pbench.engine.config import EngineConfig
from pbench.engine.engine import Engine
from pbench.engine.errors import RequestError
from pbench.engine.loading import load_engine
from pbench.engine.model_config import load_model_config
from pbench.engine.records import StepRecord
from pbench.engine.request import Request, SamplingParams

TRANSFORMERS_NAME = {"first": True, "heuristic": False, "never": "never"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaForCausalLM, Path]:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        eos_token_id=None,
        pad_token_id=0,
        bos_token_id=1,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("llama")
    model.save_pretrained(folder)
    return model, folder


def make_engine(folder: Path, num_slots: int = 4096, **changes: object) -> Engine:
    model = load_model_config(str(folder))
    config = EngineConfig(
        model=model,
        max_length=160,
        max_batch_tokens=64,
        max_running=24,
        block_size=8,
        kv_memory_bytes=num_slots * model.kv_bytes_per_token("float32"),
        **changes,  # type: ignore[arg-type]
    )
    return load_engine(config, str(folder))


def finish(engine: Engine) -> tuple[dict[int, list[list[int]]], list[StepRecord]]:
    """The hypotheses of every request, best first."""
    outputs: dict[int, list[list[int]]] = {}
    steps = []
    while engine.has_unfinished:
        step = engine.step()
        engine.memory.check_integrity()
        assert step.record.usage.pool == engine.num_slots
        for token in step.tokens:
            hypotheses = outputs.setdefault(token.request_id, [])
            hypotheses.extend([] for _ in range(token.sample_index + 1 - len(hypotheses)))
            hypotheses[token.sample_index].append(token.token_id)
        steps.append(step.record)
    usage = engine.memory.usage(None)
    assert usage.free + usage.cached == engine.num_slots
    return outputs, steps


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(1, 61, (length,), generator=generator).tolist() for length in (13, 8, 30, 1)]


def expected(model: LlamaForCausalLM, prompt: list[int], params: SamplingParams) -> list[list[int]]:
    tensor = torch.tensor([prompt])
    generated = model.generate(
        tensor,
        attention_mask=torch.ones_like(tensor),
        max_new_tokens=params.max_tokens,
        num_beams=params.beam_width,
        num_return_sequences=params.n,
        length_penalty=params.length_penalty,
        early_stopping=TRANSFORMERS_NAME[params.early_stopping],
        eos_token_id=list(params.stop_token_ids) or None,
        do_sample=False,
    )
    hypotheses = generated[:, len(prompt) :].tolist()
    for tokens in hypotheses:  # cut the padding behind a stop token
        ends = [index for index, token in enumerate(tokens) if token in params.stop_token_ids]
        del tokens[ends[0] + 1 if ends else len(tokens) :]
    return hypotheses


@pytest.mark.parametrize("early_stopping", ["first", "heuristic", "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -0.5])
@pytest.mark.parametrize(("width", "stop"), [(2, ()), (4, (7, 20)), (6, (2, 11, 33, 40, 52))])
def test_hypotheses_are_those_of_transformers(
    reference: tuple[LlamaForCausalLM, Path],
    early_stopping: EarlyStopping,
    length_penalty: float,
    width: int,
    stop: tuple[int, ...],
) -> None:
    model, folder = reference
    params = SamplingParams(
        max_tokens=19,
        n=width,
        beam_width=width,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        stop_token_ids=stop,
    )
    engine = make_engine(folder)
    for index, prompt in enumerate(prompts()):
        engine.add_request(Request(index, prompt, params))
    outputs, steps = finish(engine)
    assert [outputs[index] for index in range(4)] == [expected(model, prompt, params) for prompt in prompts()]
    assert sum(step.num_forks for step in steps) > 0
    assert sum(step.num_output_tokens for step in steps) == sum(
        len(tokens) for hypotheses in outputs.values() for tokens in hypotheses
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"is_prefix_cached": False},
        {"has_partial_hits": True},
        {"preemption": "swap"},
        {"preemption": "swap", "has_partial_hits": True, "has_async_steps": False},
    ],
    ids=str,
)
def test_preemption_changes_no_hypothesis(reference: tuple[LlamaForCausalLM, Path], changes: dict[str, object]) -> None:
    model, folder = reference
    params = SamplingParams(max_tokens=30, n=3, beam_width=4)
    engine = make_engine(folder, num_slots=200, host_kv_memory_bytes=1 << 20, **changes)
    for index, prompt in enumerate(prompts()):
        engine.add_request(Request(index, prompt, params))
    outputs, steps = finish(engine)
    assert sum(step.num_preempted for step in steps) > 0
    assert [outputs[index] for index in range(4)] == [expected(model, prompt, params) for prompt in prompts()]


def test_beams_share_and_copy_only_what_they_write(reference: tuple[LlamaForCausalLM, Path]) -> None:
    _, folder = reference
    engine = make_engine(folder)
    prompt = prompts()[2]
    engine.add_request(Request(0, prompt, SamplingParams(max_tokens=25, beam_width=4)))
    _, steps = finish(engine)
    assert max(step.usage.shared_saved for step in steps) >= 3 * (len(prompt) // 8 * 8)
    assert 0 < sum(step.num_copied_blocks for step in steps) <= sum(step.num_forks for step in steps)


def test_an_aborted_beam_search_gives_everything_back(reference: tuple[LlamaForCausalLM, Path]) -> None:
    engine = make_engine(reference[1])
    engine.add_request(Request(0, prompts()[0], SamplingParams(max_tokens=25, beam_width=4)))
    for _ in range(6):
        engine.step()
    assert engine.abort(0) is not None
    engine.memory.check_integrity()
    usage = engine.memory.usage(None)
    assert usage.free + usage.cached == engine.num_slots


@pytest.mark.parametrize(
    ("params", "memory", "words"),
    [
        (SamplingParams(max_tokens=9, n=5, beam_width=4), "paged", "5 hypotheses of 4 beams"),
        (SamplingParams(max_tokens=9, beam_width=4), "contiguous:max", "use paged"),
        (SamplingParams(max_tokens=9, beam_width=40), "paged", "max_running"),
    ],
)
def test_a_search_that_cannot_run_is_refused(
    reference: tuple[LlamaForCausalLM, Path], params: SamplingParams, memory: str, words: str
) -> None:
    engine = make_engine(reference[1], memory=memory)
    with pytest.raises(RequestError, match=words):
        engine.add_request(Request(0, [1, 2, 3], params))


def test_the_best_beam_need_not_start_with_the_best_token() -> None:
    search = BeamSearch(2, max_tokens=2)
    first = search.advance([[Candidate(0, -0.5), Candidate(1, -0.9), Candidate(2, -9.0), Candidate(3, -9.0)]], [[]])
    assert [extension.token_id for extension in first] == [0, 1]
    rows = [
        [Candidate(4, -2.0), Candidate(5, -2.1), Candidate(6, -9.0), Candidate(7, -9.0)],
        [Candidate(4, -0.1), Candidate(5, -3.0), Candidate(6, -9.0), Candidate(7, -9.0)],
    ]
    assert search.advance(rows, [[0], [1]]) == []
    assert [hypothesis.token_ids for hypothesis in search.hypotheses] == [[1, 4], [0, 4]]
