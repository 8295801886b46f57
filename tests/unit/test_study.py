"""What the scoreboard reads out of the study's tables: words no stronger than the numbers."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eeutils.errors import InputError
from eeutils.exiting import claims
from eeutils.files import repository_root
from eeutils.study import entries, headline, page, sentences
from eeutils.training.runs import metric_of


def score_rows(**methods: dict[float, tuple[float, float]]) -> pd.DataFrame:
    """Scores of a task: method -> speed-up -> (score, high end of its distance to the best)."""
    rows = []
    for method, cells in methods.items():
        for speedup, (score, behind) in cells.items():
            best = score == max(other[speedup][0] for other in methods.values() if speedup in other)
            gap = {"over_best": math.nan if best else behind - 0.01, "over_best_high": math.nan if best else behind}
            rows.append(
                {
                    "task": "movie",
                    "method": method.replace("_", " "),
                    "kind": "method",
                    "axis": "layers",
                    "speedup": speedup,
                    "score": score,
                    "low": score - 0.01,
                    "high": score + 0.01,
                    "kept": score / 0.8,
                    "blind": 0.5,
                    "seeds": 3,
                    "over_fixed": 0.03,
                    "over_fixed_low": 0.01 if best else -0.01,
                    "over_fixed_high": 0.05,
                    "profile": "quick",
                    "backbone": "minilm-l6",
                    "commit": "abc",
                    **gap,
                }
            )
    return pd.DataFrame(rows).reindex(columns=[*page.COLUMNS["scores"], *page.MADE_WITH])


# Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 2006, Table 5 (a), alpha = 0.05.
DEMSAR = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}


@pytest.mark.parametrize(("methods", "q"), DEMSAR.items())
def test_the_critical_difference_is_that_of_demsar_s_table(methods: int, q: float) -> None:
    wanted = q * math.sqrt(methods * (methods + 1) / (6 * 14))
    assert page.critical_difference(methods, 14) == pytest.approx(wanted, rel=5e-4)


@pytest.mark.parametrize(("methods", "blocks"), [(1, 5), (3, 0)])
def test_ranks_of_one_method_or_no_block_are_refused(methods: int, blocks: int) -> None:
    with pytest.raises(InputError, match="ranks need"):
        page.critical_difference(methods, blocks)


def test_mean_ranks_share_ties_and_leave_out_who_misses_a_block() -> None:
    values = {("movie", 0): {"a": 0.9, "b": 0.8, "c": 0.8}, ("movie", 1): {"a": 0.7, "b": 0.9, "c": 0.6, "d": 1.0}}
    rows = [
        {"task": task, "seed": seed, "method": method, "area": area}
        for (task, seed), areas in values.items()
        for method, area in areas.items()
    ]
    ranks, blocks = page.mean_ranks(pd.DataFrame(rows), "area")
    assert blocks == 2
    assert ranks.to_dict() == {"a": 1.5, "b": 1.75, "c": 2.75}
    by_scipy = [stats.rankdata([-block[m] for m in "abc"]) for block in values.values()]
    assert ranks[list("abc")].tolist() == np.mean(by_scipy, axis=0).tolist()


def test_few_blocks_are_said_to_be_few() -> None:
    assert "Too few" in sentences.worth_of_ranks(tasks=1, blocks=30)
    assert "Too few" in sentences.worth_of_ranks(tasks=3, blocks=9)
    assert "Too few" not in sentences.worth_of_ranks(tasks=5, blocks=15)


def test_curves_of_two_seeds_are_averaged_at_equal_cost_where_both_reach() -> None:
    rows = [
        # Score over cost: seed 0 rises from 0.6 at cost 1/4 to 0.9 at 1, seed 1 from 0.7 at 1/2 to 0.8 at 1.
        *({"seed": 0, "score": score, "layer_speedup": x} for x, score in ((4, 0.6), (1, 0.9))),
        *({"seed": 1, "score": score, "layer_speedup": x} for x, score in ((2, 0.7), (1, 0.8))),
    ]
    frame = pd.DataFrame(rows).assign(task="movie", method="m", flops_speedup=math.nan)
    [(name, curve)] = page.mean_curves(frame, "movie", "layers", points=3).items()
    assert name == "m"
    assert (1 / curve.layer_speedup).tolist() == pytest.approx([0.5, 0.75, 1.0])
    assert curve.score.tolist() == pytest.approx([(0.7 + 0.7) / 2, (0.8 + 0.75) / 2, (0.9 + 0.8) / 2])


def test_a_single_point_of_each_seed_is_averaged_in_cost_and_score() -> None:
    rows = [{"seed": 0, "score": 0.8, "layer_speedup": 4.0}, {"seed": 1, "score": 0.9, "layer_speedup": 2.0}]
    frame = pd.DataFrame(rows).assign(task="movie", method="oracle", flops_speedup=math.nan)
    curve = page.mean_curves(frame, "movie", "layers")["oracle"]
    assert (1 / curve.layer_speedup).tolist() == pytest.approx([(1 / 4 + 1 / 2) / 2])
    assert curve.score.tolist() == pytest.approx([0.85])


def test_advice_names_the_best_and_whoever_is_not_told_apart() -> None:
    scores = score_rows(
        A={1.5: (0.80, 0), 2.0: (0.78, 0)}, B={1.5: (0.79, 0.002), 2.0: (0.70, -0.03)}, C={1.5: (0.7, -0.05)}
    )
    first, second, third, fourth = sentences.advice(scores, "movie")
    assert "**A** has the highest score, 0.800, 100.0% of the plain model's; not told apart from it: B." in first
    assert "C" not in first.replace("PABEE's", "")
    assert "above all others by more than the intervals allow for" in second
    assert "It beats leaving at a fixed exit" in second
    assert third == "**3x** (layer speed-up): nothing here reaches it."
    assert fourth.startswith("**4x**")


def test_in_short_takes_the_best_mean_rank_and_says_how_sure_that_is() -> None:
    movie = score_rows(A={2.0: (0.80, 0)}, B={2.0: (0.79, 0.002)}, C={2.0: (0.70, -0.03)})
    mrpc = score_rows(A={2.0: (0.70, -0.01)}, B={2.0: (0.75, 0)}).assign(task="mrpc", over_fixed_low=-0.1)
    cola = score_rows(A={2.0: (0.1, -0.01)}, B={2.0: (0.2, 0)}).assign(task="cola")
    stsb = score_rows(C={3.0: (0.5, 0)}).assign(task="stsb")
    costs = pd.DataFrame({"task": ["movie", "mrpc", "cola"], "method": "B", "times_plain": [1.0, 2.0, 9.0]})
    table = page.in_short(pd.concat([movie, mrpc, cola, stsb]), costs, "layers")
    assert table.index.tolist() == ["a class at 2x in layers", "a number at 3x in layers"]
    # Ranks of B: 2, 1, 1; of A: 1, 2, 2; C was not run on all of them.
    assert table.iloc[0].to_dict() == {
        "take": "**B**",
        "mean rank": "1.3 of 2",
        "highest on": "2 of 3",
        "told apart from the highest on": "0 of 3",
        "shown to beat the fixed exits on": "1 of 3",
        "training time": "2.0 times plain",
        "next by mean rank": "A 1.7",
    }
    assert table.iloc[1][["take", "training time", "next by mean rank"]].tolist() == ["**C**", "", ""]


def test_in_short_is_empty_where_nothing_was_run() -> None:
    assert len(page.in_short(page.read_table("scores", Path("nowhere")), pd.DataFrame(), "layers")) == 0


def test_leaders_are_the_highest_with_their_scores_against_the_fixed_exits() -> None:
    movie = score_rows(A={2.0: (0.80, 0), 3.0: (0.6, -0.1)}, B={2.0: (0.79, 0.002), 3.0: (0.7, 0)})
    mrpc = score_rows(B={2.0: (0.75, 0)}).assign(task="mrpc", over_fixed_low=-0.1)
    table = page.leaders(pd.concat([movie, mrpc]))
    assert table.to_dict("index")["2x"] == {"Movie reviews, polarity": "A 0.800 ↑", "MRPC": "B 0.750"}
    assert table.loc["3x", "Movie reviews, polarity"] == "B 0.700 ↑"
    assert pd.isna(table.loc["3x", "MRPC"])


def test_the_speed_that_a_method_is_trained_for_is_a_mean_of_costs() -> None:
    row = {"task": "movie", "method": "A", "threshold": 0.5, "score": 0.8}
    points = pd.DataFrame([{**row, "layer_speedup": 1.0}, {**row, "score": 0.7, "layer_speedup": 3.0}])
    [sentence] = sentences.operating_points(points)
    # Half the samples at cost 1 and half at 1/3 cost 2/3.
    assert sentence.startswith("**A** is trained for one speed. At its own threshold, 0.5, it has by layers: ")
    assert "Movie reviews, polarity 1.50x (accuracy 0.750)." in sentence
    assert sentences.operating_points(points[:0]) == []


def test_advice_does_not_claim_what_the_interval_does_not_show() -> None:
    scores = score_rows(A={2.0: (0.78, 0)})
    scores["over_fixed_low"] = -0.01
    sentence = sentences.advice(scores, "movie")[1]
    assert "is not shown (+0.030 [-0.010, +0.050])" in sentence
    assert "nothing else reaches this speed-up" in sentence
    scores[["over_fixed", "over_fixed_low", "over_fixed_high"]] = math.nan
    assert "fixed exit" not in sentences.advice(scores, "movie")[1]


def test_what_has_not_been_run_is_said() -> None:
    scores = score_rows(A={2.0: (0.78, 0)}, B={2.0: (0.7, -0.01)})
    scores.loc[scores.method == "B", "seeds"] = 1
    assert sentences.not_run(scores, ["movie", "mrpc"], ["A", "B", "C"]) == [
        "Not run: mrpc.",
        "Movie reviews, polarity: not run, or without a meaning there: C.",
        "Movie reviews, polarity: fewer seeds than the others: B.",
    ]
    assert sentences.not_run(scores.assign(seeds=3), ["movie"], ["A", "B"]) == []


def test_tables_that_are_not_there_are_empty_and_have_their_columns(tmp_path: Path) -> None:
    for name, columns in page.COLUMNS.items():
        table = page.read_table(name, tmp_path)
        assert len(table) == 0
        assert list(table.columns) == [*columns, *page.MADE_WITH]
    assert sentences.not_run(page.read_table("scores", tmp_path), ["movie"], ["A"]) == ["Not run: movie."]


def test_the_ledger_joins_verdicts_and_reasons_and_keeps_who_was_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {"X1": claims.NOT_REPRODUCED, "X2": claims.REPRODUCED, "X3": None}
    ledger = {
        name: claims.Claim(name, "deebert", f"says {name}", "[P]", "test", 0.0, why=f"why {name}") for name in kinds
    }
    monkeypatch.setattr(claims, "ledger", lambda: ledger)
    judged = [
        {"claim": name, "ours": "0.1", "verdict": verdict, "note": ""} for name, verdict in kinds.items() if verdict
    ]
    pd.DataFrame(judged).to_csv(tmp_path / "01-claims.csv", index=False)
    table = page.ledger_table(tmp_path).set_index("claim")
    assert table.verdict.tolist() == ["not reproduced", "reproduced", "not run"]
    assert table.why.tolist() == ["why X1", "", ""]
    assert table.ours.tolist() == ["0.1", "0.1", ""]
    assert table.of.unique().tolist() == ["deebert"]


def test_a_task_that_the_plain_model_did_not_learn_is_named_and_compared_nowhere() -> None:
    movie = score_rows(A={2.0: (0.80, 0)}, plain_model={1.0: (0.81, 0)})
    cola = score_rows(A={2.0: (0.0, 0)}, plain_model={1.0: (0.01, 0)}).assign(task="cola", blind=0.0, low=0.0)
    scores = pd.concat([movie, cola])
    assert page.learned(scores) == ["movie"]
    [sentence] = sentences.not_learned(scores)
    assert sentence.startswith("CoLA was not learned at this size: the plain model has matthews 0.010 [0.000, 0.020]")
    table = headline.headline_table(scores)
    assert "CoLA (matthews)" not in table
    assert "Left out, as the plain model did not learn it at this size: CoLA." in table
    with pytest.raises(InputError, match="no task that was learned"):
        headline.headline_table(cola)


def test_the_table_of_readme_marks_the_best_and_who_is_above_or_below_the_fixed_exits() -> None:
    movie = score_rows(A={2.0: (0.80, 0), 3.0: (0.9, 0)}, B={2.0: (0.75, -0.1)}, plain_model={1.0: (0.81, 0)})
    movie.loc[movie.method == "plain model", "kind"] = "baseline"
    plain = {"plain_model": {1.0: (0.81, 0)}}
    mrpc = score_rows(B={2.0: (0.70, 0)}, fixed_exits={2.0: (0.60, 0)}, random_exits={2.0: (0.5, 0)}, **plain)
    mrpc["task"] = "mrpc"
    mrpc.loc[mrpc.method != "B", "kind"] = "baseline"
    mrpc.loc[mrpc.method == "fixed exits", "over_fixed_low"] = math.nan
    movie.loc[movie.method == "B", "over_fixed_high"] = -0.01
    lines = headline.headline_table(pd.concat([movie, mrpc])).splitlines()
    assert lines[:6] == [
        "|  | Movie reviews, polarity (accuracy) | MRPC (accuracy) |",
        "|---|---|---|",
        "| A | **0.800** ↑ |  |",
        "| B | 0.750 ↓ | **0.700** ↑ |",
        "| fixed exits |  | 0.600 |",
        "| plain model, 1x | 0.810 | 0.810 |",
    ]
    assert "Scores at 2x by layers, mean over 3 seeds" in lines[-1]
    with pytest.raises(InputError, match="make study"):
        headline.headline_table(movie, 7.0)


def test_readme_changes_between_its_marks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EEUTILS_RESULTS", str(tmp_path))
    scores = score_rows(A={2.0: (0.80, 0)}, plain_model={1.0: (0.81, 0)})
    scores.to_csv(tmp_path / "study-scores.csv", index=False)
    readme, (begin, end) = tmp_path / "README.md", headline.MARKS
    readme.write_text(f"above\n\n{begin}\nold\n{end}\n\nbelow\n")
    headline.write_readme(readme)
    headline.write_readme(readme)
    assert readme.read_text() == f"above\n\n{begin}\n{headline.headline_table(scores)}\n{end}\n\nbelow\n"
    readme.write_text("no marks")
    with pytest.raises(InputError, match="has no marks"):
        headline.write_readme(readme)


def test_readme_of_the_repository_holds_the_committed_scores() -> None:
    begin, end = headline.MARKS
    text = (repository_root() / "README.md").read_text(encoding="utf-8")
    committed = page.read_table("scores", repository_root() / "data" / "results")
    assert text.count(begin) == text.count(end) == (1 if len(committed) else 0)
    for shown in re.findall(f"{re.escape(begin)}(.*?){re.escape(end)}", text, flags=re.DOTALL):
        assert shown == f"\n{headline.headline_table(committed)}\n", "run: python -m eeutils.study readme"


def test_exits_that_learned_nothing_are_no_baseline_to_be_proud_of() -> None:
    scores = score_rows(plain_model={1.0: (0.80, 0)}, fixed_exits={1.0: (0.505, -0.2)})
    [sentence] = sentences.blind_exits(scores)
    assert sentence.startswith("Movie reviews, polarity: exits trained together")
    assert "accuracy 0.505 [0.495, 0.515], a blind answer 0.500" in sentence
    better = scores.assign(low=scores.score - 0.001)
    assert sentences.blind_exits(better) == []


def test_the_table_of_the_search_marks_the_rate_in_use_and_adds_the_mean() -> None:
    rows = [("A", 2e-4, 0.7, False), ("A", 1e-4, 0.8, True), ("B", 1e-4, 0.6, True), ("B", 2e-4, 0.9, False)]
    search = pd.DataFrame(rows, columns=["method", "learning_rate", "dev_area", "in_use"])
    table = page.search_table(search)
    assert table.columns.tolist() == ["0.0001 (in use)", "0.0002"]
    assert table.loc["A"].tolist() == ["0.800", "0.700"]
    assert table.loc["mean over methods"].tolist() == ["0.700", "0.800"]
    assert page.search_table(search[:2]).index.tolist() == ["A"], "the mean of one method says nothing new"
    assert len(page.search_table(search[:0])) == 0


def test_what_the_runs_of_each_task_were_trained_on_is_said_once_for_tasks_trained_alike() -> None:
    alike = [(task, seed, 2000.0, 1e-4) for task in ("movie", "sst2") for seed in (0, 3)]
    rows = [*alike, ("cola", 0, math.nan, 2e-4)]
    runs = pd.DataFrame(rows, columns=["task", "seed", "train_size", "learning_rate"]).assign(epochs=2)
    assert sentences.trained_on(runs, ["movie", "cola", "rte", "sst2"]) == [
        "Movie reviews, polarity, SST-2: 2 seed(s), 2,000 samples for train and dev together, 2 epoch(s) a phase, "
        "learning rate 0.0001.",
        "CoLA: 1 seed(s), all samples for train and dev together, 2 epoch(s) a phase, learning rate 0.0002.",
    ]


def test_of_two_classes_matthews_correlation_is_pearson_s() -> None:
    generator, quick, exact = np.random.default_rng(0), entries.metric_for_resamples("cola"), metric_of("cola")
    for _ in range(20):
        labels, said = generator.integers(2, size=(2, 30))
        assert quick(said, labels) == pytest.approx(exact(said, labels))
    assert quick(np.ones(5), np.array([0, 1, 1, 0, 1])) == exact(np.ones(5), np.array([0, 1, 1, 0, 1])) == 0
    assert entries.metric_for_resamples("movie")(np.array([0, 1]), np.array([1, 1])) == 0.5


def test_ranks_are_taken_on_the_tasks_that_have_the_most_methods() -> None:
    rows = [("movie", "A"), ("movie", "B"), ("sst2", "A"), ("sst2", "B"), ("stsb", "A")]
    assert page.ranked_tasks(pd.DataFrame(rows, columns=["task", "method"])) == ["movie", "sst2"]


def test_a_cell_of_the_score_table_has_score_interval_and_share_kept() -> None:
    scores = score_rows(A={1.5: (0.8, 0), 2.0: (0.76, 0)}, B={2.0: (0.7, -0.1)})
    scores.loc[scores.method == "B", "kept"] = math.nan
    table = page.score_table(scores, "movie", "layers")
    assert table.loc["A"].tolist() == ["0.800 [0.790, 0.810] 100%", "0.760 [0.750, 0.770] 95%"]
    assert table.loc["B"].tolist() == ["", "0.700 [0.690, 0.710]"]
