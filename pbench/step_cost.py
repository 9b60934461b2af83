"""What a step costs by arithmetic, as the record keeps it: readers of a run then need no model to draw its roofline."""

from pbench.engine.config import EngineConfig
from pbench.engine.errors import ConfigError
from pbench.engine.model_config import DTYPE_BYTES
from pbench.engine.roofline import ModelCost


def step_cost(config: EngineConfig) -> dict[str, int]:
    """The factors of ``pbench.engine.roofline``; empty for a model whose parameters are not known.

    Empty too where a sliding window cuts what is read: the record does not tell how much of each context it left.

    ``weights_bytes`` are read once a step. FLOPs: ``token_flops`` for each token computed, ``sample_flops`` for each
    token sampled, ``pair_flops`` for each pair of a query and a key that it sees. What KV costs is ``slot_bytes``.
    """
    if any(config.windows):
        return {}
    try:
        cost = ModelCost.of(config.model)
    except ConfigError:
        return {}
    num_parameters = cost.num_layer_parameters + cost.num_head_parameters
    return {
        "weights_bytes": num_parameters * DTYPE_BYTES[config.dtype],
        "token_flops": 2 * cost.num_layer_parameters,
        "sample_flops": 2 * cost.num_head_parameters,
        "pair_flops": cost.attention_flops,
    }
