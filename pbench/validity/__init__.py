"""Whether the figures of a run can be believed: checks of a repeat, of its machine, and of the run as a whole."""
