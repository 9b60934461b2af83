"""The tree of prefixes and the ideal cache, held to a model that compares token by token."""

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbench.workloads.blocks import prompt_blocks
from pbench.workloads.ideal_cache import ideal_hits
from pbench.workloads.prefixes import PrefixNode, prefix_paths, prefix_sharing
from pbench.workloads.request import Segment, WorkloadRequest
from pbench.workloads.row import PRIVATE, Row
from pbench.workloads.table import RequestTable, RequestTableBuilder

Token = tuple[int, int]  # key of a stream, place in it


def table(prompts: list[list[tuple[int, int]]]) -> RequestTable:
    builder = RequestTableBuilder()
    for segments in prompts:
        parts = tuple(Segment(*segment) for segment in segments)
        builder.append(Row(1, None, sum(part.length for part in parts), 1, parts))
    return builder.build()


def tokens(request: WorkloadRequest) -> list[Token]:
    return [(key, place) for key, length in request.segments for place in range(length)]


PROMPTS = st.lists(
    st.lists(st.tuples(st.integers(-1, 3), st.integers(1, 12)), min_size=1, max_size=4), min_size=1, max_size=8
)


@given(PROMPTS)
def test_distinct_tokens_are_the_nodes_of_the_token_trie(prompts: list[list[tuple[int, int]]]) -> None:
    requests = table(prompts)
    sharing = prefix_sharing(requests)
    beginnings = {tuple(all_[:end]) for all_ in map(tokens, requests) for end in range(1, len(all_) + 1)}
    assert sharing.distinct_tokens == len(beginnings)
    assert sharing.total_tokens == int(requests.input_length.sum())


def walk(node: PrefixNode) -> list[PrefixNode]:
    return [node, *(below for child in node.children for below in walk(child))]


@given(PROMPTS)
def test_the_tree_adds_up(prompts: list[list[tuple[int, int]]]) -> None:
    sharing = prefix_sharing(table(prompts), max_depth=100, max_children=100)
    assert sum(root.saved_tokens for root in sharing.roots) == sharing.saved_tokens
    assert sharing.num_hidden_roots == 0
    for node in (below for root in sharing.roots for below in walk(root)):
        own = node.num_tokens * (node.num_requests - 1)
        assert node.saved_tokens == own + sum(child.saved_tokens for child in node.children)
        assert node.num_requests >= 2
        assert sum(child.num_requests for child in node.children) <= node.num_requests
        saved = [child.saved_tokens for child in node.children]
        assert saved == sorted(saved, reverse=True)


@given(PROMPTS, st.integers(0, 3), st.integers(1, 2))
def test_what_is_not_shown_is_counted(prompts: list[list[tuple[int, int]]], depth: int, width: int) -> None:
    whole = prefix_sharing(table(prompts), max_depth=100, max_children=100)
    part = prefix_sharing(table(prompts), max_depth=depth, max_children=width)
    assert (part.total_tokens, part.distinct_tokens) == (whole.total_tokens, whole.distinct_tokens)
    assert len(part.roots) + part.num_hidden_roots == len(whole.roots)
    assert len(part.roots) <= (width if depth else 0)
    for shown, full in zip(part.roots, whole.roots, strict=False):
        assert shown.saved_tokens == full.saved_tokens


def test_a_history_that_grows_is_one_line_of_runs() -> None:
    sharing = prefix_sharing(table([[(0, 10), (1, 5)], [(0, 10), (1, 9)], [(0, 10), (1, 20)], [(0, 10), (2, 3)]]))
    assert sharing.total_tokens - sharing.distinct_tokens == 3 * 10 + 2 * 5 + 4
    (root,) = sharing.roots
    assert (root.num_tokens, root.num_requests) == (10, 4)
    (history,) = root.children
    assert (history.num_tokens, history.num_requests) == (5, 3)
    assert [(child.num_tokens, child.num_requests) for child in history.children] == [(4, 2)]


def test_explicit_ids_are_compared_too() -> None:
    builder = RequestTableBuilder()
    for ids in (range(40), [*range(32), 99], [7, *range(39)]):
        builder.append(Row(1, None, len(ids), 1, (), tuple(ids)))
    builder.append(Row(1, None, 40, 1, (Segment(0, 40),)))
    sharing = prefix_sharing(builder.build())
    assert sharing.saved_tokens == 32


@given(PROMPTS, st.integers(1, 7))
def test_blocks_have_one_name_exactly_where_all_tokens_up_to_their_end_are_the_same(
    prompts: list[list[tuple[int, int]]], block_size: int
) -> None:
    requests = table(prompts)
    named: list[tuple[int, tuple[Token, ...]]] = []
    for request, blocks in zip(requests, prompt_blocks(requests, block_size), strict=True):
        names = [*blocks.names, *blocks.own_names]
        all_ = tokens(request)
        assert len(names) == blocks.num_blocks == -(-len(all_) // block_size)
        assert blocks.num_partial == (len(all_) % block_size > 0)
        assert blocks.full().num_blocks == len(all_) // block_size
        named += [(name, tuple(all_[: (index + 1) * block_size])) for index, name in enumerate(names)]
    for (name, beginning), (other_name, other) in combinations(named, 2):
        assert (name == other_name) == (beginning == other)


def model_hits(requests: RequestTable, block_size: int, capacity: int | None, is_partial_counted: bool) -> int:
    """The definition, word by word."""
    cache: list[tuple[Token, ...]] = []  # least recently used first
    num_hits = 0
    for request in requests:
        all_ = tokens(request)
        ends = list(range(block_size, len(all_) + block_size, block_size))
        if not is_partial_counted:
            ends = [end for end in ends if end <= len(all_)]
        is_hit = True
        for end in ends:
            block = tuple(all_[:end])
            is_hit = is_hit and block in cache
            num_hits += is_hit
            if block in cache:
                cache.remove(block)
            cache.append(block)
            if capacity is not None and len(cache) > capacity:
                cache.pop(0)
    return num_hits


@settings(deadline=None)
@given(PROMPTS, st.integers(1, 5), st.integers(1, 12), st.booleans())
def test_ideal_hits_are_as_defined(
    prompts: list[list[tuple[int, int]]], block_size: int, capacity: int, is_partial_counted: bool
) -> None:
    requests = table(prompts)
    found = ideal_hits(
        requests, block_size=block_size, capacities=[capacity, None], is_partial_counted=is_partial_counted
    )
    assert [hits.capacity for hits in found] == [capacity, None]
    assert [hits.num_hits for hits in found] == [
        model_hits(requests, block_size, each, is_partial_counted) for each in (capacity, None)
    ]
    num_tokens = requests.input_length
    num_blocks = int((-(-num_tokens // block_size) if is_partial_counted else num_tokens // block_size).sum())
    assert {hits.num_blocks for hits in found} == {num_blocks}


def test_a_block_that_is_evicted_takes_those_after_it_along() -> None:
    prompts = [[(1, 4), (2, 4)], [(3, 4)], [(1, 4), (2, 4)]]
    (two, three) = ideal_hits(table(prompts), block_size=4, capacities=[2, 3], is_partial_counted=True)
    assert two.num_hits == 0  # the first block was evicted, and comes back in the place of the second
    assert three.num_hits == 2


def test_no_blocks_is_a_rate_of_zero() -> None:
    (hits,) = ideal_hits(table([[(PRIVATE, 3)]]), block_size=16, capacities=[None], is_partial_counted=False)
    assert (hits.num_blocks, hits.rate) == (0, 0.0)
    assert ideal_hits(table([[(0, 3)]]), block_size=16, capacities=[None], is_partial_counted=True)[0].rate == 0.0


@pytest.mark.parametrize("num_blocks", [1, 2, 50])
def test_more_blocks_never_hit_less(num_blocks: int) -> None:
    prompts = [[(index % 7, 8), (index % 3, 8)] for index in range(60)]
    fewer, more = ideal_hits(
        table(prompts), block_size=4, capacities=[num_blocks, num_blocks + 1], is_partial_counted=True
    )
    assert fewer.num_hits <= more.num_hits


@given(PROMPTS, st.integers(1, 4), st.integers(1, 3))
def test_every_request_on_a_path_begins_with_all_of_it_and_no_other_does(
    prompts: list[list[tuple[int, int]]], depth: int, width: int
) -> None:
    requests = table(prompts)
    prefixes, deepest = prefix_paths(requests, depth, width)
    begun: list[set[tuple[Token, ...]]] = [set() for _ in prefixes]  # what requests of each node begin with
    num_requests = [0] * len(prefixes)
    for request, place in zip(requests, deepest.tolist(), strict=True):
        while place >= 0:
            node = prefixes[place]
            begun[place].add(tuple(tokens(request)[: node.start + node.num_tokens]))
            num_requests[place] += 1
            place = node.parent
    for place, node in enumerate(prefixes):
        (beginning,) = begun[place]
        assert len(beginning) == node.start + node.num_tokens
        assert num_requests[place] == node.num_requests
        assert node.parent < place
        alike = [request for request in requests if tuple(tokens(request)[: len(beginning)]) == beginning]
        assert len(alike) == node.num_requests
