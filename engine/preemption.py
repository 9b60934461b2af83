"""What giving up a running request's KV costs: computing it again, or swapping it out and back."""

from dataclasses import dataclass

PREEMPTION_MODES = ("recompute", "swap", "auto")


@dataclass(frozen=True, slots=True)
class PreemptionCosts:
    """Both ways' cost for a token of KV, as measured while the engine warmed up.

    Recomputing costs what prefill costs; swapping costs two transfers over the host's bus. Which is cheaper depends on
    the model, the GPU and the bus (Kwon et al., SOSP 2023, 7.3: small blocks favour recomputation).
    """

    recompute_ns_per_token: float
    swap_ns_per_token: float  # out and back

    @property
    def is_swap_cheaper(self) -> bool:
        """Whether to swap rather than to compute again."""
        return self.swap_ns_per_token < self.recompute_ns_per_token
