"""Complete models of growing size as stages: who is not sure enough starts again in the next one."""

from collections.abc import Sequence
from itertools import accumulate

from jaxtyping import Bool
from torch import Tensor, nn

from eeutils.errors import InputError
from eeutils.models.cost import Spent
from eeutils.models.stages import Answer, MultiStageModel

Encoded = tuple[Tensor, Tensor, Tensor | None]
"""Token ids, attention mask and token types of the samples that are left, in one vocabulary."""


class Cascade(MultiStageModel):
    """Complete models as stages. Each starts from the token ids, and runs on the samples that have come as far.

    Args:
        models: small to large; the last is what the speed-up is measured against.
        encodings: for each model, which of a batch's encodings it reads; 0 is the batch's own, then come its `others`.
            By default all read the same one.
    """

    def __init__(self, models: Sequence[MultiStageModel], encodings: Sequence[int] | None = None) -> None:
        super().__init__()
        if not models:
            raise InputError("a cascade needs at least one model")
        self.models = nn.ModuleList(models)
        self.encodings = tuple(encodings or [0] * len(models))
        if len(self.encodings) != len(models) or set(self.encodings) != set(range(max(self.encodings) + 1)):
            raise InputError(
                f"{len(models)} models need one encoding each, numbered from 0 without a gap; got {self.encodings}"
            )
        self.layers = tuple(accumulate(model.layers[-1] for model in models))
        self.reference_layers, self.classes = models[-1].reference_layers, models[-1].classes

    def begin(self, *inputs: Tensor | None) -> tuple[Encoded, ...]:
        state = tuple(zip(inputs[0::3], inputs[1::3], inputs[2::3], strict=True))
        if len(state) != max(self.encodings) + 1:
            raise InputError(
                f"this cascade reads {max(self.encodings) + 1} vocabularies and the batch has {len(state)}; encode the "
                "texts with the tokenizers of the encoders that the method's `encoders` names"
            )
        return state

    def step(self, stage: int, state: tuple[Encoded, ...]) -> tuple[tuple[Encoded, ...], Answer]:
        answers = self.models[stage](*state[self.encodings[stage]])
        spent = answers.spent.each(lambda kind: kind.sum(dim=0))
        return state, Answer(answers.logits[-1], spent, {name: values[-1] for name, values in answers.extras.items()})

    def leave(self, state: tuple[Encoded, ...], done: Bool[Tensor, " batch"]) -> tuple[Encoded, ...]:
        def stay(ids: Tensor, mask: Tensor, types: Tensor | None) -> Encoded:
            # Columns that became padding for all who stay go, so the next model is spared them.
            columns = mask[~done].bool().any(dim=0)
            return ids[~done][:, columns], mask[~done][:, columns], None if types is None else types[~done][:, columns]

        return tuple(stay(*encoded) for encoded in state)

    def reference(self, *inputs: Tensor | None) -> Spent:
        return self.models[-1].reference(*self.begin(*inputs)[self.encodings[-1]])
