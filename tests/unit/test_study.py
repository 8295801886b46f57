"""What the scoreboard reads out of the study's tables: words no stronger than the numbers."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eeutils.errors import InputError
from eeutils.exiting import claims
from eeutils.files import repository_root
from eeutils.study import entries, headline, page, sentences, tables, writing
from eeutils.training.runs import metric_of
from eeutils.training.settings import Setting


def score_rows(**methods: dict[float, tuple[float, float]]) -> pd.DataFrame:
    """Scores of a task in FLOPs: method -> speed-up -> (score, high end of its distance to the best). A best blind
    policy has 0.77 everywhere; distances to it are of half a width 0.02."""
    rows = []
    for method, cells in methods.items():
        for speedup, (score, behind) in cells.items():
            best = score == max(other[speedup][0] for other in methods.values() if speedup in other)
            gap = {"over_best": math.nan if best else behind - 0.01, "over_best_high": math.nan if best else behind}
            rows.append(
                {
                    "task": "movie",
                    "method": method.replace("_", " "),
                    "kind": "baseline" if method in ("plain_model", "fixed_exits") else "method",
                    "axis": "flops",
                    "speedup": speedup,
                    "score": score,
                    "low": score - 0.01,
                    "high": score + 0.01,
                    "kept": score / 0.8,
                    "blind": 0.5,
                    "seeds": 3,
                    "over_blind": score - 0.77,
                    "over_blind_low": score - 0.79,
                    "over_blind_high": score - 0.75,
                    "profile": "quick",
                    "backbone": "minilm-l6",
                    "commit": "abc",
                    **gap,
                }
            )
    return pd.DataFrame(rows).reindex(columns=[*page.COLUMNS["scores"], *page.MADE_WITH])


def with_plain(scores: pd.DataFrame, plain: float = 0.81, **about: object) -> pd.DataFrame:
    """Scores and those of a plain model that has learned, in both axes at 1x, with other values of some columns."""
    full = score_rows(plain_model={1.0: (plain, 0)})
    return pd.concat([scores, full, full.assign(axis="layers")]).assign(**about)


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


COSTS = pd.DataFrame(
    [("movie", "A", 1.0), ("movie", "B", 3.0), ("movie", "C", 0.5), ("mrpc", "A", 9.0), ("mrpc", "B", 2.0)],
    columns=["task", "method", "times_plain"],
)


def test_what_to_use_is_the_cheapest_of_those_that_are_not_told_apart_from_the_highest() -> None:
    movie = score_rows(A={2.0: (0.80, 0), 3.0: (0.78, 0)}, B={2.0: (0.79, 0.002)}, C={2.0: (0.70, -0.03)})
    mrpc = score_rows(A={2.0: (0.80, 0.004)}, B={2.0: (0.81, 0)}).assign(task="mrpc")
    number = score_rows(C={3.0: (0.8, 0)}).assign(task="stsb")
    scores = pd.concat([with_plain(movie), with_plain(mrpc, task="mrpc"), with_plain(number, 0.85, task="stsb")])
    table = page.what_to_use(scores, COSTS)
    assert table.index.tolist() == ["a class at 2x", "a class at 3x", "a number at 3x"]
    both = table.loc["a class at 2x"]
    # C was told apart on movie; of A (1 and 9 times) and B (3 and 2 times) the median of B is the lower.
    assert both["take"] == "**B**"
    assert both["to train"] == "2.5 times plain"
    assert both["not told apart from the highest"] == "A; B"
    assert both["above the best blind policy by"] == "movie +0.020 [+0.000, +0.040]; mrpc +0.040 [+0.020, +0.060]"
    # At 3x A stands alone on movie, and nobody reaches it on MRPC.
    assert table.loc["a class at 3x", ["take", "not told apart from the highest"]].tolist() == ["**A**", "A"]
    assert table.loc["a number at 3x", ["take", "to train"]].tolist() == ["**C**", ""]


def test_nobody_is_recommended_whom_some_task_puts_behind_or_lacks_and_no_control_ever() -> None:
    movie = score_rows(A={2.0: (0.80, 0)}, B={2.0: (0.79, 0.002)}, D={2.0: (0.9, 0.1)})
    movie.loc[movie.method == "D", "kind"] = "control"
    mrpc = score_rows(A={2.0: (0.79, -0.001)}, C={2.0: (0.80, 0)}).assign(task="mrpc")
    scores = pd.concat([with_plain(movie), with_plain(mrpc, task="mrpc")])
    assert len(page.what_to_use(scores, COSTS)) == 0, "A is behind on MRPC, B and C stand on one task each"
    assert page.what_to_use(with_plain(movie), COSTS).loc["a class at 2x", "take"] == "**A**"


def test_what_to_use_is_empty_where_nothing_was_run() -> None:
    assert len(page.what_to_use(page.read_table("scores", Path("nowhere")), COSTS)) == 0


def test_headlines_name_what_to_take_and_who_beats_a_blind_policy() -> None:
    label = "PABEE's exits, entropy"  # a comma of its own must not tear it
    movie = score_rows(A={2.0: (0.80, 0), 3.0: (0.74, 0)}, B={2.0: (0.799, 0.002)}, C={2.0: (0.70, -0.03)})
    movie.loc[movie.method == "B", ["method", "kind"]] = [label, "baseline"]
    costs = pd.DataFrame([("movie", "A", 3.0), ("movie", label, 1.5)], columns=["task", "method", "times_plain"])
    assert sentences.headlines(with_plain(movie), costs) == [
        f"At 2x in FLOPs take **{label}** for classes, the cheapest to train of the best; not told apart from it: A.",
        # At 2x A is above 0.77 by more than 0.02, and C below it by as much; at 3x A is below it.
        "At 2x in FLOPs, of 2 methods on 1 task, shown to beat the best blind policy, which looks at no sample: A; "
        "shown to lose to it: C.",
        "At 3x in FLOPs, of 1 method on 1 task, shown to beat the best blind policy, which looks at no sample: none; "
        "shown to lose to it: A.",
    ]
    both = pd.concat([with_plain(movie), with_plain(movie.assign(task="mrpc"), task="mrpc")])
    assert "of 2 methods on 2 tasks, shown to beat" in sentences.headlines(both, costs)[1]
    assert "no sample: A (on 2 of 2); shown to lose to it: C (on 2 of 2)." in sentences.headlines(both, costs)[1]


def test_without_a_study_the_headline_says_how_to_get_one() -> None:
    [sentence] = sentences.headlines(page.read_table("scores", Path("nowhere")), COSTS)
    assert "make study" in sentence


def test_gains_are_distances_to_the_blind_policy_best_first_at_2x() -> None:
    scores = score_rows(
        A={1.5: (0.79, 0), 2.0: (0.75, -0.1), 4.0: (0.5, -0.1)},
        B={2.0: (0.80, 0)},
        C={1.5: (0.78, 0)},
        D={2.0: (0.9, 0)},
    )
    scores.loc[scores.method == "D", "kind"] = "control"
    table = page.gains(scores, "movie")
    assert table[["method", "at"]].to_numpy().tolist() == [["B", "2x"], ["A", "1.5x"], ["A", "2x"], ["C", "1.5x"]]
    assert table.gain.tolist() == pytest.approx([0.03, 0.02, -0.02, 0.01])
    assert table.low.tolist() == pytest.approx([0.01, 0.0, -0.04, -0.01])
    assert table.high.tolist() == pytest.approx([0.05, 0.04, 0.0, 0.03])
    assert len(page.gains(scores, "mrpc")) == 0


def test_gains_on_several_grounds_are_in_the_order_of_their_means_and_told_for_each() -> None:
    small = with_plain(score_rows(A={2.0: (0.79, 0)}, B={2.0: (0.80, 0), 3.0: (0.74, 0)}))
    large = with_plain(score_rows(A={2.0: (0.82, 0)}, B={2.0: (0.78, 0)}), backbone="mpnet-base")
    rows = page.gains_by_ground([small, large])
    names = ["Movie reviews, polarity\nminilm-l6", "Movie reviews, polarity\nmpnet-base"]
    assert rows.ground.unique().tolist() == names
    assert rows[["method", "at"]].to_numpy().tolist() == [
        ["A", "2x"],
        ["A", "2x"],
        ["B", "2x"],
        ["B", "3x"],
        ["B", "2x"],
    ]
    assert sentences.gained(rows) == [
        "Movie reviews, polarity with minilm-l6, at 2x: 1 of 2 lines are above the blind policy by more than their "
        "interval and 0 below it; the widest gain is +0.030 (B).",
        "Movie reviews, polarity with mpnet-base, at 2x: 1 of 2 lines are above the blind policy by more than their "
        "interval and 0 below it; the widest gain is +0.050 (A).",
    ]
    assert page.gains_by_ground([]).empty


def test_the_simplest_baseline_is_placed_among_the_methods_on_each_task() -> None:
    scores = score_rows(
        A={2.0: (0.80, 0), 3.0: (0.7, 0)}, B={2.0: (0.75, 0)}, fixed_exits={2.0: (0.78, 0), 3.0: (0.71, 0)}
    )
    cola = with_plain(scores, 0.1, task="cola", blind=0.0)  # far from BERT-base: it does not count
    [sentence] = sentences.against_the_simplest(pd.concat([with_plain(scores), cola]), "fixed exits")
    assert sentence == (
        "Movie reviews, polarity (accuracy): fixed exits have 0.780 at 2x, below 1 of 2 methods; 0.710 at 3x, below 0 "
        "of 1 methods."
    )
    assert sentences.against_the_simplest(with_plain(scores), "nobody") == []


def test_the_speeds_that_models_are_trained_for_are_means_of_costs() -> None:
    row = {"task": "movie", "method": "A", "threshold": 0.5}
    points = pd.DataFrame(
        [
            {**row, "seed": 0, "score": 0.7, "flops_speedup": 3.0},
            {**row, "seed": 0, "score": 0.9, "flops_speedup": 1.2},
            {**row, "seed": 1, "score": 0.8, "flops_speedup": 1.0},
            {**row, "seed": 1, "score": 0.8, "flops_speedup": 1.2},
        ]
    )
    [sentence] = sentences.operating_points(points)
    # Costs of 1/3 and 1 are 2/3 on average, whatever the mean of 3x and 1x is.
    assert "in FLOPs: Movie reviews, polarity 1.50x (0.750), 1.20x (0.850)." in sentence
    assert sentence.startswith("**A** is trained for one speed a model")
    assert sentences.operating_points(points[:0]) == []


def test_what_has_not_been_run_is_said() -> None:
    scores = score_rows(A={2.0: (0.78, 0)}, B={2.0: (0.7, -0.01)})
    scores.loc[scores.method == "B", "seeds"] = 1
    assert sentences.not_run(scores, ["movie", "mrpc"], ["A", "B", "C"]) == [
        "Not run: MRPC.",
        "Movie reviews, polarity: not run, or without a meaning there: C.",
        "Movie reviews, polarity: fewer seeds than the others: B.",
    ]
    assert sentences.not_run(scores.assign(seeds=3), ["movie"], ["A", "B"]) == []


def test_tables_that_are_not_there_are_empty_and_have_their_columns(tmp_path: Path) -> None:
    for name, columns in page.COLUMNS.items():
        table = page.read_table(name, tmp_path)
        assert len(table) == 0
        assert list(table.columns) == [*columns, *page.MADE_WITH]
    assert sentences.not_run(page.read_table("scores", tmp_path), ["movie"], ["A"]) == [
        "Not run: Movie reviews, polarity."
    ]


def test_the_ledger_joins_verdicts_and_guesses_and_keeps_who_was_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {"X1": claims.NOT_REPRODUCED, "X2": claims.REPRODUCED, "X3": None}
    ledger = {
        name: claims.Claim(name, "deebert", f"says {name}", "[P]", "test", 0.0, guess=f"why {name}") for name in kinds
    }
    monkeypatch.setattr(claims, "ledger", lambda: ledger)
    judged = [
        {"claim": name, "ours": "0.1", "verdict": verdict, "note": ""} for name, verdict in kinds.items() if verdict
    ]
    pd.DataFrame(judged).to_csv(tmp_path / "01-claims.csv", index=False)
    table = page.ledger_table(tmp_path).set_index("claim")
    assert table.verdict.tolist() == ["not reproduced", "reproduced", "not run"]
    assert table.guess.tolist() == ["why X1", "", ""]
    assert table.ours.tolist() == ["0.1", "0.1", ""]
    assert table.of.unique().tolist() == ["deebert"]


def test_claims_are_listed_by_paper_and_verdict_with_marks_for_what_no_paper_says() -> None:
    rows = [
        ("deebert", "D1", "[P]", claims.NOT_REPRODUCED),
        ("deebert", "D2", "[M]", claims.REPRODUCED),
        ("deebert", "D3", "[O]", claims.REPRODUCED),
        ("pabee", "P1", "[A]", page.NOT_RUN),
    ]
    table = page.verdicts_by_paper(pd.DataFrame(rows, columns=["of", "claim", "source", "verdict"]))
    assert table.columns.tolist() == [claims.REPRODUCED, claims.NOT_REPRODUCED, page.NOT_RUN]
    assert table.loc["deebert"].tolist() == ["(D2), *D3*", "D1", ""]
    assert table.loc["pabee"].tolist() == ["", "", "P1"]


def test_verdicts_are_counted_by_where_the_claim_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {"X1": "[P]", "X2": "[M]", "X3": "[A]", "X4": "[O]"}
    ledger = {name: claims.Claim(name, "deebert", "", source, "", 0.0) for name, source in sources.items()}
    monkeypatch.setattr(claims, "ledger", lambda: ledger)
    counts = page.verdict_counts(pd.Series(["undecided", "not run", "reproduced", "mixed"], index=list(ledger)))
    assert counts.columns.tolist() == ["reproduced", "mixed", "undecided", "not run"], "in the order of the verdicts"
    assert counts.loc["from a source"].tolist() == [1, 0, 1, 0]
    assert counts.loc["recalled, unverified [M]"].tolist() == [0, 0, 0, 1]
    assert counts.loc["our own controls [O]"].tolist() == [0, 1, 0, 0]


NOT_COUNTED = {
    "learned": ({}, {}, None),
    "blind": (
        {"plain": 0.505},
        {},
        "the plain model has accuracy 0.505 [0.495, 0.515] and the same answer for everybody",
    ),
    "far from a larger one": (
        {"plain": 0.75, "task": "mrpc"},
        {},
        "0.750 [0.740, 0.760], less than 90% of BERT-base's",
    ),
    "near enough": ({"plain": 0.79, "task": "mrpc"}, {}, None),
    "blind exits": ({}, {1.5: (0.505, -0.2)}, "exits from the middle up are not shown to know more"),
    "blind exits below the middle": ({}, {3.0: (0.505, -0.2)}, None),
}


@pytest.mark.parametrize("case", NOT_COUNTED)
def test_a_task_counts_where_plain_model_and_upper_exits_have_learned(case: str) -> None:
    about, exits, reason = NOT_COUNTED[case]
    scores = score_rows(A={2.0: (0.80, 0)}, **({"fixed_exits": exits} if exits else {}))
    scores = with_plain(pd.concat([scores, scores.assign(axis="layers")]), **about)
    [task] = scores.task.unique()
    if reason is None:
        assert page.not_counted(scores) == {}
        assert page.learned(scores) == [task]
    else:
        assert reason in page.not_counted(scores)[task]
        assert page.learned(scores) == []
        [sentence, *_] = sentences.left_out(scores)
        assert sentence.startswith(f"{page.title_of(task)} is not counted: ")
        with pytest.raises(InputError, match="no task that was learned"):
            headline.headline_table(scores)


def test_without_a_plain_model_nothing_counts() -> None:
    assert page.not_counted(score_rows(A={2.0: (0.8, 0)})) == {"movie": "the plain model was not run"}


def test_sentences_of_the_same_corpus_are_counted_once_for_classes_and_once_for_numbers() -> None:
    tasks = ["movie", "movie-3", "sst2", "movie-valence", "mrpc", "stsb", "/my/tickets"]
    assert page.one_of_each_corpus(tasks) == ["movie", "movie-valence", "mrpc", "stsb", "/my/tickets"]
    assert page.one_of_each_corpus(["sst2", "movie"]) == ["sst2"]
    scores = pd.concat([with_plain(score_rows(A={2.0: (0.8, 0)}), 0.9, task=task) for task in ("movie", "sst2")])
    again, shares = sentences.left_out(scores)
    assert again == "SST-2 holds sentences of another task, so it is not counted a second time."
    assert shares == "SST-2 shares sentences with the movie corpus."


def test_the_table_of_readme_marks_the_best_and_who_is_above_or_below_the_blind_policy() -> None:
    movie = score_rows(A={2.0: (0.80, 0), 3.0: (0.9, 0)}, B={2.0: (0.75, -0.1)}, fixed_exits={2.0: (0.70, -0.1)})
    movie["over_blind_high"] -= 0.01
    mrpc = score_rows(B={2.0: (0.785, 0)}, fixed_exits={2.0: (0.79, 0)}, D={2.0: (0.9, 0)})
    mrpc.loc[mrpc.method == "D", "kind"] = "control"
    lines = headline.headline_table(pd.concat([with_plain(movie), with_plain(mrpc, task="mrpc")])).splitlines()
    assert lines[:7] == [
        "|  | Movie reviews, polarity (accuracy) | MRPC (accuracy) |",
        "|---|---|---|",
        "| A | **0.800** ↑ |  |",
        "| B | 0.750 ↓ | 0.785 |",
        # A baseline that is the highest somewhere is shown, like anybody; one that never is stays out.
        "| fixed exits | 0.700 ↓ | **0.790** |",
        "| best blind policy | 0.770 | 0.770 |",
        "| plain model, 1x | 0.810 | 0.810 |",
    ]
    assert "Scores at 2x in FLOPs, 3 seeds, profile quick, minilm-l6." in lines[-1]
    with pytest.raises(InputError, match="make study"):
        headline.headline_table(with_plain(movie), speedup=7.0)


def test_readme_has_the_encoders_side_by_side() -> None:
    small = with_plain(score_rows(A={2.0: (0.80, 0)}, B={2.0: (0.75, -0.1)}))
    large = with_plain(score_rows(B={2.0: (0.90, 0)}, C={2.0: (0.85, -0.1)})).assign(backbone="mpnet-base")
    lines = headline.headline_table(small, large).splitlines()
    assert lines[:7] == [
        "|  | Movie reviews, polarity (accuracy), minilm-l6 | Movie reviews, polarity (accuracy), mpnet-base |",
        "|---|---|---|",
        "| A | **0.800** ↑ |  |",
        "| B | 0.750 | **0.900** ↑ |",
        "| C |  | 0.850 ↑ |",
        "| best blind policy | 0.770 | 0.770 |",
        "| plain model, 1x | 0.810 | 0.810 |",
    ]
    first, second = sentences.headlines(small, COSTS), sentences.headlines(large, COSTS)
    told = headline.findings({"minilm-l6": (small, COSTS), "mpnet-base": (large, COSTS)})
    assert told[: len(first)] == first
    [other] = told[len(first) :]
    assert other.startswith("With mpnet-base (")
    assert other.endswith(second[1][1:])


def test_readme_changes_between_its_marks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EEUTILS_RESULTS", str(tmp_path))
    scores = with_plain(score_rows(A={2.0: (0.80, 0)}))
    scores.to_csv(tmp_path / "study-scores.csv", index=False)
    COSTS.assign(backbone="minilm-l6").to_csv(tmp_path / "study-costs.csv", index=False)
    readme, (found, study, texts) = tmp_path / "README.md", headline.MARKS.values()
    kept = "\n".join(texts)
    readme.write_text(f"above\n\n{found[0]}\nold\n{found[1]}\n\nbetween\n{study[0]}\n{study[1]}\n\n{kept}\n")
    headline.write_readme(readme)
    headline.write_readme(readme)
    findings = "\n".join(f"- {sentence}" for sentence in sentences.headlines(scores, COSTS))
    assert readme.read_text() == (
        f"above\n\n{found[0]}\n{findings}\n{found[1]}\n\nbetween\n"
        f"{study[0]}\n{headline.headline_table(scores)}\n{study[1]}\n\n"
        f"{texts[0]}\nNot run: notebooks 09 and 10 keep the tables.\n{texts[1]}\n"
    )
    readme.write_text(f"{found[0]}\n{found[1]}\nno marks for the table")
    with pytest.raises(InputError, match=r"has no marks; put <!-- study: begin --> and"):
        headline.write_readme(readme)


def test_readme_of_the_repository_holds_the_committed_scores() -> None:
    text = (repository_root() / "README.md").read_text(encoding="utf-8")
    folder = repository_root() / "data" / "results"
    blocks = headline.blocks(folder) if page.grounds(folder) else {}
    for name, (begin, end) in headline.MARKS.items():
        assert text.count(begin) == text.count(end) == (1 if blocks else 0), name
        for shown in re.findall(f"{re.escape(begin)}(.*?){re.escape(end)}", text, flags=re.DOTALL):
            assert shown == f"\n{blocks[name]}\n", "run: python -m eeutils.study readme"


def test_the_table_of_the_search_has_the_default_in_bold_and_arrows_where_the_interval_leaves_out_zero() -> None:
    columns = ["method", "what", "value", "dev_area", "in_use", "over_default_low", "over_default_high"]
    rows = [
        ("A", "rank", 32, 0.8, True, 0.0, 0.0),
        ("A", "rank", 128, 0.9, False, 0.01, 0.2),
        ("A", "rank", 8, 0.7, False, -0.2, -0.01),
        ("A", "rate", 2.0, 0.81, False, -0.01, 0.03),
        ("B", "rate", "low", 0.6, True, 0.0, 0.0),
    ]
    table = page.search_table(pd.DataFrame(rows, columns=columns))
    assert table.reset_index().to_numpy().tolist() == [
        ["A", "rank", "**32: 0.800**, 128: 0.900 ↑, 8: 0.700 ↓"],
        ["A", "rate", "2.0: 0.810"],
        ["B", "rate", "**low: 0.600**"],
    ]
    assert len(page.search_table(page.read_table("search", Path("nowhere")))) == 0


def test_the_gate_is_shown_exit_by_exit_with_its_probe_where_it_failed_and_said_in_a_sentence() -> None:
    rows = [("A", 1, 0.7, 0.75, False), ("A", 2, 0.8, 0.7, True), ("A", 3, 0.6, 0.7, False), ("B", 2, 0.9, 0.9, True)]
    gate = pd.DataFrame(rows, columns=["method", "layer", "exit", "probe", "learned"]).assign(task="movie")
    table = page.gate_table(gate, "movie")
    assert table.columns.tolist() == ["layer 1", "layer 2", "layer 3"]
    assert table.loc["A"].tolist() == ["0.700 ✗ (probe 0.750)", "0.800", "0.600 ✗ (probe 0.700)"]
    assert table.loc["B"].tolist() == ["", "0.900", ""]
    assert sentences.unlearned(gate) == [
        "Movie reviews, polarity: **A** has not learned at layer 1, 3, so no verdict counts it."
    ]
    assert (
        sentences.unlearned(gate[gate.learned]) == sentences.unlearned(page.read_table("gate", Path("nowhere"))) == []
    )


def test_treatments_are_counted_over_seeds() -> None:
    rows = [(0, "A", "adds 7%", True), (1, "A", "adds 1%", False), (0, "B", "nothing", False)]
    checks = pd.DataFrame(rows, columns=["seed", "method", "found", "took"]).assign(task="movie")
    table = page.treatment_table(checks, "movie")
    assert table.loc["A"].to_dict() == {"took on": "1 of 2 seeds", "found": "adds 7%"}
    assert table.loc["B", "took on"] == "0 of 1 seeds"
    assert len(page.treatment_table(checks, "mrpc")) == 0


def test_what_it_costs_is_one_line_a_method_with_the_clock_where_it_was_timed() -> None:
    row = {"task": "movie", "kind": "method", "parameters": 22_713_600, "trainings": 2, "times_plain": 2.04}
    costs = pd.DataFrame(
        [
            {**row, "method": "A", "point_times_plain": 1.52},
            {**row, "method": "B", "point_times_plain": math.nan},
            {**row, "method": "C", "point_times_plain": 1.0, "kind": "control"},
        ]
    )
    times = pd.DataFrame([{"task": "movie", "method": "A", "batch": 1, "flops_speedup": 2.02, "wall_speedup": 1.7}])
    table = page.cost_table(costs, times, "movie")
    assert table.loc["A"].tolist() == ["22,713,600", "2", "1.5", "2.0", "2.02x", "1.70x"]
    assert table.columns[-2:].tolist() == ["FLOPs, batch 1", "clock, batch 1"]
    assert table.loc["B"].tolist() == ["22,713,600", "2", "", "2.0", "", ""]
    assert "C" not in table.index


def compared_on(**tasks: tuple[float, float, str]) -> pd.DataFrame:
    """One comparison of claim P1 (bar -0.005) on several tasks: (low, high, why it does not count)."""
    rows = [
        {
            "task": task,
            "claim": "P1",
            "ours": "PABEE",
            "theirs": "plain model at 1x",
            "axis": "flops",
            "speedup": 1.5,
            "difference": (low + high) / 2,
            "low": low,
            "high": high,
            "seeds": 3,
            "units": 800,
            "unfit": unfit,
        }
        for task, (low, high, unfit) in tasks.items()
    ]
    return pd.DataFrame(rows)


def test_over_tasks_only_what_has_learned_is_judged() -> None:
    good, bad, unsure = (0.0, 0.02, ""), (-0.1, -0.05, ""), (-0.03, 0.01, "")
    unfit = (-0.1, -0.05, "PABEE: the exit at layer 1 has not learned")

    def judged(**tasks: tuple) -> claims.Verdict:
        # From a file, where an empty text is no number.
        rows = compared_on(**tasks)
        return page.across_verdict(rows.assign(unfit=rows.unfit.replace("", math.nan)), "P1")

    assert judged(movie=good).outcome == "reproduced"
    assert judged(movie=good, mrpc=bad).outcome == "mixed"
    assert judged(movie=good, mrpc=unfit).outcome == "reproduced"
    left = judged(movie=unfit, mrpc=unfit)
    assert (left.outcome, left.note) == ("not testable here", "PABEE: the exit at layer 1 has not learned")
    wide = judged(movie=good, mrpc=unsure)
    # Half a width of 0.02 on 800 samples, 0.005 from the bar: 16 times as many.
    assert wide.outcome == "undecided"
    assert "about 13,000 test samples" in wide.note


def test_the_luck_of_one_seed_is_no_mark_for_the_mean_of_five() -> None:
    kinds = {"A": ("method", 5), "B": ("baseline", 3), "lucky": ("method", 2), "D": ("control", 1)}
    results = {
        label: [entries.Result(replace(entries.ENTRIES[0], kind=kind), Setting(), ())] * seeds
        for label, (kind, seeds) in kinds.items()
    }
    assert list(tables._compared_alike(results)) == ["A", "B", "D"]


def test_claims_are_judged_on_each_encoder_apart(tmp_path: Path) -> None:
    middle = {1.5: (0.7, -0.1)}
    scores = score_rows(A={2.0: (0.80, 0)}, fixed_exits=middle)
    scores = with_plain(pd.concat([scores, scores.assign(axis="layers")]))
    told = {"small": compared_on(movie=(0.0, 0.02, "")), "large": compared_on(movie=(-0.1, -0.05, ""))}
    for name, of_each in (("scores", dict.fromkeys(told, scores)), ("claims", told)):
        frames = [frame.assign(backbone=backbone) for backbone, frame in of_each.items()]
        pd.concat(frames).to_csv(tmp_path / f"study-{name}.csv", index=False)
    assert page.grounds(tmp_path) == ["small", "large"]
    assert page.verdicts_by_ground(tmp_path).loc["P1"].to_dict() == {
        "small": "reproduced",
        "large": "not reproduced",
    }
    assert len(page.verdicts_by_ground(Path("nowhere"))) == 0


def test_what_the_runs_of_each_task_were_trained_on_is_said_once_for_tasks_trained_alike() -> None:
    alike = [(task, seed, 2000.0, 1e-4) for task in ("movie", "sst2") for seed in (0, 3)]
    rows = [*alike, ("cola", 0, math.nan, 2e-4)]
    runs = pd.DataFrame(rows, columns=["task", "seed", "train_size", "learning_rate"])
    runs = runs.assign(epochs=2, steps=1250, run="finetuned")
    assert sentences.trained_on(runs, ["movie", "cola", "rte", "sst2"]) == [
        "Movie reviews, polarity, SST-2: 2 seed(s), 2,000 training samples, 2 epoch(s) or 1,250 steps a phase, "
        "learning rate 0.0001.",
        "CoLA: 1 seed(s), all training samples, 2 epoch(s) or 1,250 steps a phase, learning rate 0.0002.",
    ]
    assert sentences.trained_on(runs.assign(run="pabee"), ["movie"]) == []


def test_of_two_classes_matthews_correlation_is_pearson_s() -> None:
    generator, quick, exact = np.random.default_rng(0), entries.metric_for_resamples("cola"), metric_of("cola")
    for _ in range(20):
        labels, said = generator.integers(2, size=(2, 30))
        assert quick(said, labels) == pytest.approx(exact(said, labels))
    assert quick(np.ones(5), np.array([0, 1, 1, 0, 1])) == exact(np.ones(5), np.array([0, 1, 1, 0, 1])) == 0
    assert entries.metric_for_resamples("movie")(np.array([0, 1]), np.array([1, 1])) == 0.5


def test_a_cell_of_the_score_table_has_score_interval_and_share_kept() -> None:
    scores = score_rows(A={1.5: (0.8, 0), 2.0: (0.76, 0)}, B={2.0: (0.7, -0.1)})
    scores.loc[scores.method == "B", "kept"] = math.nan
    table = page.score_table(scores, "movie", "flops")
    assert table.loc["A"].tolist() == ["0.800 [0.790, 0.810] 100%", "0.760 [0.750, 0.770] 95%"]
    assert table.loc["B"].tolist() == ["", "0.700 [0.690, 0.710]"]


def written_tables(folder: Path) -> None:
    """What notebooks 09 and 10 keep, made up: a rule and a blind way, a policy, and prompts read by a hash."""
    rule = {"threshold": [math.inf, 0.5], "layers": [30.0, 20.0], "flops_speedup": [1.0, 1.25]}
    texts = [
        pd.DataFrame(rule | {"ROUGE-L": [0.4, score], "to the full text": [1.0, 0.7], "rule": name})
        for name, score in (("classifier", 0.35), ("schedule", 0.36))
    ]
    pd.concat(texts).to_csv(folder / "09-texts.csv", index=False)
    policies = pd.DataFrame({"alpha": [0.1, 0.2], "layers": [22.0, 18.0], "flops_speedup": [1.21, 1.5]})
    policies.assign(**{"ROUGE-L": [0.37, 0.3], "to the full text": 0.6}).to_csv(folder / "10-policies.csv", index=False)
    read = {"read": ["in full", "hashed"], "reading speed-up": [1.0, 1.5], "speed-up of all": [1.0, 1.4]}
    pd.DataFrame(read | {"ROUGE-L": [0.4, 0.39], "words": 9.0}).to_csv(folder / "10-reading-texts.csv", index=False)


def test_ways_to_let_words_leave_stand_near_one_speed_and_blind_ones_are_named(tmp_path: Path) -> None:
    written_tables(tmp_path)
    shown = writing.table(tmp_path)
    assert shown.index.tolist() == [
        "the full model",
        "ConsistentEE's policies",  # the point at 1.21x, not that at 1.5x
        "SkipDecode's schedule (blind)",
        "CALM's classifier, decaying threshold",
    ]
    assert shown["FLOPs of a word"].tolist() == ["1.00x", "1.21x", "1.25x", "1.25x"]
    assert shown["ROUGE-L"].tolist() == ["0.400", "0.370", "0.360", "0.350"]
    [sentence] = writing.found(tmp_path)
    assert sentence.startswith(
        "Writing (one decoder, one seed), near 1.2x in FLOPs of a word, ROUGE-L falls from 0.400"
    )
    assert "to 0.370 (ConsistentEE's policies, 1.21x) by the best rule that looks at the word" in sentence
    assert "to 0.360 (SkipDecode's schedule, 1.25x) by the best rule that looks at nothing" in sentence
    assert sentence.endswith("to 0.390 by HashEE's schedule on the prompt, trained for it, at 1.50x of reading.")


def test_a_way_far_from_the_speed_is_not_called_the_best(tmp_path: Path) -> None:
    written_tables(tmp_path)
    texts = pd.read_csv(tmp_path / "09-texts.csv")
    slow = pd.DataFrame({"threshold": [math.inf, 0.9], "layers": [30.0, 29.0], "flops_speedup": [1.0, 1.02]})
    slow = slow.assign(**{"ROUGE-L": [0.4, 0.399], "to the full text": [1.0, 0.9], "rule": "margin, exits 18 and 24"})
    pd.concat([texts, slow]).to_csv(tmp_path / "09-texts.csv", index=False)
    assert writing.table(tmp_path).index[1] == "CALM's margin at two exits"
    assert "CALM's margin at two exits" not in writing.found(tmp_path)[0]


def test_without_the_notebooks_that_write_there_is_no_part_on_writing(tmp_path: Path) -> None:
    assert writing.curves(tmp_path) == {}
    assert writing.table(tmp_path).empty
    assert writing.found(tmp_path) == writing.judged(tmp_path) == []


def test_the_committed_tables_on_writing_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EEUTILS_RESULTS", raising=False)
    folder = page.results_dir()
    texts = pd.read_csv(folder / "09-texts.csv")
    assert set(texts.rule) <= set(writing.WAYS), "a way without a name would not be shown"
    curve = writing.curves()["schedule"]
    own = texts[texts.rule == "schedule"]
    assert curve.score.tolist() == own["ROUGE-L"].tolist()
    on_writing = [claim for claim in claims.ledger() if claim.startswith(writing.CLAIMS)]
    assert writing.judged()[0].startswith(f"Of {len(on_writing)} claims on writing: ")
