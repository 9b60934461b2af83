"""A decoder of the Llama family, with attention injected.

The model computes everything that depends on a token alone. How a token attends to the tokens before it, and
where their keys and values are kept, is the business of the ``Attention`` object that each call receives: so
one model serves every memory.
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pbench.engine.heads import Heads, ProjectedHeads, UnprojectedHeads, most_fused_rows
from pbench.engine.model_config import ModelConfig
from pbench.engine.phases import Phases, no_phases
from pbench.engine.products import FewRowsProducts, Products, WholeProducts, most_few_rows
from pbench.engine.rotary import rotary_table
from pbench.kernels.matmul import matmul
from pbench.kernels.most_likely import most_likely, most_likely_next
from pbench.kernels.rms_norm import rms_norm
from pbench.kernels.rotary_write_kv import HeadNorms, Rotation


class Attention(Protocol):
    """Causal attention of a batch of tokens, over whatever memory holds their keys and values."""

    def __call__(self, layer_index: int, heads: Heads) -> Tensor:
        """Keep the tokens' keys and values, and attend: (T, num_heads, head_dim) of the queries' dtype.

        Args:
            layer_index: which layer's heads these are.
            heads: queries, keys and values, not rotated yet.

        """
        ...


class Model(nn.Module):
    """The decoder: its parameters, and the pass from token ids to hidden states.

    Parameters lie uninitialised on ``device`` until ``pbench.engine.weights`` fills them. No step of the pass
    waits for the device or has a shape that depends on data, so it can be captured in a CUDA graph.
    """

    cos_sin: Tensor  # (max_position_embeddings, 2, head_dim / 2) float32

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        is_batch_invariant: bool = False,
    ) -> None:
        """Allocate the parameters in ``dtype`` on ``device`` ("meta" for their shapes alone).

        Where ``is_batch_invariant``, a token's results do not depend on the other tokens of a call, to the bit.

        Raises:
            ConfigError: the configuration is a KV shape only.

        """
        config.check_runnable()
        super().__init__()
        device = torch.device(device)
        self.config = config
        self.dtype = dtype
        self.phases: Phases = no_phases
        self.embedding = _parameter(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
        self.layers = nn.ModuleList(Layer(config, index, dtype, device) for index in range(config.num_layers))
        self.final_norm = _parameter(config.hidden_size, dtype=dtype, device=device)
        self.head = (
            self.embedding
            if config.is_head_tied
            else _parameter(config.vocab_size, config.hidden_size, dtype=dtype, device=device)
        )
        self.register_buffer("cos_sin", rotary_table(config, device), persistent=False)
        self._is_batch_invariant = is_batch_invariant
        self._whole_products = WholeProducts(matmul if is_batch_invariant else functional.linear)
        self._few_rows_products = FewRowsProducts()
        self._most_few_rows = 0 if is_batch_invariant else most_few_rows(config, self.embedding)
        self._most_fused_rows = min(self._most_few_rows, most_fused_rows(config))

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        attention: Attention,
        rows: Tensor | None = None,
        num_layers: int | None = None,
    ) -> Tensor:
        """Compute the hidden states of a flattened batch of tokens, after the final norm.

        Of the last layer, all behind attention is computed for the tokens alone whose hidden states are wanted: others
        leave nothing but their keys and values.

        Args:
            token_ids: (T,) int64, the tokens of all sequences one after the other.
            positions: (T,) int64, each token's place in its own sequence, below max_position_embeddings.
            attention: called once for each layer, in order.
            rows: (N,) int64, the tokens whose hidden states are wanted; None for all.
            num_layers: leave out those behind so many, for the sake of what is launched; None: leave out none.

        Returns:
            (N, hidden_size) in the model's dtype.

        """
        eps = self.config.rms_norm_eps
        products = self.products(len(token_ids))
        are_fused = 0 < len(token_ids) <= self._most_fused_rows
        layers = cast("list[Layer]", list(self.layers)[:num_layers])
        # A layer's last addition is fused with the norm that follows it: the next layer's first.
        following = [(layer.attention_norm, layer.qkv) for layer in layers[1:]] + [(self.final_norm, None)]
        rotation = Rotation(self.cos_sin, positions)
        residual = functional.embedding(token_ids, self.embedding)
        hidden = rms_norm(residual, layers[0].attention_norm, eps)
        for layer, (following_norm, upcoming) in zip(layers, following, strict=True):
            attended = layer.attend(hidden, rotation, attention, products, are_fused=are_fused).flatten(1)
            if rows is not None and layer is layers[-1]:
                attended, residual = attended.index_select(0, rows), residual.index_select(0, rows)
                products = self.products(len(rows))
            addend = products.addend(attended, layer.attention_output)
            hidden, residual = products.add_norm(addend, residual, layer.feed_forward_norm, eps, layer.gate_up)
            with self.phases("mlp"):
                addend = layer.feed_forward(hidden, products)
            hidden, residual = products.add_norm(addend, residual, following_norm, eps, upcoming)
        return hidden

    @property
    def layer_flops(self) -> int:
        """What the products of a layer compute for a token: a multiplication and an addition for each weight."""
        return 2 * sum(weight.numel() for weight in self.layers[0].parameters() if weight.dim() == 2)

    def products(self, num_tokens: int) -> Products:
        """What multiplies in a pass of so many tokens."""
        return self._few_rows_products if num_tokens <= self._most_few_rows else self._whole_products

    def logits(self, hidden: Tensor) -> Tensor:
        """Score every next token: hidden states (N, hidden_size) -> (N, vocab_size) in the model's dtype."""
        return self._whole_products.linear(hidden, self.head, None)

    def choose(self, hidden: Tensor, out: Tensor) -> None:
        """Write the most likely token after each hidden state, (N, hidden_size), into ``out``: int64 (N,)."""
        if self._is_batch_invariant:
            most_likely(self.logits(hidden), out)
        else:
            most_likely_next(hidden, self.head, out)


class Layer(nn.Module):
    """One decoder layer. Query, key and value are one product, and so are gate and up."""

    def __init__(self, config: ModelConfig, index: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.config = config
        self.index = index
        hidden_size, qkv_size = config.hidden_size, config.query_size + 2 * config.kv_size

        def parameter(*shape: int) -> nn.Parameter:
            return _parameter(*shape, dtype=dtype, device=device)

        self.attention_norm = parameter(hidden_size)
        self.qkv = parameter(qkv_size, hidden_size)
        self.qkv_bias = parameter(qkv_size) if config.has_attention_bias else None
        self.query_norm = parameter(config.head_dim) if config.has_qk_norm else None
        self.key_norm = parameter(config.head_dim) if config.has_qk_norm else None
        self.attention_output = parameter(hidden_size, config.query_size)
        self.feed_forward_norm = parameter(hidden_size)
        self.gate_up = parameter(2 * config.intermediate_size, hidden_size)
        self.down = parameter(hidden_size, config.intermediate_size)

    def attend(
        self, hidden: Tensor, rotation: Rotation, attention: Attention, products: Products, *, are_fused: bool
    ) -> Tensor:
        """Compute what the heads attend to: (T, hidden_size), normed -> (T, num_heads, head_dim).

        Where ``are_fused``, one kernel computes queries, keys and values and all that becomes of them before attention.
        """
        if self.query_norm is not None and self.key_norm is not None:
            rotation = rotation._replace(norms=HeadNorms(self.query_norm, self.key_norm, self.config.rms_norm_eps))
        heads: Heads
        if are_fused:
            heads = UnprojectedHeads(hidden, self.qkv, self.qkv_bias, rotation)
        else:
            heads = ProjectedHeads(*self._project(hidden, products), rotation)
        return attention(self.index, heads)

    def _project(self, hidden: Tensor, products: Products) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, each (T, its heads, head_dim)."""
        config = self.config
        key_start, value_start = config.num_heads, config.num_heads + config.num_kv_heads
        packed = products.linear(hidden, self.qkv, self.qkv_bias)
        packed = packed.view(-1, value_start + config.num_kv_heads, config.head_dim)
        return packed[:, :key_start], packed[:, key_start:value_start], packed[:, value_start:]

    def feed_forward(self, hidden: Tensor, products: Products) -> Tensor:
        """Compute the SwiGLU half, down(silu(gate(x)) * up(x)): (T, hidden_size) -> an addend as that of attention."""
        return products.addend(products.gated(hidden, self.gate_up), self.down)


def _parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    """Allocate a parameter, uninitialised: the weights overwrite whatever stands there."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)
