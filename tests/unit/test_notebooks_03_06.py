"""What notebooks 03 and 06 prepare in the package."""

import numpy as np
import pytest
import torch

from eeutils.data.samples import Samples
from eeutils.errors import InputError
from eeutils.exiting.evidence import Evidence
from eeutils.exiting.intervals import Interval
from eeutils.models.schedule import TokenSchedule
from eeutils.papers.controls import complete_models, hashed_words, learnability
from eeutils.reporting.wording import compared, difference, listed


def one_stage(logits: torch.Tensor, labels: torch.Tensor, cost: float, layers: int) -> Evidence:
    """A plain model's evidence: everybody spends `cost` of a reference of 6."""
    spent = torch.full((1, len(labels)), cost, dtype=torch.float64)
    whole = torch.full((len(labels),), 6.0, dtype=torch.float64)
    kinds = ("layers", "flops")
    return Evidence(
        logits[None],
        torch.arange(len(labels)),
        dict.fromkeys(kinds, spent),
        dict.fromkeys(kinds, whole),
        (layers,),
        labels,
    )


def test_models_in_a_row_pay_for_all_that_ran() -> None:
    labels = torch.tensor([0, 1])
    small, large = (one_stage(torch.eye(2), labels, cost, layers) for cost, layers in ((3.0, 3), (6.0, 6)))
    row = complete_models.in_a_row([small, large])
    assert row.layers == (3, 9)
    assert row.cost["flops"].tolist() == [[3, 3], [9, 9]]
    assert row.reference["flops"].tolist() == [6, 6]
    with pytest.raises(InputError, match="same samples"):
        complete_models.in_a_row([small, large.take(torch.tensor([1]))])


def test_a_model_that_is_surer_of_easy_samples_has_no_inversions() -> None:
    hard = torch.tensor([False, False, True, True])
    sure = torch.tensor([3.0, 2.0, 1.0, 0.5])
    labels = torch.zeros(4, dtype=torch.long)
    evidence = one_stage(torch.stack([sure, -sure], dim=-1), labels, 3.0, 3)
    table = complete_models.inversions({"model": (evidence, (3,))}, hard)
    assert table.DIS.tolist() == [1.0]
    assert table["right on hard"].tolist() == [1.0]
    assert table["sure on easy"][0] > table["sure on hard"][0]
    gap = complete_models.inversion_difference(evidence.confidence[0], 1 - evidence.confidence[0], hard)
    assert gap.estimate == 1.0


def test_where_nobody_rated_the_samples_models_judge() -> None:
    labels = torch.tensor([0, 1])
    evidence = one_stage(torch.eye(2), labels, 6.0, 6)
    judge = complete_models.judge_of("sst2", evidence, torch.tensor([0.5, 0.75]))
    assert judge.name == "k-layer models"
    assert judge.hard.tolist() == [True, False]


def test_errors_are_learnable_where_a_feature_tells_them_and_not_by_the_class() -> None:
    random = np.random.default_rng(0)
    labels = torch.tensor(random.integers(2, size=400))
    # It answers class 1 nearly always: its errors are the other class, and a noise that the second feature knows.
    told = torch.tensor(random.random(400) < 0.2)
    answers = torch.where(told, 1 - labels, torch.ones_like(labels))
    exits = one_stage(torch.nn.functional.one_hot(answers, 2) * 4.0, labels, 1.0, 1)
    noise = random.normal(size=400)
    by_class, knows = labels.numpy() + 0.01 * noise, told.numpy() + 0.01 * noise
    features = {learnability.WORDS: by_class[:, None], learnability.ENCODER: knows[:, None]}
    study = learnability.study(exits, features, seed=0)
    scores = study.table.set_index("predictor")["G-mean"]
    assert scores[learnability.WORDS] < 0.75 < scores[learnability.ENCODER]
    guesses, errors = study.guesses[1]
    assert errors.mean() == 0.5
    gain = study.above_a_guess(1)
    assert gain.low <= gain.estimate == pytest.approx(learnability.g_mean(guesses, errors) - 0.5)


def test_an_exit_without_errors_is_not_studied() -> None:
    labels = torch.tensor([0, 1] * 30)
    exits = one_stage(torch.nn.functional.one_hot(labels, 2) * 1.0, labels, 1.0, 1)
    study = learnability.study(exits, {learnability.ENCODER: np.zeros((60, 1))}, seed=0)
    assert len(study.table) == 0
    assert study.guesses == {}


def test_running_shares_count_occurrences() -> None:
    ranks = torch.tensor([1.0, 0.1, 0.6])
    schedule = TokenSchedule(ranks, depth=2)
    samples = Samples(((0, 1, 1, 2),), None, None, torch.arange(1), padding=0)
    shares = hashed_words.running_shares({"ours": schedule}, samples)
    assert shares.loc["ours"].tolist() == [0.5, 0.5]


def test_words_are_no_stronger_than_intervals() -> None:
    above, around = Interval(0.02, 0.01, 0.03), Interval(0.01, -0.01, 0.03)
    assert difference(above) == "+0.020 [+0.010, +0.030]"
    assert difference(around) == "+0.010 [-0.010, +0.030], not told from 0"
    assert difference(None) == "out of reach"
    assert difference(Interval(np.nan, np.nan, np.nan)) == "undefined here"
    words = [compared(each) for each in (above, around, Interval(-0.02, -0.03, -0.01), None)]
    assert words == ["beats", "cannot be told from", "loses to", "cannot be compared with"]
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed([]) == "none"
