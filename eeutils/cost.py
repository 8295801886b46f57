"""Floating point operations, analytically. One multiply-add is two operations, as in `torch.utils.flop_counter`.

Only matrix products are counted: they are more than 99% of an encoder's work. Embedding look-ups are free. The formulas
are held to torch's own counter in a test. Costs are per sample and at the sample's own length, without padding.
"""

from jaxtyping import Float, Int
from torch import Tensor, nn

from eeutils.backbone import Backbone


def layer_flops(backbone: Backbone, tokens: Int[Tensor, " samples"]) -> Float[Tensor, " samples"]:
    """One transformer layer on `tokens` tokens: 8TD^2 for query, key, value and output, 4T^2D for attention, 4TDF for
    the feed-forward pair of width F."""
    width = backbone.width
    inner = getattr(backbone.config, "intermediate_size", None) or backbone.config.hidden_dim
    length = tokens.double()
    return 8 * length * width**2 + 4 * length**2 * width + 4 * length * width * inner


def embedding_flops(backbone: Backbone, tokens: Int[Tensor, " samples"]) -> Float[Tensor, " samples"]:
    """The projection of factorised embeddings (ALBERT, small ELECTRA), 2TED; nothing for the other families."""
    narrow = getattr(backbone.config, "embedding_size", backbone.width)
    projected = backbone.config.model_type == "albert" or narrow != backbone.width
    return 2 * tokens.double() * narrow * backbone.width * (1 if projected else 0)


def linear_flops(module: nn.Module) -> int:
    """All linear maps of a module, each applied once to one vector per sample: the cost of an exit head."""
    return sum(2 * part.in_features * part.out_features for part in module.modules() if isinstance(part, nn.Linear))
