"""Where the time of an engine's steps goes, and what torch itself can record of them."""
