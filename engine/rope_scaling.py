"""How a rotary embedding is stretched over longer contexts than its model first saw. Imports no torch."""

from dataclasses import dataclass

from pbench.engine.errors import ConfigError
from pbench.engine.json_fields import JsonFields

ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Scaling of the rotary frequencies; the formulas stand in ``pbench.engine.rotary.inverse_frequencies``.

    ``rope_type`` is "linear" (every frequency divided by ``factor``) or "llama3" (low frequencies divided by
    ``factor``, high ones kept, a ramp between). The last three fields are those of "llama3" alone. No scaling
    at all ("default") is written as None in the place of a RopeScaling.
    """

    rope_type: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES[1:]:
            raise _unknown_type(self.rope_type)
        if not self.factor >= 1:
            raise ConfigError(f"rope scaling factor {self.factor} is below 1")
        if self.rope_type == "llama3" and not self.high_freq_factor > self.low_freq_factor:
            raise ConfigError(
                f"rope scaling's high_freq_factor {self.high_freq_factor} must exceed its low_freq_factor"
                f" {self.low_freq_factor}"
            )


def read_rope(config_json: JsonFields) -> tuple[float, RopeScaling | None]:
    """Read the base (theta) and the scaling of the rotary embedding from a Hugging Face config.json.

    transformers 4 writes ``rope_theta`` and ``rope_scaling`` (whose type was once called "type"),
    transformers 5 writes both into ``rope_parameters``; when a file has all of them, transformers lets
    ``rope_scaling`` win, and so does this function. Theta is 10000 where the file is silent.

    Raises:
        ConfigError: a rope type other than ROPE_TYPES, a partial rotary embedding, or a field that is missing
            or of another type.

    """
    rope = config_json.child("rope_scaling") or config_json.child("rope_parameters")
    theta = config_json.number("rope_theta", 10000.0)
    _refuse_partial(config_json)
    if rope is None:
        return theta, None
    theta = rope.number("rope_theta", theta)
    _refuse_partial(rope)
    rope_type = rope.text("rope_type", rope.text("type", "default"))
    match rope_type:
        case "default":
            return theta, None
        case "linear":
            return theta, RopeScaling("linear", rope.number("factor"))
        case "llama3":
            return theta, RopeScaling(
                "llama3",
                factor=rope.number("factor"),
                low_freq_factor=rope.number("low_freq_factor"),
                high_freq_factor=rope.number("high_freq_factor"),
                original_max_position_embeddings=rope.integer("original_max_position_embeddings"),
            )
    raise _unknown_type(rope_type)


def _refuse_partial(fields: JsonFields) -> None:
    if (share := fields.number("partial_rotary_factor", 1.0)) != 1.0:
        raise ConfigError(f"{fields.prefix}partial_rotary_factor is {share}; supported: 1")


def _unknown_type(rope_type: str) -> ConfigError:
    return ConfigError(f"rope type {rope_type!r} is not supported; supported: {', '.join(ROPE_TYPES)}")
