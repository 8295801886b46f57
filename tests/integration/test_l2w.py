"""L2W-DEN on a tiny encoder: the meta gradient against double backward and finite differences, what a meta step may
touch, and training, interrupted and not, alone and under two processes."""

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call

from eeutils.data.samples import Batch
from eeutils.errors import InputError
from eeutils.exiting import tradeoff
from eeutils.models.exits import MultiExitModel
from eeutils.models.runtime import Runtime
from eeutils.papers import l2w, pabee
from eeutils.papers.l2w import L2wOptions, WeightNetwork, meta_loss, through_pseudo_update
from eeutils.training import loop
from eeutils.training.loop import Phase, answer_loss
from eeutils.training.runs import load_or_train
from eeutils.training.settings import Setting
from tests.helpers import interrupted_at
from tests.tiny import tiny_samples

ROOT = Path(__file__).parents[2]


def build(setting: Setting, seed: int = 0, **changes: Any) -> MultiExitModel:
    torch.manual_seed(seed)
    return l2w.build(setting, 2, l2w.METHOD.with_options(**changes))


def opinionated(model: MultiExitModel) -> MultiExitModel:
    """The same model with a network f that says something."""
    torch.manual_seed(1)
    for parameter in model.weight_network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def split_batch(count: int = 8) -> Batch:
    return tiny_samples(count).batch(range(count))


def half(model: MultiExitModel, batch: Batch, rows: slice, theta: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    inputs = tuple(None if part is None else part[rows] for part in batch.inputs)
    logits = functional_call(model, theta, inputs).logits
    return answer_loss(logits, batch.labels[rows]), logits.softmax(dim=-1).amax(dim=-1)


EVEN, ODD = slice(0, None, 2), slice(1, None, 2)


def test_the_forward_mode_pass_gives_what_double_backward_through_the_pseudo_update_does(setting: Setting) -> None:
    model, batch, rate = build(setting).eval(), split_batch(), 0.2
    theta = {name: p.detach() for name, p in model.named_parameters() if not name.startswith("weight_network")}
    weights = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    judged_at = lambda moved: meta_loss(*half(model, batch, ODD, moved), 0.75)  # noqa: E731
    _, found = through_pseudo_update(
        lambda moved: half(model, batch, EVEN, moved), lambda *_: weights, judged_at, theta, rate
    )
    # The long way: keep the graph of the pseudo-update, and go back through it.
    given = weights.clone().requires_grad_()
    leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        objective = (given * half(model, batch, EVEN, leaves)[0]).mean()
        used = [name for name in leaves if not name.startswith("backbone.model.pooler")]
        step = torch.autograd.grad(objective, [leaves[name] for name in used], create_graph=True)
        moved = theta | {name: leaves[name] - rate * each for name, each in zip(used, step, strict=True)}
        [wanted] = torch.autograd.grad(judged_at(moved), given)
    assert wanted.abs().max() > 1e-4
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_f_is_moved_towards_weights_whose_pseudo_updates_judge_well_by_finite_differences(setting: Setting) -> None:
    options = L2wOptions(rate=2.0)
    model, batch = opinionated(build(setting)).eval(), split_batch()
    l2w.learn_to_weigh(options, model, batch)
    model.eval()
    bias = model.weight_network.layers[2].bias
    theta = {name: p.detach() for name, p in model.named_parameters() if not name.startswith("weight_network")}
    found = bias.grad.clone()

    def judged(rows: slice, others: slice) -> float:
        leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
        losses, sure = half(model, batch, rows, leaves)
        weights = model.weight_network(losses.detach(), sure.detach()).detach()
        (weights * losses).mean().backward()
        moved = {n: theta[n] - 2.0 * (0 if leaf.grad is None else leaf.grad) for n, leaf in leaves.items()}
        with torch.no_grad():
            return meta_loss(*half(model, batch, others, moved), options.q).item()

    for exit_ in range(4):
        both = []
        for nudge in (0.02, -0.02):
            bias.data[exit_] += nudge
            both.append((judged(EVEN, ODD) + judged(ODD, EVEN)) / 2)
            bias.data[exit_] -= nudge
        assert found[exit_].item() == pytest.approx((both[0] - both[1]) / 0.04, rel=2e-2, abs=1e-5)
    assert found.abs().max() > 1e-4


def test_a_meta_step_touches_f_s_gradient_and_nothing_else(setting: Setting) -> None:
    model, batch = opinionated(build(setting)).train(), split_batch()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    l2w.learn_to_weigh(L2wOptions(), model, batch)
    assert torch.equal(torch.get_rng_state(), random), "dropout of the real step would differ"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {f"weight_network.{name}" for name, _ in model.weight_network.named_parameters()}
    assert all(module.training for module in model.modules())


def test_the_real_loss_takes_weights_as_constants(setting: Setting) -> None:
    model, batch = opinionated(build(setting)).train(), split_batch()
    model.trail.taken += 1  # no meta step now
    answers = model(*batch.inputs)
    loss = l2w.weighted_loss(L2wOptions(), model, answers, batch)
    losses = answer_loss(answers.logits, batch.labels)
    weights = model.weight_network(losses, answers.logits.softmax(dim=-1).amax(dim=-1))
    assert (weights - 1).abs().max() > 0.1
    torch.testing.assert_close(loss, sum(w * l for w, l in zip(weights.flatten(), losses.flatten(), strict=True)) / 32)  # noqa: E741
    loss.backward()
    assert all(p.grad is None for p in model.weight_network.parameters())


def train(setting: Setting, folder: Path, phase: Phase, model: MultiExitModel) -> MultiExitModel:
    loop.fit(model, [phase], tiny_samples(50), setting, folder, progress=False, checkpoint_seconds=0)
    return model


def phase_of(**changes: Any) -> Phase:
    [phase] = l2w.METHOD.phases(l2w.METHOD.with_options(**changes))
    return phase


def test_with_eps_zero_training_is_that_of_the_plain_mean_bit_for_bit(setting: Setting, tmp_path: Path) -> None:
    def plain_mean(model: MultiExitModel, answers: Any, batch: Batch) -> Tensor:
        return answer_loss(answers.logits, batch.labels).mean()

    weighted = train(setting, tmp_path / "weighted", phase_of(eps=0.0), build(setting, eps=0.0))
    torch.manual_seed(0)
    plain = pabee.build(setting, 2, pabee.PabeeOptions("own"))
    train(setting, tmp_path / "plain", Phase("joint", plain_mean), plain)
    trained = weighted.state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in plain.state_dict().items())
    # And it is no accident of a training that does nothing.
    moved = train(setting, tmp_path / "moved", phase_of(interval=1), build(setting, interval=1)).state_dict()
    assert not all(torch.equal(tensor, moved[name]) for name, tensor in plain.state_dict().items())


def test_f_learns_in_every_interval_th_step_alone(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    learned, real = [], l2w.learn_to_weigh
    model, batch = build(setting, interval=3).train(), split_batch()
    monkeypatch.setattr(l2w, "learn_to_weigh", lambda *given: (learned.append(int(model.trail.taken)), real(*given)))
    for _ in range(8):
        model.zero_grad()
        l2w.weighted_loss(L2wOptions(interval=3), model, model(*batch.inputs), batch).backward()
        moves = [p.grad is not None for p in model.weight_network.parameters()]
        assert moves == [learned[-1] == int(model.trail.taken) - 1] * 4
    assert learned == [0, 3, 6]


@pytest.mark.parametrize("step", [3, 9])
def test_an_interrupted_training_ends_like_one_that_never_was(setting: Setting, tmp_path: Path, step: int) -> None:
    phase, options = phase_of(interval=2), {"interval": 2}
    whole = train(setting, tmp_path / "whole", phase, build(setting, **options))
    stopping = replace(phase, objective=interrupted_at(step, phase.objective))
    with pytest.raises(KeyboardInterrupt):
        train(setting, tmp_path / "broken", stopping, build(setting, **options))
    resumed = train(setting, tmp_path / "broken", phase, build(setting, seed=1, **options)).state_dict()
    assert int(whole.trail.taken) == 14
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.state_dict().items())


def test_the_trail_holds_the_weights_of_the_easier_and_the_harder_half(setting: Setting) -> None:
    model, batch = opinionated(build(setting)).train(), split_batch()
    model.trail.taken += 1
    answers = model(*batch.inputs)
    l2w.weighted_loss(L2wOptions(), model, answers, batch)
    losses = answer_loss(answers.logits, batch.labels)
    weights = model.weight_network(losses, losses)
    order = losses.mean(dim=0).argsort().tolist()
    torch.testing.assert_close(model.trail.means[1, 0], weights[:, order[:4]].mean(dim=1))
    torch.testing.assert_close(model.trail.means[1, 1], weights[:, order[4:]].mean(dim=1))


def test_a_batch_of_one_sample_has_no_halves_and_is_learned_from_all_the_same(setting: Setting) -> None:
    model, batch = build(setting, interval=1).train(), split_batch(1)
    loss = l2w.weighted_loss(L2wOptions(interval=1), model, model(*batch.inputs), batch)
    assert loss.isfinite()
    # Zeros rather than nothing: of several processes all must hand in what f is to learn.
    assert all(p.grad.abs().max() == 0 for p in model.weight_network.parameters())


def test_exits_start_as_pabee_s_do_and_f_knows_no_sample(setting: Setting) -> None:
    model = build(setting).state_dict()
    torch.manual_seed(0)
    plain = pabee.build(setting, 2, pabee.PabeeOptions("own")).state_dict()
    assert all(torch.equal(tensor, model[name]) for name, tensor in plain.items())
    own = set(model) - set(plain)
    assert own
    assert all(name.startswith(("weight_network.", "trail.")) for name in own)


def test_a_regression_is_refused(setting: Setting) -> None:
    with pytest.raises(InputError, match=r"surest samples.*'movie-valence' is a regression"):
        l2w.build(replace(setting, task="movie-valence"), 1, L2wOptions())


@pytest.mark.usefixtures("tiny_tasks")
def test_from_training_to_the_runtime(setting: Setting) -> None:
    learning = replace(setting, epochs=6, learning_rate=3e-3, pool="mean")
    run = load_or_train(l2w.METHOD, learning, progress=False, interval=2)
    assert run.history.loss.iloc[-1] < run.history.loss.iloc[0]
    assert isinstance(run.model().weight_network, WeightNetwork)
    for name, rule in l2w.METHOD.rules.items():
        threshold = tradeoff.threshold_for_speedup(run.dev, rule, 1.6)
        simulated = tradeoff.decide(run.test, rule, threshold)
        assert len(simulated.stages.unique()) > 1, name
        for batch_size in (1, 8):
            outcome = Runtime(run.model(), rule, threshold)(run.samples("test"), batch_size=batch_size)
            assert outcome.stages.tolist() == simulated.stages.tolist(), name


_TRAIN = """
    import os
    import sys
    from pathlib import Path

    import torch
    from safetensors.torch import save_model

    from eeutils.papers import l2w
    from eeutils.training.loop import fit
    from eeutils.training.settings import Setting
    from tests.tiny import tiny_samples

    torch.set_num_threads(1)
    folder, encoder = map(Path, sys.argv[1:])
    setting = Setting(backbone=str(encoder), epochs=1, batch_size=8, learning_rate=1e-3, max_length=40)
    torch.manual_seed(0)
    options = l2w.METHOD.with_options(interval=1)  # the last batch, of three samples, too
    model = l2w.build(setting, 2, options)
    fit(model, l2w.METHOD.phases(options), tiny_samples(43), setting, folder / "checkpoints", progress=False)
    save_model(model, str(folder / f"model-{os.environ['RANK']}.safetensors"))
"""


def test_two_processes_keep_one_network(tmp_path: Path, encoder_folder: str) -> None:
    script = tmp_path / "train_tiny.py"
    script.write_text(textwrap.dedent(_TRAIN))
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    unset = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    arguments = [sys.executable, *launch, str(script), str(tmp_path), encoder_folder]
    done = subprocess.run(arguments, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (load_file(tmp_path / f"model-{rank}.safetensors") for rank in (0, 1))
    learned = [name for name in first if not name.startswith("trail.")]
    assert all(torch.equal(first[name], second[name]) for name in learned)
    assert first["weight_network.layers.2.weight"].abs().max() > 0, "f has learned nothing"
