"""The gate that CI runs: exact counters against a baseline, and throughput of two revisions in pairs of runs."""
