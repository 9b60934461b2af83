"""How large the pool of a run may be on this GPU: measured in a process of its own, which gives all memory back."""

import json
import subprocess
import sys
from dataclasses import asdict, replace

from pbench.engine.errors import EngineError
from pbench.errors import UsageError
from pbench.job import EngineOptions


def measure_pool_bytes(engine: EngineOptions, gpu_memory_utilization: float) -> int:
    """Bytes of the pool that the share of the GPU's memory leaves room for.

    Raises:
        UsageError: it leaves none, or the model cannot be loaded; the message says why.
    """
    from pbench.worker_process import worker_environment

    question = json.dumps({"engine": asdict(engine), "gpu_memory_utilization": gpu_memory_utilization})
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pbench.pool_probe", question],
        capture_output=True,
        text=True,
        check=False,
        env=worker_environment(),
    )
    if done.returncode != 0:
        reason = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise UsageError(f"--gpu-memory-utilization {gpu_memory_utilization}: the pool could not be measured: {reason}")
    return int(done.stdout.splitlines()[-1])  # libraries may print before it


def main() -> int:
    """Answer the question on the command line."""
    from pbench.engine.loading import measure_pool

    question = json.loads(sys.argv[1])
    engine = EngineOptions(**question["engine"])
    try:
        config = replace(engine.config(), gpu_memory_utilization=question["gpu_memory_utilization"])
        print(measure_pool(config, engine.weights).kv_memory_bytes)
    except EngineError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
