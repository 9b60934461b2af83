"""How a memory stands while more requests wait than it can take in: the scheduler over it, in simulated time."""

from collections.abc import Iterable
from dataclasses import dataclass

from pbench.engine.config import EngineConfig
from pbench.engine.memory import KVMemory
from pbench.engine.request import Request
from pbench.engine.roofline import Roofline, Speed
from pbench.engine.scheduler import Scheduler
from pbench.engine.simulation import SimulatedClock, SimulatedRunner
from pbench.errors import UsageError

# Requests that start together are all young at once; by then their ages have mixed.
WARM_UP_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Saturation:
    """Averages over the time in which requests waited. The first four are shares of the pool, in %, and sum to 100."""

    token_state_pct: float
    reserved_pct: float
    internal_pct: float
    unusable_pct: float  # external and free: held by nobody, and too little or too scattered for who waits
    saved_pct: float  # slots that sharing saves, share of those that would be held without it
    mean_running: float  # requests
    num_steps: int
    num_preemptions: int
    num_moved_slots: int


def saturate(memory: KVMemory, config: EngineConfig, requests: Iterable[Request], speed: Speed) -> Saturation:
    """Offer all requests at once and average over the steps from which requests still wait.

    Left out are the steps until a tenth of the requests has finished, and those after the queue has run empty. A step
    counts for as long as it takes by the roofline of ``config.model`` at ``speed``.

    Raises:
        UsageError: the queue ran empty before anything could be averaged.

    """
    clock = SimulatedClock()
    runner = SimulatedRunner(config, Roofline(config, speed), clock)
    scheduler = Scheduler(
        memory,
        max_batch_tokens=config.max_batch_tokens,
        max_running=config.max_running,
        is_prefill_chunked=config.is_prefill_chunked,
    )
    for request in requests:
        scheduler.add(request, added_ns=0)
    num_requests, num_finished = len(scheduler.waiting), 0
    token_state = reserved = internal = unusable = saved = running = total_ns = 0  # slots x ns, requests x ns, ns
    num_steps = num_preemptions = num_moved_slots = 0
    while True:
        start_ns = clock()
        planned = scheduler.schedule(start_ns)
        assert planned is not None, "every step is complete before the next is planned"
        plan, counts = planned
        if not scheduler.waiting:
            break
        choices = runner.launch(plan).tolist()
        usage = memory.usage(scheduler.head)
        if num_finished >= WARM_UP_SHARE * num_requests:
            step_ns = clock() - start_ns
            token_state += usage.token_state * step_ns
            reserved += usage.reserved * step_ns
            internal += usage.internal * step_ns
            unusable += (usage.external + usage.free + usage.cached) * step_ns
            saved += usage.shared_saved * step_ns
            running += counts.num_running * step_ns
            total_ns += step_ns
            num_steps += 1
            num_preemptions += counts.num_preempted
            num_moved_slots += sum(num_slots for _, _, num_slots in plan.moves)
        _, finished = scheduler.complete(choices, clock())
        num_finished += len(finished)
    if not num_steps:
        raise UsageError(f"{num_requests} requests are too few: the pool took all of them in; use more --requests")
    slots_ns = memory.num_slots * total_ns
    return Saturation(
        token_state_pct=100 * token_state / slots_ns,
        reserved_pct=100 * reserved / slots_ns,
        internal_pct=100 * internal / slots_ns,
        unusable_pct=100 * unusable / slots_ns,
        saved_pct=100 * saved / (token_state + reserved + internal + saved),
        mean_running=running / total_ns,
        num_steps=num_steps,
        num_preemptions=num_preemptions,
        num_moved_slots=num_moved_slots,
    )
