from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from pbench.workloads.builtin import BUILT_INS
from pbench.workloads.catalogue import load_workload, workload_names
from pbench.workloads.definition import Definition, clipped_lognormal_mean
from pbench.workloads.errors import WorkloadError
from pbench.workloads.ideal_cache import ideal_hits
from pbench.workloads.prefixes import prefix_sharing
from pbench.workloads.workload import Workload

# What seed 0 gives, on any machine. A change here is a change of what all published figures were measured with.
PINNED = {
    "chat-shared-prompt": "657be4cd844c0d66134f194a4684e36093b4867b72d71b45507f6b7558648d04",
    "chat-multi-turn": "4102f23b6036065abf6efd096762705b218f5cde91ef8ce00cfeb8b3a08469bd",
    "few-shot": "09fbe554587a20237e08ea1b9adc9026f65842463c9bad8e7b79230b146d2fdf",
    "rag-long-context": "e4aad574c7162681240b21c83832aa00ee197cf0ce5eb31f54f315802adb1eeb",
    "agent-tools": "3aa4e9f885f9556d9e3480043655ad3d132bf34824aae1a3a1ad0fd6ac49b44c",
    "code-completion": "86828fbea8ead2820215168d7cec57da0c190241b13d69ea16ba3c0a88fa3b61",
    "summarise": "6280318e9ebd6702e2455c535e206a5f596f46913ffa0477835140f7d693eca3",
    "reasoning": "45ea87ea855ba3149dfec47427feccd92129d757aa3352c4407750667d41e27c",
    "parallel-sampling": "e3d3b421de3335059a71a63c11d4e07384a73c2de3f1b1230b500ba69dda34a4",
    "beam-search": "4235c6c78b72593a43251a9d71255742de8acb95fe18fb9dc27c5a5ec58325cb",
    "sharegpt-lengths": "4c966c4b7ce840ca126c832b6b9864e3c385d009339987662f4410706856586f",
    "alpaca-lengths": "6e737e6fe82d74073631d787364feefe86591776bb343f92f2de8cd489cf75d3",
    "uniform": "ed3b000294ca2c4853909e96fde283cd2ff9296364a515b97f87857fab753eab",
    "long-context": "31195e62a8d3aa418528639f9712f634e2e4332b54c34491ec62e452056d3ee9",
    "mixed": "2953f9c48f59e687d4c2a077f1d0b07bea5cb7ceb79a5caf316bfd3ce0e947a2",
    "fragmentation": "860354989857e039572eab17608725a0a0a3fa670221d6fd2381196fa46bc058",
    "prefix-thrash": "cd684fed43b9128e00786a0232388f8fb7e9341cb84ed0d7601881367ef974e7",
}


def names() -> list[str]:
    return [definition.name for definition in BUILT_INS]


def test_every_workload_is_pinned() -> None:
    assert sorted(PINNED) == sorted(workload_names()) == sorted(set(names()))


@pytest.mark.parametrize("name", names())
def test_seed_zero_is_the_same_on_every_machine(name: str) -> None:
    assert load_workload(name).sha256 == PINNED[name]


@pytest.mark.parametrize("name", names())
def test_seeds_are_independent(name: str) -> None:
    hashes = {load_workload(name, seed=seed).sha256 for seed in range(4)}
    assert len(hashes) == 4


@pytest.mark.parametrize("name", names())
def test_rows_are_whole_requests_in_order_of_arrival(name: str) -> None:
    workload = load_workload(name)
    assert workload.num_dropped_empty == workload.num_dropped_too_long == 0
    assert workload.num_requests == workload.parameters["num_requests"]
    assert bool((np.diff(workload.requests.arrival_ns) >= 0).all())
    for request in workload.requests[:50]:
        assert sum(length for _, length in request.segments) == request.input_length
        assert all(length > 0 for _, length in request.segments)


@pytest.mark.parametrize("definition", BUILT_INS, ids=lambda definition: definition.name)
def test_the_first_requests_do_not_depend_on_how_many_follow(definition: Definition) -> None:
    # A ramp or a fixed rate would be the workload's own; what is looked at here is what the definition lays out.
    arrivals = "recorded" if definition.arrivals == "recorded" else "all"
    few = load_workload(definition.name, overrides={"num_requests": "20"}, arrivals=arrivals)
    first = load_workload(definition.name, limit=20, arrivals=arrivals)
    assert few.sha256 == first.sha256


@pytest.mark.parametrize("definition", BUILT_INS, ids=lambda definition: definition.name)
def test_definitions_say_what_they_are(definition: Definition) -> None:
    assert definition.description
    assert definition.stands_for
    assert definition.parameters[0].name == "num_requests"
    for parameter in definition.parameters:
        assert parameter.help
        assert parameter.parse(str(parameter.default), "test") == parameter.default
    load_workload(definition.name, arrivals=None, limit=1)


def mean_and_spread(lengths: np.ndarray) -> tuple[float, float]:
    return float(lengths.mean()), float(lengths.std() / len(lengths) ** 0.5)


@pytest.mark.parametrize(
    ("name", "side", "prefix"),
    [
        (definition.name, side, side)
        for definition in BUILT_INS
        for side in ("input", "output")
        if any(parameter.name == f"{side}_sigma" for parameter in definition.parameters)
        and definition.name not in ("few-shot",)  # its prefix comes on top of the input
    ],
)
def test_lognormal_lengths_have_the_mean_they_declare(name: str, side: str, prefix: str) -> None:
    workload = load_workload(name, overrides={"num_requests": "4000"})
    mean, sigma, clip = (float(workload.parameters[f"{prefix}_{what}"]) for what in ("mean", "sigma", "clip"))
    measured, error = mean_and_spread(getattr(workload.requests, f"{side}_length"))
    assert measured == pytest.approx(clipped_lognormal_mean(mean, sigma, clip), abs=4 * error + 0.1)
    assert getattr(workload.requests, f"{side}_length").max() <= clip


@pytest.mark.parametrize(("name", "shared"), [("uniform", 0), ("chat-shared-prompt", 1024)])
def test_uniform_lengths_fill_their_range(name: str, shared: int) -> None:
    workload = load_workload(name, overrides={"num_requests": "20000"})
    for side, prefix, extra in (("input", "input" if not shared else "own", shared), ("output", "output", 0)):
        lengths = getattr(workload.requests, f"{side}_length") - extra
        low, high = workload.parameters[f"{prefix}_min"], workload.parameters[f"{prefix}_max"]
        assert (lengths.min(), lengths.max()) == (low, high)
        measured, error = mean_and_spread(lengths)
        assert measured == pytest.approx((int(low) + int(high)) / 2, abs=4 * error)


def test_sharegpt_lengths_have_the_published_means_after_clipping() -> None:
    assert clipped_lognormal_mean(161.31, 1.02, 1024) == pytest.approx(156, abs=0.5)
    assert clipped_lognormal_mean(337.99, 0.93, 1024) == pytest.approx(309, abs=0.5)


def test_the_clipped_mean_agrees_with_summation() -> None:
    grid = (np.arange(200_000) + 0.5) / 200_000
    from statistics import NormalDist

    drawn = np.exp(3.0 + 0.7 * np.array([NormalDist().inv_cdf(u) for u in grid]))
    mean = float(np.exp(3.0 + 0.7**2 / 2))
    assert clipped_lognormal_mean(mean, 0.7, 40) == pytest.approx(float(np.minimum(drawn, 40).mean()), rel=1e-4)
    assert clipped_lognormal_mean(50, 0, 40) == 40


def saved_share(workload: Workload) -> float:
    sharing = prefix_sharing(workload.requests)
    return sharing.saved_tokens / sharing.total_tokens


def test_chat_shared_prompt_shares_the_system_prompt_and_nothing_else() -> None:
    sharing = prefix_sharing(load_workload("chat-shared-prompt").requests)
    assert sharing.saved_tokens == 1023 * 1024
    (root,) = sharing.roots
    assert (root.num_tokens, root.num_requests, root.children) == (1024, 1024, ())


def test_chat_multi_turn_grows_by_the_last_answer_and_the_next_message() -> None:
    requests = load_workload("chat-multi-turn").requests
    sessions: dict[int, list[tuple[float, int, int]]] = {}
    for request in requests:
        (system, history) = request.segments
        assert system == (0, 256)
        sessions.setdefault(history.key, []).append((request.arrival_s, history.length, request.output_length))
    assert max(map(len, sessions.values())) <= 6
    for turns in sessions.values():
        for (earlier_s, said, answer), (later_s, told, _) in pairwise(turns):
            assert told > said + answer
            assert later_s >= earlier_s + answer / 50
    assert saved_share(load_workload("chat-multi-turn")) > 0.6


@pytest.mark.parametrize(("shots", "prefix_tokens"), [("1", 80), ("5", 341)])
def test_few_shot_has_the_papers_prefixes(shots: str, prefix_tokens: int) -> None:
    requests = load_workload("few-shot", overrides={"shots": shots}).requests
    assert {request.segments[0] for request in requests} == {(0, prefix_tokens)}


def test_rag_retrieves_different_chunks_popular_ones_first() -> None:
    workload = load_workload("rag-long-context")
    popularity: Counter[int] = Counter()
    for request in workload.requests:
        chunks = [segment.key for segment in request.segments[1:-1]]
        assert len(set(chunks)) == len(chunks) == 12
        popularity.update(chunks)
    (_, most), (_, second), *_ = popularity.most_common()
    assert most > second > popularity.most_common()[100][1]
    assert 0.01 < saved_share(workload) < 0.2  # chunks are common, common beginnings are few


def test_rag_refuses_to_retrieve_more_chunks_than_there_are() -> None:
    with pytest.raises(WorkloadError, match="num_retrieved=12 is above num_chunks=3"):
        load_workload("rag-long-context", overrides={"num_chunks": "3"})


def test_agents_share_a_tree_of_prompts() -> None:
    sharing = prefix_sharing(load_workload("agent-tools").requests)
    (everybody,) = sharing.roots
    assert (everybody.num_tokens, everybody.num_requests) == (256, 1000)
    assert len(everybody.children) + everybody.num_hidden == 4
    for agent in everybody.children:
        assert agent.num_tokens == 768
        assert len(agent.children) + agent.num_hidden == 8
        assert all(task.num_tokens == 192 for task in agent.children)


def test_code_completion_comes_in_bursts() -> None:
    gaps = np.diff(load_workload("code-completion", overrides={"num_requests": "5000"}).requests.arrival_ns)
    assert gaps.std() / gaps.mean() == pytest.approx(3, rel=0.15)
    lengths = load_workload("code-completion", overrides={"num_requests": "5000"}).requests
    assert np.median(lengths.input_length) == pytest.approx(1500, rel=0.05)
    assert np.median(lengths.output_length) == pytest.approx(13, abs=1)


def test_parallel_sampling_counts_a_prompt_once_and_every_sample() -> None:
    workload = load_workload("parallel-sampling", overrides={"samples": "6"})
    assert set(workload.requests.n.tolist()) == {6}
    assert workload.total_input_tokens == workload.requests.input_length.sum()
    assert workload.total_output_tokens == 6 * workload.requests.output_length.sum()


def test_mixed_follows_its_weights_and_keeps_its_parts_apart() -> None:
    workload = load_workload("mixed", overrides={"num_requests": "5000"})
    is_chat = np.array(
        [request.segments[0].length == 1024 and len(request.segments) == 2 for request in workload.requests]
    )
    assert is_chat.mean() == pytest.approx(0.4, abs=0.03)
    (shared,) = prefix_sharing(workload.requests).roots
    assert (shared.num_tokens, shared.num_requests) == (1024, int(is_chat.sum()))


def test_mixed_needs_a_weight() -> None:
    zero = {name: "0" for name in load_workload("mixed").parameters if name.endswith("_weight")}
    with pytest.raises(WorkloadError, match="all weights are 0"):
        load_workload("mixed", overrides=zero)
    only_code = load_workload("mixed", overrides=zero | {"code_weight": "1"})
    assert only_code.requests.output_length.max() <= 512


def test_fragmentation_leaves_holes_that_the_next_wave_does_not_fit() -> None:
    requests = load_workload("fragmentation", overrides={"jitter": "0"}).requests
    pins, holes = requests[0::2], requests[1::2]
    assert all((pin.input_length, pin.output_length) == (16, 512) for pin in pins)
    waves = [[hole.input_length + hole.output_length for hole in holes[start : start + 8]] for start in range(0, 64, 8)]
    assert all(len(set(wave)) == 1 for wave in waves)
    assert all(after[0] > 1.2 * before[0] for before, after in pairwise(waves))


@pytest.mark.parametrize(("num_blocks", "least", "most"), [(4096, 0.0, 0.02), (4800, 0.85, 1.0)])
def test_prefix_thrash_defeats_a_cache_that_is_a_little_too_small(num_blocks: int, least: float, most: float) -> None:
    workload = load_workload("prefix-thrash", overrides={"num_requests": "1000"})
    (hits,) = ideal_hits(workload.requests, block_size=16, capacities=[num_blocks], is_partial_counted=False)
    assert least <= hits.rate <= most


@pytest.mark.parametrize("definition", BUILT_INS, ids=lambda definition: definition.name)
def test_every_parameter_can_be_set_at_both_ends_of_its_range(definition: Definition) -> None:
    """Each alone, on a few requests: it is played, or refused by name."""
    for parameter in definition.parameters:
        if isinstance(parameter.default, str):
            continue
        values = parameter.choices or (parameter.low, min(parameter.high, 5000))
        for value in values:
            text = str(type(parameter.default)(value))
            overrides = {"num_requests": "5"} | {parameter.name: text}
            try:
                workload = load_workload(definition.name, overrides=overrides, limit=5)
            except WorkloadError as error:
                if parameter.name not in str(error):
                    raise
            else:
                assert str(workload.parameters[parameter.name]) == text
