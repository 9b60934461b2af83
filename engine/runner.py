"""Runner: carries a StepPlan out on the device. It holds the model and the pool."""

import time
from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from pbench.engine.attention import Batch, BatchAttention, InvariantAttention
from pbench.engine.batches import Batches, Layout, StepRows
from pbench.engine.config import EngineConfig
from pbench.engine.model import Model
from pbench.engine.model_config import FP8
from pbench.engine.phases import Phases, announced, no_phases
from pbench.engine.plan import PlannedSequence, StepPlan, Swaps
from pbench.engine.sampling import Choices, TokenChooser, beam_candidates, token_scores
from pbench.engine.step_graphs import StepGraphs, decode_sizes, max_prefills, mixed_sizes
from pbench.engine.swapper import Swapper
from pbench.engine.transfers import to_device
from pbench.kernels.compile_ahead import can_compile_ahead, compiling_ahead
from pbench.kernels.copy_blocks import copy_blocks
from pbench.kernels.launch import FP8 as KV_FP8


class Runner:
    """Runs one step after the other: copies, then the whole batch through the model, then a token for every sample.

    On a GPU nothing here waits for the device: everything runs in one stream, in the order of the steps. What a step
    chooses stays on the device, where the next step finds the tokens that its plan has placeholders for.
    """

    def __init__(self, config: EngineConfig, model: Model) -> None:
        self.config = config
        self.model = model
        self.device = torch.device(config.device)
        self.is_contiguous = config.memory != "paged"
        self.block_size = config.num_slots if self.is_contiguous else config.block_size
        shape = config.model
        self.pool = torch.zeros(
            (
                shape.num_layers,
                config.num_slots // self.block_size,
                2,
                shape.num_kv_heads,
                self.block_size,
                shape.head_dim,
            ),
            dtype=KV_FP8 if config.kv_dtype == FP8 else getattr(torch, config.dtype),
            device=self.device,
        )
        self._swapper = Swapper(self.pool, config.num_host_blocks) if config.num_host_blocks else None
        self._batches = Batches(config, self.pool)
        self._windows = config.windows
        self._chooser = TokenChooser(config.max_running, shape.vocab_size, self.device)
        self._phases: Phases = no_phases
        self._graphs: StepGraphs | None = None
        self._decode_sizes: list[int] = []  # that graphs were captured for
        self._mixed_sizes: list[int] = []
        self._graphs_bytes = 0
        self.weights_bytes = sum(parameter.nbytes for parameter in model.parameters())

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Choices:
        """See ``pbench.engine.engine.StepRunner``."""
        self._chooser.seen.release(plan.released)
        phases = self._phases
        with phases("prepare"):
            step = self._batches.take(plan)
        if self._swapper is not None:
            with phases("swap"):
                self._swapper.run(plan.swaps)
        if plan.moves or plan.copies:
            with phases("copy"):
                self._copy(plan)
        captured = self._captured_layout(step, plan)
        layout = captured or self._batches.layout_of(step)
        with phases("prepare"):
            self._batches.stage(step, layout)
        if self._graphs is None or captured is None:
            with phases("forward"):
                rows = self._index(self._padded(_last_rows(plan.sequences)), layout.num_tokens)
                outputs = self._forward(self._batches.batch(layout), rows)
        else:
            with phases("replay"):
                outputs = self._graphs.replay(layout)
        if layout.is_greedy:
            return Choices(self._batches.read_back(plan.num_samples))
        with phases("sample"):
            if captured is not None and not layout.num_prefills:
                logits = self._select(outputs[: plan.num_decodes], _last_rows(plan.sequences))
            else:
                hidden = outputs if captured is None else self._select(outputs, self._padded(_kept_rows(plan, layout)))
                if plan.is_greedy:
                    self.model.choose(hidden, self._batches.chosen[: len(hidden)])
                    return Choices(self._batches.read_back(plan.num_samples))
                logits = self.model.logits(hidden)[: plan.num_samples]
            samples = [sample for seq in plan.sequences for sample in seq.samples]
            chosen = self._batches.chosen[: plan.num_samples]
            chosen.copy_(self._chooser.choose(logits, plan.sequences))
            tokens = self._batches.read_back(plan.num_samples)
            return Choices(tokens, beam_candidates(logits, samples), token_scores(logits, chosen, samples))

    def announce(self, phases: Phases) -> None:
        """See ``pbench.engine.engine.Engine``."""
        self._phases = self.model.phases = phases

    def _copy(self, plan: StepPlan) -> None:
        for source, destination, num_slots in plan.moves:  # every layer at once; the ranges never overlap
            self.pool[..., destination : destination + num_slots, :] = self.pool[..., source : source + num_slots, :]
        if plan.copies:
            copy_blocks(self.pool, to_device(plan.copies, torch.int64, self.device))

    def memory_bytes(self) -> dict[str, int]:
        """See ``pbench.engine.engine.StepRunner``."""
        buffers = sum(buffer.nbytes for buffer in self.model.buffers())
        buffers += self._batches.num_bytes + self._chooser.seen.nbytes
        return {
            "weights": self.weights_bytes,
            "pool": self.pool.nbytes,
            "buffers": buffers,
            "graphs": self._graphs_bytes,
        }

    @torch.inference_mode()
    def time_swap(self, num_blocks: int) -> int:
        """See ``pbench.engine.engine.StepRunner``. The pool's contents stay as they are."""
        assert self._swapper is not None, "nothing is swapped here"
        pairs = [(block_id, block_id) for block_id in range(min(num_blocks, self.pool.shape[1]))]
        durations = []
        for _ in range(3):
            start_ns = time.monotonic_ns()
            self._swapper.run(Swaps(pairs, pairs))
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            durations.append(time.monotonic_ns() - start_ns)
        return min(durations)

    @torch.inference_mode()
    def compile_ahead(self, prompt_lengths: Sequence[int]) -> None:
        """See ``pbench.engine.engine.StepRunner``: the kernels of all steps that are captured and of these prompts."""
        if self.device.type != "cuda" or not can_compile_ahead():
            return
        prompts = [self._batches.layout_of_prompt(length) for length in prompt_lengths if length > 1]  # 1 is a decode
        num_layers = num_unlike_layers(self._windows)
        self._batches.clear()  # what is staged within arrives nowhere, and what earlier steps left has another layout
        with compiling_ahead():
            self._chooser.warm_up(self.model.dtype)
            for layout in self._layouts_to_capture() + prompts:
                self._batches.stage_nothing(layout)
                self._run_staged(layout, num_layers)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Capture CUDA graphs: of decode steps for a set of batch sizes, of small mixed steps for a set of tokens."""
        if self.device.type != "cuda":
            return
        layouts = self._layouts_to_capture()
        self._chooser.warm_up(self.model.dtype)
        if self.config.has_cuda_graphs:
            torch.cuda.synchronize()
            num_reserved = torch.cuda.memory_reserved(self.device)
            self._graphs = StepGraphs(layouts, self._batches.stage_nothing, self._run_staged)
            self._graphs_bytes = torch.cuda.memory_reserved(self.device) - num_reserved
        else:  # compile what requests that share nothing do not use
            self._batches.stage_nothing(layouts[-1])
            self._run_staged(layouts[-1])
        torch.cuda.synchronize()

    def _layouts_to_capture(self) -> list[Layout]:
        """The largest first."""
        max_running, width, can_share = self.config.max_running, self._batches.width, self._batches.can_share
        self._decode_sizes = decode_sizes(max_running)
        self._mixed_sizes = mixed_sizes(self.config.max_batch_tokens, self.model.layer_flops)
        mixed = [self._mixed_layout(size) for size in reversed(self._mixed_sizes)]
        decodes = [
            Layout(size, size, 0, width, has_shared, is_greedy)
            for size in reversed(self._decode_sizes)
            for has_shared in ((False, True) if can_share else (False,))
            for is_greedy in (False, True)
        ]
        return mixed + decodes

    def _mixed_layout(self, size: int) -> Layout:
        """Of captured steps of so many tokens, with prompts."""
        most = self.config.max_running
        num_prefills = min(max_prefills(size), most)
        return Layout(size, min(size, most), num_prefills, self._batches.width, self._batches.can_share)

    def _captured_layout(self, step: StepRows, plan: StepPlan) -> Layout | None:
        """The smallest layout with a graph that holds a step; None when there is none."""
        if self._graphs is None:
            return None
        sizes = self._mixed_sizes if step.num_prefills else self._decode_sizes
        index = bisect_left(sizes, step.num_tokens)
        if index == len(sizes):
            return None
        size = sizes[index]
        if step.num_prefills:
            layout = self._mixed_layout(size)
        else:
            is_greedy = plan.is_greedy and plan.has_one_each
            layout = Layout(size, size, 0, self._batches.width, step.runs is not None, is_greedy)
        return layout if step.num_prefills <= layout.num_prefills else None

    def _run_staged(self, layout: Layout, num_layers: int | None = None) -> Tensor:
        """Run the step that is staged: to hidden states, to logits of decodes, or to the tokens of greedy ones."""
        batch = self._batches.batch(layout)
        hidden = self._forward(batch, batch.last_tokens() if layout.keeps_last_tokens else None, num_layers)
        if layout.num_prefills:
            return hidden
        if not layout.is_greedy:
            return self.model.logits(hidden)
        chosen = self._batches.chosen[: layout.num_tokens]
        self.model.choose(hidden, chosen)
        return chosen

    def _padded(self, rows: list[int]) -> list[int]:
        """The rows of the hidden states that samples are chosen by, and some once more.

        There are as many as in some graph: for other numbers of rows a library may choose a kernel that it has not
        loaded yet, and loading one takes longer than a step.
        """
        index = bisect_left(self._decode_sizes, len(rows))
        is_padded = self._graphs is not None and rows and index < len(self._decode_sizes)
        num_more = self._decode_sizes[index] - len(rows) if is_padded else 0
        return rows + rows[-1:] * num_more

    def _select(self, tensor: Tensor, rows: list[int]) -> Tensor:
        index = self._index(rows, len(tensor))
        return tensor if index is None else tensor.index_select(0, index)

    def _index(self, rows: list[int], num_rows: int) -> Tensor | None:
        """``rows`` on the device; None where they are all, in their order."""
        if len(rows) == num_rows and rows == list(range(num_rows)):
            return None
        return to_device(rows, torch.int64, self.device)

    def _forward(self, batch: Batch, rows: Tensor | None, num_layers: int | None = None) -> Tensor:
        """Run a step to the hidden states of all its tokens, or of those at ``rows``."""
        kind = InvariantAttention if self.config.is_batch_invariant else BatchAttention
        attention = kind(batch, self.pool, self._windows, is_contiguous=self.is_contiguous)
        announcing = announced(attention, "attention", self._phases)
        hidden: Tensor = self.model(batch.token_ids, batch.positions, announcing, rows, num_layers)
        return hidden


def num_unlike_layers(windows: Sequence[int | None]) -> int:
    """So many of the first layers launch all variants of kernels that all layers do.

    The first, the last and those between differ, and of those with the same window the first plans for all of them.
    """
    for num_layers in range(3, len(windows)):
        if all(windows[:num_layers].count(window) > 1 for window in set(windows)):
            return num_layers
    return len(windows)


def _last_rows(sequences: list[PlannedSequence]) -> list[int]:
    """The row of each sample's hidden state among those of all tokens: the last of its sequence."""
    rows: list[int] = []
    end = 0
    for seq in sequences:
        end += len(seq.token_ids)
        rows.extend([end - 1] * len(seq.samples))
    return rows


def _kept_rows(plan: StepPlan, layout: Layout) -> list[int]:
    """The row of each sample's hidden state among those that a step with prompts, captured for ``layout``, keeps."""
    if not layout.keeps_last_tokens:
        return _last_rows(plan.sequences)
    padding = layout.num_decodes - plan.num_decodes
    places = ((i if i < plan.num_decodes else i + padding, seq) for i, seq in enumerate(plan.sequences))
    return [place for place, seq in places for _ in seq.samples]
