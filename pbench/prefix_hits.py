"""What each shared prefix of a workload came to: how many requests found it in an engine's cache."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pbench.results import PREFIX_COLUMNS, PREFIX_FILE, Run, write_table
from pbench.workloads.prefixes import PrefixPaths, prefix_paths

if TYPE_CHECKING:
    import pandas as pd

    from pbench.workloads.workload import Workload


def write_prefix_hits(folder: Path, workload: "Workload") -> None:
    """Add the table of shared prefixes to a run's ``folder``; none where no two prompts begin alike."""
    paths = prefix_paths(workload.requests)
    requests = Run(folder).requests()
    by_repeat = requests[requests["num_prefix_hit_tokens"].notna()].groupby(["engine", "repeat"], sort=False)
    tables = [
        prefix_hits(paths, rows, str(rows["engine"].iloc[0]), int(rows["repeat"].iloc[0])) for _, rows in by_repeat
    ]
    if paths.prefixes and tables:
        import pandas as pd

        write_table(folder / PREFIX_FILE, pd.concat(tables, ignore_index=True), PREFIX_COLUMNS)


def prefix_hits(paths: PrefixPaths, requests: "pd.DataFrame", engine: str, repeat: int = 1) -> "pd.DataFrame":
    """A request's hits are the leading tokens of its prompt: each prefix on its way gets what of them lies in it."""
    import pandas as pd

    table = pd.DataFrame(paths.prefixes)
    table["prefix"], table["engine"], table["repeat"] = np.arange(len(table)), engine, repeat
    num_hits = requests["num_prefix_hit_tokens"].to_numpy(dtype=np.int64)
    places = paths.deepest[requests["request_id"].to_numpy(dtype=np.int64)]
    hit_tokens, num_hit_requests = np.zeros(len(table), np.int64), np.zeros(len(table), np.int64)
    # Children before parents: once a prefix is counted, its requests stand at its parent.
    for place in range(len(table) - 1, -1, -1):
        prefix = paths.prefixes[place]
        is_here = places == place
        found = np.clip(num_hits[is_here] - prefix.start, 0, prefix.num_tokens)
        hit_tokens[place], num_hit_requests[place] = found.sum(), np.count_nonzero(found)
        places[is_here] = prefix.parent
    table["hit_tokens"], table["num_hit_requests"] = hit_tokens, num_hit_requests
    return table
