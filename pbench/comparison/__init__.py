"""Engines and runs side by side: the table at the end of a run, and runs against each other."""
