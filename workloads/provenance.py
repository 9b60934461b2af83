"""Where the requests of a workload are from, as a file that is written of them says it."""

from pathlib import Path
from typing import Any

from pbench.workloads.readers.native import header
from pbench.workloads.readers.source import Source
from pbench.workloads.workload import Workload


def provenance(workload: Workload, *, licence: str | None) -> dict[str, Any]:
    """Source, its hash, the licence if it is known, and the options: plain values, ready for JSON.

    Of a source that has such a header itself the header is kept, and its licence counts where none is given.
    """
    known: dict[str, Any] = workload.record()
    if workload.is_file:
        source = Source(Path(workload.source))
        known |= {"source": source.path.name, "source_sha256": source.sha256()}
        earlier = header(source.head())
        if earlier is not None:
            known["imported_from"] = earlier
            licence = licence or earlier.get("licence")
    return known | {"licence": licence}
