import pandas as pd

from pbench.prefix_hits import prefix_hits
from pbench.results import PREFIX_COLUMNS
from pbench.workloads.prefixes import prefix_paths
from pbench.workloads.request import Segment
from pbench.workloads.row import Row
from pbench.workloads.table import RequestTable, RequestTableBuilder


def prompts(*segments: tuple[tuple[int, int], ...]) -> RequestTable:
    builder = RequestTableBuilder()
    for parts in segments:
        builder.append(Row(1, None, sum(length for _, length in parts), 1, tuple(Segment(*part) for part in parts)))
    return builder.build()


def test_hits_are_counted_where_they_lie_on_the_way_of_a_prompt() -> None:
    paths = prefix_paths(prompts(((1, 8), (2, 4)), ((1, 8), (2, 4)), ((1, 8), (3, 4)), ((9, 12),)))
    requests = pd.DataFrame({"request_id": [3, 2, 1, 0], "num_prefix_hit_tokens": [0, 6, 12, 0]})
    table = prefix_hits(paths, requests, "paged")[list(PREFIX_COLUMNS)]
    assert table.to_dict("records") == [
        {"engine": "paged", "repeat": 1, "prefix": 0, "parent": -1, "start": 0, "num_tokens": 8, "num_requests": 3}
        | {"num_hit_requests": 2, "hit_tokens": 14},
        {"engine": "paged", "repeat": 1, "prefix": 1, "parent": 0, "start": 8, "num_tokens": 4, "num_requests": 2}
        | {"num_hit_requests": 1, "hit_tokens": 4},
    ]
