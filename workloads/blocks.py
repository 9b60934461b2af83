"""Prompts as blocks: each block named by its tokens and all before them, as a prefix cache knows it."""

from collections.abc import Iterator
from typing import NamedTuple

from pbench.workloads.prefixes import prompt_parts
from pbench.workloads.row import PRIVATE
from pbench.workloads.table import RequestTable


class PromptBlocks(NamedTuple):
    """The blocks of one prompt, in order: first those that other prompts may have too, then the others.

    Names are whole numbers from 0. Equal names are equal tokens after equal tokens, so they could share KV.
    """

    names: list[int]
    own_names: range
    num_partial: int  # 1 when the prompt does not fill its last block, else 0

    @property
    def num_blocks(self) -> int:
        """Blocks of the prompt, the partial one too."""
        return len(self.names) + len(self.own_names)

    def full(self) -> "PromptBlocks":
        """Without the partial block."""
        if not self.num_partial:
            return self
        if self.own_names:
            return PromptBlocks(self.names, self.own_names[:-1], 0)
        return PromptBlocks(self.names[:-1], self.own_names, 0)


def prompt_blocks(requests: RequestTable, block_size: int) -> Iterator[PromptBlocks]:
    """The blocks of each prompt, of ``block_size`` tokens, the last perhaps of fewer."""
    known: dict[tuple[int, ...], int] = {}
    num_names = 0
    for parts, input_length in zip(prompt_parts(requests), requests.input_length.tolist(), strict=True):
        names: list[int] = []
        parent = -1
        pieces: tuple[int, ...] = ()  # key, first token and number of tokens of each piece of the block in hand
        num_missing = block_size
        for key, length in parts:
            if key == PRIVATE:  # this block and all that follow are the prompt's own
                break
            start = 0
            while start < length:
                num_taken = min(length - start, num_missing)
                pieces = (*pieces, key, start, num_taken)
                start += num_taken
                num_missing -= num_taken
                if num_missing == 0:
                    parent = known.setdefault((parent, *pieces), num_names)
                    num_names += parent == num_names
                    names.append(parent)
                    pieces, num_missing = (), block_size
        else:
            if pieces:
                name = known.setdefault((parent, *pieces), num_names)
                num_names += name == num_names
                names.append(name)
        own_names = range(num_names, num_names + -(-input_length // block_size) - len(names))
        num_names += len(own_names)
        yield PromptBlocks(names, own_names, int(input_length % block_size > 0))
