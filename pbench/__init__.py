"""pbench: measure what paged KV-cache memory buys on your traffic.

Importing this package is cheap on purpose: every heavy import (torch, pandas, plotly) happens in the
module that needs it.
"""

from pbench.version import __version__

__all__ = ["__version__"]
