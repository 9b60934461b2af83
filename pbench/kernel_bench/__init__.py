"""The bench of the kernels: what is timed, on which inputs, beside whom, against which ceilings."""
