"""What the prompts of a workload share: the tree of their common prefixes, and what sharing saves at most."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pbench.workloads.row import PRIVATE
from pbench.workloads.table import RequestTable

_PIECE = 16  # explicit token ids are compared in pieces of so many tokens


class Part(NamedTuple):
    """A run of a prompt's tokens. Equal keys are equal tokens, as far as both runs go; PRIVATE equals nothing."""

    key: int
    length: int


@dataclass(frozen=True, slots=True)
class PrefixNode:
    """A run of tokens with which the prompts of several requests go on after a common beginning."""

    number: int  # of the tree that was built; only ``prefix_paths`` reads it
    num_tokens: int
    num_requests: int
    saved_tokens: int  # tokens that need not be computed or stored again, in this run and in all that follow it
    children: tuple["PrefixNode", ...]  # those that save most, most first
    num_hidden: int  # further ones that are not in ``children``


@dataclass(frozen=True, slots=True)
class PrefixSharing:
    """How much of all prompts is the same as the beginning of an earlier one."""

    total_tokens: int
    distinct_tokens: int  # each common prefix counted once
    roots: tuple[PrefixNode, ...]
    num_hidden_roots: int

    @property
    def saved_tokens(self) -> int:
        """Prompt tokens that a perfect prefix cache never computes."""
        return self.total_tokens - self.distinct_tokens


class SharedPrefix(NamedTuple):
    """A node of the tree in a list: what several requests go on with after ``start`` tokens that they share too."""

    parent: int  # place in the list, -1: none
    start: int  # tokens before it
    num_tokens: int
    num_requests: int


class PrefixPaths(NamedTuple):
    """A tree as a list, parents first, and how far each request goes along it."""

    prefixes: list[SharedPrefix]
    deepest: NDArray[np.int64]  # (num_requests,): the request's last shared prefix, -1: it shares none of these


def prompt_parts(requests: RequestTable) -> Iterator[list[Part]]:
    """The parts of each prompt, in order. Keys that occur once in the workload are PRIVATE."""
    occurrences = np.bincount(requests.segment_keys) if len(requests.segment_keys) else np.zeros(0, dtype=np.int64)
    keys = np.where(occurrences[requests.segment_keys] > 1, requests.segment_keys, PRIVATE).tolist()
    lengths = requests.segment_lengths.tolist()
    starts, token_starts = requests.segment_starts.tolist(), requests.token_starts.tolist()
    piece_keys: dict[bytes, int] = {}
    for index in range(len(requests)):
        start, end = starts[index], starts[index + 1]
        parts = [Part(key, length) for key, length in zip(keys[start:end], lengths[start:end], strict=True)]
        first_token, last_token = token_starts[index], token_starts[index + 1]
        for token in range(first_token, last_token, _PIECE):
            piece = requests.token_ids[token : min(token + _PIECE, last_token)]
            # Behind the keys of segments, so that ids of both kinds never meet.
            key = piece_keys.setdefault(piece.tobytes(), len(occurrences) + len(piece_keys))
            parts.append(Part(key, len(piece)))
        yield parts


def prefix_sharing(requests: RequestTable, max_depth: int = 3, max_children: int = 4) -> PrefixSharing:
    """Find what prompts share, exact to the token; for prompts of explicit token ids, to pieces of 16 tokens.

    Of the tree the ``max_children`` nodes that save most are given, at every level down to ``max_depth``.
    """
    tree = _Tree()
    total_tokens = 0
    for parts in prompt_parts(requests):
        total_tokens += sum(length for _, length in parts)
        tree.add(parts)
    tree.split()
    roots, num_hidden = tree.nodes(max_depth, max_children)
    return PrefixSharing(total_tokens, tree.distinct_tokens(), roots, num_hidden)


def prefix_paths(requests: RequestTable, max_depth: int = 4, max_children: int = 6) -> PrefixPaths:
    """The tree of ``prefix_sharing``, and which of its paths every request is on."""
    tree = _Tree()
    for parts in prompt_parts(requests):
        tree.add(parts)
    tree.split()
    roots, _ = tree.nodes(max_depth, max_children)
    prefixes: list[SharedPrefix] = []
    place_of: dict[int, int] = {}  # by number
    waiting = [(root, -1, 0) for root in reversed(roots)]
    while waiting:
        node, parent, start = waiting.pop()
        place_of[node.number] = place = len(prefixes)
        prefixes.append(SharedPrefix(parent, start, node.num_tokens, node.num_requests))
        waiting += [(child, place, start + node.num_tokens) for child in reversed(node.children)]
    return PrefixPaths(prefixes, tree.deepest(place_of))


_ROOT = 0


class _Tree:
    """A trie of parts; node 0 is the empty beginning."""

    def __init__(self) -> None:
        self._ids: dict[tuple[int, int, int], int] = {}  # (parent, key, length)
        self._parents = [_ROOT]
        self._lengths = [0]
        self._counts = [0]  # prompts that pass
        self._ends: list[int] = []  # the last node of each prompt, in their order
        self._num_private = 0  # tokens of ends that no other prompt has

    def add(self, parts: list[Part]) -> None:
        """Add a prompt."""
        node = _ROOT
        self._counts[_ROOT] += 1
        for index, (key, length) in enumerate(parts):
            if key == PRIVATE:  # and so is all that follows
                self._num_private += sum(part.length for part in parts[index:])
                break
            child = self._ids.setdefault((node, key, length), len(self._parents))
            if child == len(self._parents):
                self._parents.append(node)
                self._lengths.append(length)
                self._counts.append(0)
            self._counts[child] += 1
            node = child
        self._ends.append(node)

    def split(self) -> None:
        """Where runs of one key and several lengths follow a node, make the longer go on where the shorter end.

        To be called once, after the last prompt.
        """
        runs: dict[tuple[int, int], list[tuple[int, int]]] = {}  # (length, node) of each (parent, key)
        for (parent, key, length), node in self._ids.items():
            runs.setdefault((parent, key), []).append((length, node))
        for siblings in runs.values():
            siblings.sort()
            for (shorter_length, shorter), (length, node) in pairwise(siblings):
                self._parents[node] = shorter
                self._lengths[node] = length - shorter_length
            for (_, shorter), (_, node) in reversed(list(pairwise(siblings))):
                self._counts[shorter] += self._counts[node]
        self._ids.clear()

    def distinct_tokens(self) -> int:
        """Tokens of all prompts, every common prefix counted once."""
        return self._num_private + sum(self._lengths)

    def nodes(self, max_depth: int, max_children: int) -> tuple[tuple[PrefixNode, ...], int]:
        """The shared runs with which prompts begin, and how many more there are."""
        saved = [(count - 1) * length for count, length in zip(self._counts, self._lengths, strict=True)]
        children: dict[int, list[int]] = {}
        for node in self._deepest_first():
            if self._counts[node] > 1:
                saved[self._parents[node]] += saved[node]
                children.setdefault(self._parents[node], []).append(node)
        return self._shown(children.get(_ROOT, []), children, saved, max_depth, max_children)

    def deepest(self, place_of: dict[int, int]) -> NDArray[np.int64]:
        """Of each prompt, the place of the last node on its way that has one; -1 for none."""
        places = [-1] * len(self._parents)
        for node in reversed(self._deepest_first()):
            places[node] = place_of.get(node, places[self._parents[node]])
        return np.array([places[end] for end in self._ends], dtype=np.int64)

    def _deepest_first(self) -> list[int]:
        """All nodes but the root, every one before its parent."""
        ends: dict[int, int] = {_ROOT: 0}
        for node in range(1, len(self._parents)):
            path = []
            while node not in ends:
                path.append(node)
                node = self._parents[node]
            for below in reversed(path):
                ends[below] = ends[node] + self._lengths[below]
                node = below
        del ends[_ROOT]
        return sorted(ends, key=ends.__getitem__, reverse=True)

    def _shown(
        self, nodes: list[int], children: dict[int, list[int]], saved: list[int], max_depth: int, max_children: int
    ) -> tuple[tuple[PrefixNode, ...], int]:
        if max_depth == 0:
            return (), len(nodes)
        shown: list[PrefixNode] = []
        for node in sorted(nodes, key=lambda node: (-saved[node], node))[:max_children]:
            num_tokens, last = self._lengths[node], node
            # A run that all of its prompts go on with in the same way is one run.
            while len(after := children.get(last, [])) == 1 and self._counts[after[0]] == self._counts[node]:
                last = after[0]
                num_tokens += self._lengths[last]
            below, num_hidden = self._shown(children.get(last, []), children, saved, max_depth - 1, max_children)
            shown.append(PrefixNode(node, num_tokens, self._counts[node], saved[node], below, num_hidden))
        return tuple(shown), len(nodes) - len(shown)
