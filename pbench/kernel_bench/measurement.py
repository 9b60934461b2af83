"""What the bench found out about one implementation of one kernel on one shape."""

from dataclasses import dataclass

from pbench.kernel_bench.ceilings import Ceilings
from pbench.kernel_bench.timing import Timing


@dataclass(frozen=True, slots=True)
class Measurement:
    """One implementation of one kernel on one shape."""

    kernel: str
    shape: str
    implementation: str
    num_bytes: int  # the least that a call must move
    flops: int
    timing: Timing | None  # None: it failed, or its result is wrong
    error: float | None = None  # relative to float64; of a copy and of choices, how many differ
    failure: str | None = None
    slowdown: float | None = None  # of the paging tax: over contiguous addressing
    is_fault: bool = False  # ours failed where it should run
    is_paged: bool = True  # KV lies in blocks that a table names, if there is KV

    def share(self, ceilings: Ceilings) -> float | None:
        """Of what the machine reaches; above 1 where a cache serves what was counted as memory; None of host times."""
        if self.timing is None or not (self.num_bytes or self.flops):
            return None
        return ceilings.least_us(self.num_bytes, self.flops) / self.timing.median_us
