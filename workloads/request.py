"""What one user of a workload sends, and when."""

from dataclasses import dataclass
from typing import NamedTuple


class Segment(NamedTuple):
    """The first ``length`` tokens of the endless token stream named ``key``; equal keys are equal tokens."""

    key: int
    length: int


@dataclass(frozen=True, slots=True)
class WorkloadRequest:
    """One request: its lengths, what of its prompt it shares with others, and when it arrives."""

    request_id: int  # 0.. in order of arrival
    arrival_s: float  # after the start of the workload; 0.0 when all are offered at once
    input_length: int  # tokens of the prompt
    output_length: int  # tokens to generate, for each of the n samples
    segments: tuple[Segment, ...]  # lengths sum to input_length; () when prompt_token_ids is given
    prompt_token_ids: tuple[int, ...] | None = None
    n: int = 1  # samples of one prompt, or hypotheses that are wanted of its beam search
    beam_width: int = 1  # more than 1: beam search
