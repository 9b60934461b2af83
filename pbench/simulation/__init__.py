"""Simulated runs: a workload through scheduler and memories without a model."""
