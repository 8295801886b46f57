"""A decoder whose layers learn to be read early, one exit a step."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from eeutils.models.decoder import load_decoder
from eeutils.papers import layerskip
from eeutils.papers.controls import exit_training, writing_clocks
from eeutils.papers.layerskip import RotatingExits
from eeutils.training import decoders
from eeutils.training.settings import Setting


def test_a_step_answers_at_one_exit_in_turn_and_at_the_top(repeating: Setting) -> None:
    model = RotatingExits(load_decoder(repeating.backbone), (1, 3), rank=4).eval()
    batch = decoders.prompts_of(repeating, "dev").take(range(5)).batch(range(5))
    whole = model(*batch.inputs)
    assert len(whole.logits) == 3
    model.train()
    for early in (0, 1, 0):  # the second step leaves out the first exit, the third begins anew
        said = model(*batch.inputs)
        torch.testing.assert_close(said.logits, whole.logits[[early, 2]])
    # The weight of the exit is that of the top.
    right = batch.input_ids[:, 1:][batch.token_type_ids[:, 1:] == 1]
    by_hand = (cross_entropy(whole.logits[0], right) + cross_entropy(whole.logits[2], right)) / 2
    torch.testing.assert_close(layerskip.rotating_loss(model, said, batch), by_hand)
    assert model.state_dict()["turn"] == 3


def test_layers_learn_for_their_exits_and_the_run_is_found_again(repeating: Setting) -> None:
    repeating = replace(repeating, epochs=6, learning_rate=3e-3)
    run, frozen = layerskip.trained(repeating), decoders.with_exits(repeating)
    assert run.exits == frozen.exits == (1, 2, 3)
    assert layerskip.trained(repeating).directory == run.directory
    ours, theirs = run.evidence("test"), frozen.evidence("test")
    table = exit_training.beside(ours, theirs)
    for place, layer in enumerate((1, 2, 3)):
        gap = exit_training.agreement_gained(ours, theirs, layer)
        assert gap.estimate == pytest.approx(table["agrees first"][place] - table["agrees second"][place])
    likely = [each.extras["label"].mean(dim=1) for each in (ours, theirs)]
    raised = exit_training.perplexity_raised(ours, theirs)
    assert raised.estimate + 1 == pytest.approx(2.718281828 ** float(likely[1][-1] - likely[0][-1]), rel=1e-4)
    # Every exit finds the right word likelier when the layers below have learned for it, too.
    assert (likely[0] > likely[1])[:3].all()


def test_drafts_of_the_same_model_gain_nothing(repeating: Setting) -> None:
    run = layerskip.trained(repeating)
    prompts, tokenizer = run.prompts("test")[:4], decoders.tokenizer_of(repeating)
    (one, other), gained = exit_training.acceptance_gained(run.model, run.model, tokenizer, prompts, 2, 2)
    assert one == other
    assert (gained.low, gained.high) == (0, 0)


def test_transformers_drafts_the_same_text_and_its_model_is_left_as_it_was(repeating: Setting) -> None:
    model, tokenizer = layerskip.trained(repeating).model, decoders.tokenizer_of(repeating)
    kept, depth = model.decoder.model.generation_config, model.decoder.model.config.num_hidden_layers
    prompt = decoders.with_exits(repeating).prompts("test")[0]
    plain = writing_clocks.transformers_way(model, tokenizer)(prompt)
    drafted = writing_clocks.transformers_drafting(model, tokenizer, 2, 3)(prompt)
    assert drafted.tolist() == plain.tolist()
    assert model.decoder.model.generation_config is kept
    assert model.decoder.model.config.num_hidden_layers == depth == 4
