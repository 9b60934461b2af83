"""Where the time of a run went, against the least that its machine allows."""
