"""The built-in workloads. ``BUILT_INS`` lists them in the order in which they are shown."""

from pbench.workloads.builtin.adversaries import FRAGMENTATION, PREFIX_THRASH
from pbench.workloads.builtin.chat import CHAT_MULTI_TURN, CHAT_SHARED_PROMPT
from pbench.workloads.builtin.lengths import (
    ALPACA_LENGTHS,
    CODE_COMPLETION,
    LONG_CONTEXT,
    REASONING,
    SHAREGPT_LENGTHS,
    SUMMARISE,
    UNIFORM,
)
from pbench.workloads.builtin.mixed import MIXED
from pbench.workloads.builtin.prompting import AGENT_TOOLS, FEW_SHOT, RAG_LONG_CONTEXT
from pbench.workloads.builtin.sampling import BEAM_SEARCH, PARALLEL_SAMPLING
from pbench.workloads.definition import Definition

BUILT_INS: tuple[Definition, ...] = (
    CHAT_SHARED_PROMPT,
    CHAT_MULTI_TURN,
    FEW_SHOT,
    RAG_LONG_CONTEXT,
    AGENT_TOOLS,
    CODE_COMPLETION,
    SUMMARISE,
    REASONING,
    PARALLEL_SAMPLING,
    BEAM_SEARCH,
    SHAREGPT_LENGTHS,
    ALPACA_LENGTHS,
    UNIFORM,
    LONG_CONTEXT,
    MIXED,
    FRAGMENTATION,
    PREFIX_THRASH,
)
