"""What a workload's prompts share, for a person."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from pbench.units import format_number
from pbench.workloads.ideal_cache import ideal_hits
from pbench.workloads.prefixes import PrefixNode, PrefixSharing, prefix_sharing

if TYPE_CHECKING:
    from pbench.workloads.table import RequestTable


def prefixes(requests: "RequestTable", block_size: int, cache_blocks: Sequence[int]) -> RenderableType:
    """The tree of common prefixes, and the hits of ideal caches of ``cache_blocks`` blocks and of unlimited ones."""
    sharing = prefix_sharing(requests)
    share = sharing.saved_tokens / sharing.total_tokens
    head = Text.assemble(
        ("prefixes ", "bold"),
        f"{format_number(sharing.total_tokens)} prompt tokens, {format_number(sharing.distinct_tokens)} when every"
        f" common prefix counts once: sharing saves {100 * share:.2f} % at most",
    )
    if sharing.saved_tokens == 0:
        return Text.assemble(("prefixes ", "bold"), "no prompt begins like another: there is nothing to share")
    return Group(head, _tree(sharing), Text(), _hits(requests, block_size, cache_blocks))


def _tree(sharing: PrefixSharing) -> Tree:
    tree = Tree("all prompts", guide_style="dim")
    _grow(tree, sharing.roots, sharing.num_hidden_roots, sharing.total_tokens)
    return tree


def _grow(tree: Tree, nodes: Sequence[PrefixNode], num_hidden: int, total_tokens: int) -> None:
    for node in nodes:
        branch = tree.add(
            f"{format_number(node.num_tokens)} tokens of {format_number(node.num_requests)} requests,"
            f" saves {100 * node.saved_tokens / total_tokens:.2f} %{' with what follows' if node.children else ''}"
        )
        _grow(branch, node.children, node.num_hidden, total_tokens)
    if num_hidden:
        tree.add(Text(f"{format_number(num_hidden)} more", style="dim"))


def _hits(requests: "RequestTable", block_size: int, cache_blocks: Sequence[int]) -> RenderableType:
    capacities: tuple[int | None, ...] = (*cache_blocks, None)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(f"ideal prefix cache, blocks of {block_size} tokens")
    for capacity in capacities:
        table.add_column("unlimited" if capacity is None else f"{format_number(capacity)} blocks", justify="right")
    for label, is_partial_counted in (("every block of a prompt", True), ("full blocks only, as an engine", False)):
        hits = ideal_hits(requests, block_size=block_size, capacities=capacities, is_partial_counted=is_partial_counted)
        table.add_row(label, *(f"{100 * each.rate:.2f} %" for each in hits))
    note = Text(
        "Hits of all blocks looked up: requests one after the other in order of arrival, LRU, outputs not cached; a"
        " block hits only after all before it.",
        style="dim",
    )
    return Group(table, note)
