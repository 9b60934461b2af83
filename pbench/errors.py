"""Errors of the harness. Each carries the exit code of the command that it ends.

PbenchError            exit code 2: what the user gave cannot work; nothing was lost
├── UsageError         an option's value, named with its remedy
├── ResultError        a run folder that cannot be read
├── IncomparableError  exit code 4: measurements that are not of the same thing
└── RunFailedError     exit code 1: the run itself failed; what was measured is kept

The engine and the workloads do not import the harness and raise errors of their own
(``pbench.engine.errors.EngineError``, ``pbench.workloads.errors.WorkloadError``); the command line treats those
as PbenchError with exit code 2.
"""


class PbenchError(Exception):
    """Base of the harness's errors. The message names the value, where it stands, and the remedy."""

    exit_code = 2


class UsageError(PbenchError):
    """An option or argument that cannot work."""


class ResultError(PbenchError):
    """A run folder that is missing, damaged, or of another format."""


class RunFailedError(PbenchError):
    """At least one engine failed while it ran."""

    exit_code = 1


class IncomparableError(PbenchError):
    """Measurements that are not of the same thing. The message names every difference that forbids comparing them."""

    exit_code = 4
