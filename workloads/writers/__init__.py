"""Writers of workload files: our own format, and what other tools play."""
