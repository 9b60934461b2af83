"""The error of an engine that is not ours."""


class ExternalError(Exception):
    """It cannot be started or reached, or stopped working. The message names it and the remedy."""
