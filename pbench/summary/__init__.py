"""From the tables of a run to its figures: metrics, latencies, steady state, repeats and their intervals."""
