"""The pool's map at a bounded number of moments of a run, for the picture of who held what.

A look at the pool costs O(pool) and happens between steps, so looks are rationed: at most one in an interval, and so
few that they take at most ``COST_SHARE`` of the time that has passed. When ``MAX_MOMENTS`` are kept every second one is
dropped and the interval is what remains between two: however long a run, they are spread evenly over it. On a simulated
clock a look takes no time.

Kept in memory and written at the end: a worker that is killed leaves no map.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from pbench.engine.pool_map import SPAN_FIELDS, PoolMap
from pbench.results import POOL_MAP_COLUMNS, POOL_MAP_FILE, write_table

MAX_MOMENTS = 128
FIRST_INTERVAL_NS = 100_000_000
COST_SHARE = 0.001


class PoolHistory:
    """Collects maps of one engine's pool.

    Args:
        take_map: looks at the pool.
        clock: nanoseconds, the clock on which the engine's steps are timed.
        start_ns: of the measurement.
        least_duration_ns: for which the run will go on: moments are spread over it, so that fewer are dropped again.
    """

    def __init__(
        self, take_map: Callable[[], PoolMap], clock: Callable[[], int], start_ns: int, least_duration_ns: int = 0
    ) -> None:
        self._take_map = take_map
        self._clock = clock
        self._start_ns = start_ns
        self._interval_ns = max(FIRST_INTERVAL_NS, least_duration_ns // MAX_MOMENTS)
        self._next_ns = start_ns
        self._spent_ns = 0
        self._moments: list[tuple[int, PoolMap]] = []

    @property
    def times_ns(self) -> list[int]:
        """The moments that are kept, since the start."""
        return [time_ns for time_ns, _ in self._moments]

    @property
    def spent_ns(self) -> int:
        """What all looks together took."""
        return self._spent_ns

    def look(self, now_ns: int) -> None:
        """Between two steps, at ``now_ns``: keep a map, if one is due."""
        if now_ns < self._next_ns:
            return
        begin_ns = self._clock()
        self._moments.append((now_ns - self._start_ns, self._take_map()))
        self._spent_ns += self._clock() - begin_ns
        if len(self._moments) == MAX_MOMENTS:
            del self._moments[1::2]
            # The gaps that are kept: steps, or the ration, may be longer than the interval.
            self._interval_ns = (self._moments[-1][0] - self._moments[0][0]) // (len(self._moments) - 1)
        self._next_ns = max(now_ns + self._interval_ns, self._start_ns + round(self._spent_ns / COST_SHARE))

    def write(self, folder: Path, engine: str, repeat: int = 1) -> None:
        """Write all that is kept as a table of ``POOL_MAP_COLUMNS``; nothing where nothing was kept."""
        if not self._moments:
            return
        import pandas as pd

        times_ns = np.repeat(self.times_ns, [len(each) for _, each in self._moments])
        table = pd.DataFrame(np.concatenate([each for _, each in self._moments]), columns=list(SPAN_FIELDS))
        table["engine"], table["repeat"], table["time_ns"] = engine, repeat, times_ns
        write_table(folder / POOL_MAP_FILE, table, POOL_MAP_COLUMNS)


def gather_pool_maps(folder: Path, journals: Iterable[Path]) -> None:
    """Write the maps that several repeats left in their ``journals`` as one table of the run ``folder``, if any did."""
    import pandas as pd

    paths = (journal / POOL_MAP_FILE for journal in journals)
    tables: list[pd.DataFrame] = [pd.read_parquet(path) for path in paths if path.exists()]
    if tables:
        write_table(folder / POOL_MAP_FILE, pd.concat(tables, ignore_index=True), POOL_MAP_COLUMNS)
