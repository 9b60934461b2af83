"""The engine: one model, one scheduler, one sampler, and two memories behind the ``KVMemory`` protocol.

It imports ``pbench.kernels`` and nothing else of ours. It never sees the harness: it exposes its state
(``StepRecord``, ``KVUsage``, ``RequestRecord``) and the harness reads it.
"""
