"""What a step costs by arithmetic, as the record keeps it."""

from dataclasses import replace

from pbench.engine.config import EngineConfig
from pbench.engine.model_config import PRESETS
from pbench.step_cost import step_cost


def test_the_record_tells_no_cost_where_a_window_cuts_what_is_read() -> None:
    """Rather than one that is too high: how much of each context was read is not recorded."""
    full = EngineConfig(PRESETS["tiny"], max_length=512)
    windowed = replace(full, model=replace(full.model, sliding_window=256))
    assert step_cost(full)["weights_bytes"] > 0
    assert step_cost(windowed) == {}
    assert step_cost(replace(windowed, max_length=256)) == step_cost(full)
