"""What users ask of an engine beside tokens: filters, penalties, log-probabilities, ends, and text."""

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pbench.engine.config import EngineConfig
from pbench.engine.engine import Engine
from pbench.engine.errors import RequestError
from pbench.engine.loading import load_engine
from pbench.engine.model_config import PRESETS, load_model_config
from pbench.engine.records import TokenOutput
from pbench.engine.request import Request, SamplingParams

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[LlamaForCausalLM, Path]:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        eos_token_id=None,
        pad_token_id=0,
        initializer_range=0.4,
    )
    model = LlamaForCausalLM(shape)
    folder = tmp_path_factory.mktemp("llama")
    model.eval().save_pretrained(folder)
    return model, folder


def decode(token_ids: list[int]) -> str:
    """Letters, so that tokens have texts of one character or two."""
    return "".join(chr(97 + token_id % 26) * (1 + token_id % 2) for token_id in token_ids)


def make_engine(folder: Path | None = None, **changes: object) -> Engine:
    model = PRESETS["tiny"] if folder is None else load_model_config(str(folder))
    config = EngineConfig(model=model, max_length=128, max_batch_tokens=256, max_running=8, kv_memory_bytes=1 << 20)
    config = dataclasses.replace(config, **changes)  # type: ignore[arg-type]
    engine = load_engine(config, None if folder is None else str(folder), decode)
    if config.device == "cuda":
        engine.warm_up()
    return engine


def finish(engine: Engine) -> dict[tuple[int, int], list[TokenOutput]]:
    outputs: dict[tuple[int, int], list[TokenOutput]] = {}
    while engine.has_unfinished:
        for token in engine.step().tokens:
            outputs.setdefault((token.request_id, token.sample_index), []).append(token)
        engine.memory.check_integrity()
    usage = engine.memory.usage(None)
    assert usage.free + usage.cached == engine.num_slots
    return outputs


def token_ids(outputs: list[TokenOutput]) -> list[int]:
    return [output.token_id for output in outputs]


def text(outputs: list[TokenOutput]) -> str:
    return "".join(output.text for output in outputs)


SHARED = [7 * i % 97 for i in range(21)]
PROMPTS = [SHARED, [*SHARED, 5, 5, 5], [3], [50 + i for i in range(40)]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("has_async_steps", [True, False])
@pytest.mark.parametrize(
    "changes",
    [{}, {"num_slots": 96}, {"num_slots": 96, "preemption": "swap"}, {"memory": "contiguous:pow2"}],
    ids=str,
)
def test_penalised_tokens_are_those_of_transformers(
    reference: tuple[LlamaForCausalLM, Path], changes: dict[str, object], has_async_steps: bool, device: str
) -> None:
    """Greedily, with the penalty over prompt and output; whatever is preempted, swapped, chunked or shared."""
    model, folder = reference
    slot_bytes = load_model_config(str(folder)).kv_bytes_per_token("float32")
    changes = dict(changes, has_async_steps=has_async_steps, max_batch_tokens=24, device=device)
    num_slots = changes.pop("num_slots", None)
    if num_slots is not None:
        changes["kv_memory_bytes"] = num_slots * slot_bytes
        changes["host_kv_memory_bytes"] = 400 * slot_bytes
    engine = make_engine(folder, **changes)
    penalties = [1.3, 1.0, 2.0, 0.8]
    for index, (prompt, penalty) in enumerate(zip(PROMPTS, penalties, strict=True)):
        engine.add_request(Request(index, prompt, SamplingParams(max_tokens=30, repetition_penalty=penalty)))
    num_preempted = 0
    outputs: dict[int, list[int]] = {}
    while engine.has_unfinished:
        step = engine.step()
        num_preempted += step.record.num_preempted
        for token in step.tokens:
            outputs.setdefault(token.request_id, []).append(token.token_id)
    for index, (prompt, penalty) in enumerate(zip(PROMPTS, penalties, strict=True)):
        generated = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=30,
            min_new_tokens=30,
            do_sample=False,
            repetition_penalty=penalty,
        )
        assert outputs[index] == generated[0, len(prompt) :].tolist()
    assert (num_preempted > 0) == (num_slots is not None)


@pytest.mark.parametrize("has_async_steps", [True, False])
def test_what_else_runs_and_what_is_preempted_changes_no_sampled_token(has_async_steps: bool) -> None:
    """Every option at once, samples that fork, and a pool that is too small, against each request alone."""
    params = [
        SamplingParams(
            max_tokens=30,
            temperature=0.6 + 0.3 * index,
            seed=index,
            n=1 + index % 3,
            top_k=20,
            top_p=0.9,
            min_p=0.01,
            repetition_penalty=1.0 + 0.2 * (index % 2),
        )
        for index in range(6)
    ]
    requests = [Request(index, [index] * (10 + 5 * index), sampling) for index, sampling in enumerate(params)]
    slot_bytes = PRESETS["tiny"].kv_bytes_per_token("float32")
    crowded = make_engine(kv_memory_bytes=240 * slot_bytes, has_async_steps=has_async_steps)
    for request in requests:
        crowded.add_request(request)
    together: dict[tuple[int, int], list[int]] = {}
    num_preempted = 0
    while crowded.has_unfinished:
        step = crowded.step()
        num_preempted += step.record.num_preempted
        for token in step.tokens:
            together.setdefault((token.request_id, token.sample_index), []).append(token.token_id)
    assert num_preempted > 0
    alone = make_engine(has_async_steps=False, is_prefix_cached=False)
    for request in requests:
        alone.add_request(request)
        for key, outputs in finish(alone).items():
            assert together[key] == token_ids(outputs)


@pytest.mark.parametrize("device", DEVICES)
def test_log_probabilities_are_those_of_transformers(reference: tuple[LlamaForCausalLM, Path], device: str) -> None:
    model, folder = reference
    engine = make_engine(folder, device=device)
    engine.add_request(Request(0, PROMPTS[0], SamplingParams(max_tokens=12, logprobs=4)))
    engine.add_request(Request(1, PROMPTS[1], SamplingParams(max_tokens=12, temperature=2.0, top_k=5, logprobs=0)))
    engine.add_request(Request(2, PROMPTS[2], SamplingParams(max_tokens=12)))
    outputs = finish(engine)
    assert all(output.score is None for output in outputs[2, 0])
    for index, num_top in ((0, 4), (1, 0)):
        tokens = token_ids(outputs[index, 0])
        with torch.inference_mode():
            logits = model(torch.tensor([PROMPTS[index] + tokens])).logits[0, len(PROMPTS[index]) - 1 : -1]
        expected = logits.log_softmax(-1)
        for row, output in zip(expected, outputs[index, 0], strict=True):
            assert output.score is not None
            assert output.score.token_id == output.token_id
            assert output.score.log_prob == pytest.approx(row[output.token_id].item(), abs=2e-4)
            assert [candidate.token_id for candidate in output.score.top] == row.topk(num_top).indices.tolist()
            tops = [candidate.log_prob for candidate in output.score.top]
            assert tops == pytest.approx(row.topk(num_top).values.tolist(), abs=2e-4)


@pytest.mark.parametrize("has_async_steps", [True, False])
def test_a_stop_string_ends_a_sequence_across_tokens_and_is_no_part_of_its_text(has_async_steps: bool) -> None:
    engine = make_engine(has_async_steps=has_async_steps)
    engine.add_request(Request(0, [1, 2, 3], SamplingParams(max_tokens=40)))
    free = finish(engine)[0, 0]
    whole = text(free)
    assert whole == decode(token_ids(free))
    assert free[-1].finish_reason == "length"
    for start in range(3, 12, 2):
        stop = whole[start : start + 5]
        end = whole.index(stop) + 5
        engine.add_request(Request(1, [1, 2, 3], SamplingParams(max_tokens=40, stop=("never", stop))))
        got = finish(engine)[1, 0]
        assert text(got) == whole[: end - 5]
        given = len(got)
        assert token_ids(got) == token_ids(free)[:given]
        assert len(decode(token_ids(free)[: given - 1])) < end <= len(decode(token_ids(free)[:given]))
        assert [output.finish_reason for output in got] == [None] * (given - 1) + ["stop"]


@pytest.mark.parametrize("has_async_steps", [True, False])
def test_samples_stop_at_their_own_strings_and_the_others_go_on(has_async_steps: bool) -> None:
    engine = make_engine(has_async_steps=has_async_steps)
    sampling = SamplingParams(max_tokens=25, temperature=1.0, n=4)
    engine.add_request(Request(0, [1, 2, 3], sampling))
    free = finish(engine)
    stop = text(free[0, 2])[4:8]
    engine.add_request(Request(0, [1, 2, 3], dataclasses.replace(sampling, stop=(stop,))))
    stopped = finish(engine)
    for index in range(4):
        whole = text(free[0, index])
        assert text(stopped[0, index]) == whole.split(stop)[0]
        assert stopped[0, index][-1].finish_reason == ("stop" if stop in whole else "length")


def test_held_text_comes_with_the_last_token() -> None:
    engine = make_engine()
    engine.add_request(Request(0, [1, 2, 3], SamplingParams(max_tokens=6)))
    whole = text(finish(engine)[0, 0])
    engine.add_request(Request(0, [1, 2, 3], SamplingParams(max_tokens=6, stop=(whole[3:] + "never",))))
    got = finish(engine)[0, 0]
    assert text(got) == whole
    assert got[-1].text.endswith(whole[3:][-2:])


@pytest.mark.parametrize("has_async_steps", [True, False])
def test_the_model_s_end_stops_unless_it_is_ignored(has_async_steps: bool) -> None:
    free = make_engine()
    free.add_request(Request(0, [1, 2, 3], SamplingParams(max_tokens=20)))
    tokens = token_ids(finish(free)[0, 0])
    eos = tokens[6]
    model = dataclasses.replace(PRESETS["tiny"], eos_token_ids=(eos,))
    engine = make_engine(model=model, has_async_steps=has_async_steps)
    engine.add_request(Request(0, [1, 2, 3], SamplingParams(max_tokens=20)))
    engine.add_request(Request(1, [1, 2, 3], SamplingParams(max_tokens=20, ignore_eos=True)))
    outputs = finish(engine)
    num_given = tokens.index(eos) + 1
    assert token_ids(outputs[0, 0]) == tokens[:num_given]
    assert outputs[0, 0][-1].finish_reason == "stop"
    assert text(outputs[0, 0]) == decode(tokens[: num_given - 1]), "what ends a text is no part of it"
    assert token_ids(outputs[1, 0]) == tokens


def test_beams_have_text_and_reasons_too() -> None:
    engine = make_engine()
    engine.add_request(Request(0, [1, 2, 3], SamplingParams(max_tokens=8, n=2, beam_width=3)))
    for outputs in finish(engine).values():
        assert text(outputs) == decode(token_ids(outputs))
        assert [output.finish_reason for output in outputs] == [None] * 7 + ["length"]


def test_no_text_is_made_where_nobody_wants_it() -> None:
    engine = make_engine()
    engine.add_request(Request(0, [1, 2, 3], SamplingParams(max_tokens=5, detokenize=False)))
    assert text(finish(engine)[0, 0]) == ""
    assert engine.scheduler.decode is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"top_k": -1}, "top_k -1; it must be 1 or more, or 0"),
        ({"top_p": 0.0}, "top_p 0.0; it must be above 0"),
        ({"top_p": 1.5}, "top_p 1.5"),
        ({"top_p": float("nan")}, "top_p nan"),
        ({"min_p": -0.1}, "min_p -0.1; it must be from 0"),
        ({"min_p": float("nan")}, "min_p nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty 0.0; it must be above 0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty inf"),
        ({"logprobs": -1}, "logprobs -1; it must be from 0"),
        ({"logprobs": 10**6}, "logprobs 1000000"),
        ({"stop": ("a", "")}, "empty stop string"),
        ({"stop": "end"}, r"stop 'end'; give a tuple of texts, \('end',\)"),
        ({"stop": ("end",), "detokenize": False}, "leave detokenize on"),
        ({"beam_width": 2, "top_k": 4}, "beam search, which takes no top_k"),
        ({"beam_width": 2, "stop": ("end",)}, "beam search, which takes no"),
        ({"beam_width": 2, "logprobs": 0}, "beam search, which takes no"),
    ],
)
def test_options_that_cannot_work_are_refused_with_the_remedy(changes: dict[str, object], words: str) -> None:
    engine = make_engine()
    sampling = dataclasses.replace(SamplingParams(max_tokens=4), **changes)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=words):
        engine.add_request(Request(0, [1], sampling))
    assert not engine.has_unfinished


def test_a_stop_string_needs_a_decode_function() -> None:
    engine = Engine(make_engine().config, make_engine().runner)
    with pytest.raises(RequestError, match="give the engine a decode function"):
        engine.add_request(Request(0, [1], SamplingParams(max_tokens=4, stop=("end",))))
