"""Workloads: synthetic definitions and readers of recorded traces. Imports nothing else of ours."""
