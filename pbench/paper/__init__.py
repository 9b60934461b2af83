"""The PagedAttention paper's memory experiments, measured again."""
