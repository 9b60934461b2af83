"""What the PagedAttention paper measured, to stand beside what was measured here.

Source: W. Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention",
SOSP 2023, figure 2: KV memory of OPT-13B (15 728 slots, maximum length 2048), in % of the pool.
"""

from collections.abc import Mapping
from dataclasses import dataclass

CITATION = "Kwon et al., SOSP 2023, figure 2: OPT-13B, 15 728 slots, maximum length 2048"


@dataclass(frozen=True, slots=True)
class PaperBar:
    """One bar of figure 2: share of the pool in % by KVUsage's column.

    The paper's "external fragmentation & others" includes what was never allocated; it stands under "external". Of the
    paged system it gives the token states alone; the rest, never broken down, stands under "internal", where a
    paged memory's only waste is (tails of last blocks).
    """

    label: str
    percent_by_kind: Mapping[str, float]


FIGURE_2 = (
    PaperBar("paper: contiguous, max", {"token_state": 20.4, "reserved": 13.3, "internal": 57.3, "external": 8.9}),
    PaperBar("paper: contiguous, pow2", {"token_state": 26.8, "reserved": 17.9, "internal": 13.6, "external": 41.6}),
    PaperBar("paper: contiguous, oracle", {"token_state": 38.2, "reserved": 25.2, "external": 36.6}),
    PaperBar("paper: paged", {"token_state": 96.3, "internal": 3.7}),
)
