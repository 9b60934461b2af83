"""The error that workloads raise for a user's mistake."""


class WorkloadError(Exception):
    """A workload that is unknown, or a file that cannot be read. The message names file, line and field."""
