"""Trials of tilings on a GPU: the search's ``measure``, on the inputs and by the clock of the bench."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from pbench.kernel_bench.cases import attention_error, shared_runs
from pbench.kernel_bench.inputs import AttentionInputs, Buffers, attention_inputs
from pbench.kernel_bench.shapes import AttentionShape, Heads
from pbench.kernel_bench.timing import Timing, time_calls
from pbench.kernels.decode_attention import decode_attention_triton
from pbench.kernels.decode_plan import DecodePlan, plan_decode
from pbench.kernels.launch import FP8, DeviceLimits, device_limits
from pbench.kernels.prefill_attention import prefill_attention_triton
from pbench.kernels.tiling import (
    DecodeTiling,
    Operands,
    PrefillTiling,
    SharedTiling,
    Tiling,
    decode_rule,
    prefill_rule,
    shared_rule,
)

# A result is right if it is not further from float64 than this many times what the default tiling gives.
MAX_ERROR_RATIO = 2.0


@dataclass(frozen=True, slots=True)
class TuningPlan:
    """For which operands tilings are tried, and how."""

    device: torch.device
    heads: Heads
    dtype: torch.dtype = torch.bfloat16
    has_fp8: bool = False  # K and V in 8-bit floats
    block_size: int = 16
    num_samples: int = 10
    seed: int = 0


class Trials:
    """Times tilings of one kernel ("decode", "prefill", "shared") on shapes, whose inputs it holds."""

    def __init__(self, kernel: str, shapes: Iterable[AttentionShape], plan: TuningPlan) -> None:
        """Allocate and fill the inputs."""
        self._plan = plan
        self._exact: dict[str, AttentionInputs] = {}
        self._inputs: dict[str, AttentionInputs] = {}
        buffers = Buffers.of(plan.device, plan.dtype, plan.seed)
        for shape in shapes:
            exact = attention_inputs(shape, plan.heads, plan.block_size, buffers)
            self._exact[shape.name] = exact
            self._inputs[shape.name] = replace(exact, kv=exact.kv.to(FP8)) if plan.has_fp8 else exact
        some = next(iter(self._inputs.values()))
        self.limits: DeviceLimits = device_limits(some.kv)
        self.operands = Operands.of(some.queries[0], some.kv)
        self._decode_default = decode_rule(self.limits, self.operands)
        num_rows = max(inputs.queries[0].shape[0] for inputs in self._inputs.values()) * self.operands.group
        defaults: dict[str, Tiling] = {
            "decode": self._decode_default,
            "prefill": prefill_rule(self.limits, self.operands, num_rows),
            "shared": shared_rule(self.limits, self.operands),
        }
        self.default = defaults[kernel]
        self._default_errors: dict[str, float] = {}

    @property
    def shapes(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._inputs)

    def measure(self, tiling: Tiling, shape: str) -> Timing | None:
        """How long a tiling takes on a shape; None if it does not compile or fit, or if its result is wrong."""
        from triton.errors import TritonError

        try:
            calls = self._calls(tiling, self._inputs[shape])
            error = attention_error(self._exact[shape], calls[0]())
            if tiling == self.default:
                self._default_errors.setdefault(shape, error)
            elif not error <= MAX_ERROR_RATIO * self._default_errors[shape]:
                return None
            return time_calls(calls, self._plan.device, self._plan.num_samples)
        except TritonError:  # too much shared memory, or what the compiler refuses
            return None
        except RuntimeError as failure:
            if "PassManager" in str(failure):  # the compiler again: its passes do not raise errors of their own
                return None
            raise

    def _calls(self, tiling: Tiling, inputs: AttentionInputs) -> list[Callable[[], Tensor]]:
        outs = [torch.empty_like(query) for query in inputs.queries]
        if isinstance(tiling, PrefillTiling):
            return [partial(_prefill, inputs, index, out, tiling) for index, out in enumerate(outs)]
        decode, shared, runs = self._decode_default, None, None
        if isinstance(tiling, DecodeTiling):
            decode = tiling
        else:
            shared, runs = tiling, shared_runs(inputs, tiling.tile_rows // self.operands.group)
        plan = plan_decode(
            inputs.context_lens,
            runs,
            num_heads=self._plan.heads.num_heads,
            num_kv_heads=self._plan.heads.num_kv_heads,
            head_dim=self._plan.heads.head_dim,
            tiling=decode,
        )
        return [partial(_decode, inputs, index, out, plan, shared) for index, out in enumerate(outs)]


def _prefill(inputs: AttentionInputs, index: int, out: Tensor, tiling: PrefillTiling) -> Tensor:
    return prefill_attention_triton(
        inputs.queries[index],
        inputs.kv,
        inputs.tables[index],
        inputs.query_start,
        inputs.context_lens,
        out,
        scale=inputs.scale,
        is_contiguous=inputs.is_contiguous,
        tiling=tiling,
    )


def _decode(
    inputs: AttentionInputs, index: int, out: Tensor, plan: DecodePlan, shared_tiling: SharedTiling | None
) -> Tensor:
    return decode_attention_triton(
        inputs.queries[index],
        inputs.kv,
        inputs.tables[index],
        inputs.context_lens,
        out,
        scale=inputs.scale,
        is_contiguous=inputs.is_contiguous,
        plan=plan,
        shared_tiling=shared_tiling,
    )
