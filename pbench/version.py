"""The version of this package, alone in its file so that the build can read it without imports."""

__version__ = "0.1.0"
