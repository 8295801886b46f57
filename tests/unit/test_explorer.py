"""What the explorer knows is what `tradeoff` says, and its page is one file that asks nothing of anybody."""

import json
import re

import pytest
import torch

from eeutils.errors import InputError
from eeutils.exiting import tradeoff
from eeutils.exiting.evidence import Evidence, predict
from eeutils.exiting.rules import NEVER, entropy
from eeutils.reporting.explorer import document, ground, model
from eeutils.reporting.explorer.page import committed, grounds_dir
from tests.helpers import accuracy, every_rule, negative_error, random_evidence, regression_rules

SMALL = 1_000_000
"""Bytes of all the grounds that are committed."""


def leaving(rule: dict, threshold: int) -> list[int]:
    """Where each unit leaves at the threshold in that place, as the format says it."""
    units = range(len(rule["reaches"][0]))
    last = len(rule["reaches"])
    return [next((s for s in range(last) if rule["reaches"][s][n] > threshold), last) for n in units]


def shown(evidence: Evidence, **changes: object) -> dict:
    made = model("a model", evidence, [entropy()], accuracy)
    texts = [f"sentence {number}" for number in range(evidence.samples)]
    about = {"title": "A ground", "about": "", "metric": "accuracy", "answers": ["no", "yes"], "texts": texts}
    return ground(**about | {"labels": evidence.labels.tolist(), "models": [made]} | changes)


@pytest.mark.parametrize("classes", [1, 3])
def test_at_every_threshold_all_leave_where_the_tradeoff_says_and_score_the_same(classes: int) -> None:
    evidence = random_evidence(3, stages=4, samples=8, classes=classes, step=0.5)  # ties
    rules, metric = (regression_rules(), negative_error) if classes == 1 else (every_rule(), accuracy)
    # Numbers and counts, one that votes, one that is not ready before it has heard enough.
    names = ("entropy", "patience", "vote", "divergence (jsd)", "divergence (jsd), 3 in a row", "policy")
    chosen = [rules[name] for name in names if name in rules]
    made = json.loads(json.dumps(model("a model", evidence, chosen, metric)))
    for rule, kept in zip(chosen, made["rules"], strict=True):
        assert kept["thresholds"][-1] is None, rule.name
        for place, threshold in enumerate(kept["thresholds"]):
            wanted = NEVER if threshold is None else threshold
            assert leaving(kept, place) == tradeoff.decide(evidence, rule, wanted).stages.tolist(), rule.name
            point = tradeoff.at_threshold(evidence, rule, metric, wanted)
            assert {name: column[place] for name, column in kept["points"].items()}.items() <= point.items(), rule.name


def test_a_rule_that_answers_for_itself_brings_its_answers_and_others_do_not() -> None:
    evidence = random_evidence(3, stages=5, samples=30, classes=3)
    vote = every_rule()["vote"]
    made = model("a model", evidence, [entropy(), vote], accuracy)
    of_rules = {kept["name"]: kept.get("answers") for kept in made["rules"]}
    assert of_rules["vote"] == predict(vote.answers(evidence)).tolist() != made["answers"]
    assert of_rules["entropy"] is None


def test_a_model_of_one_exit_and_a_text_too_many_are_refused() -> None:
    evidence = random_evidence(0, stages=3, samples=4, classes=2)
    with pytest.raises(InputError, match="nobody leaves early"):
        model("plain", evidence.upto(0), [entropy()], accuracy)
    with pytest.raises(InputError, match="answers 4 sentences and there are 1 texts"):
        shown(evidence, texts=["alone"], labels=[1])


def test_a_page_in_another_format_and_an_empty_one_are_refused() -> None:
    with pytest.raises(InputError, match="format 0"):
        document([{"title": "old", "format": 0}])
    with pytest.raises(InputError, match="at least one ground"):
        document([])


def test_the_page_asks_no_network_and_no_sentence_gets_out_of_its_evidence() -> None:
    evidence = random_evidence(0, stages=3, samples=2, classes=2)
    whole = document([shown(evidence, texts=["</script><script>alert(1)</script>", "plain"])])
    assert whole.count("</script>") == 2
    [kept] = re.findall(r'<script type="application/json" id="evidence">(.*?)</script>', whole, flags=re.DOTALL)
    assert json.loads(kept)[0]["units"][0]["text"] == "</script><script>alert(1)</script>"
    addresses = set(re.findall(r"(?:https?:)?//[a-z0-9.]+\.[a-z]{2,}[^\"' ]*", whole))
    assert addresses == {"http://www.w3.org/2000/svg"}, "the name of a language is the only address"
    assert re.findall(r'(?:src|href)="(?!data:)', whole) == []


def test_what_is_committed_is_small_and_agrees_with_itself() -> None:
    assert sum(path.stat().st_size for path in grounds_dir().glob("*.json")) < SMALL
    grounds = committed()
    assert grounds
    document(grounds)
    for one in grounds:
        labels = [unit["label"] for unit in one["units"]]
        for made in one["models"]:
            for rule in made["rules"]:
                answers = rule.get("answers", made["answers"])
                for place in range(len(rule["thresholds"])):
                    stages = leaving(rule, place)
                    # What one sees is what stands above it: the share that is right, and the layers that ran.
                    right = [answers[stage][n] == labels[n] for n, stage in enumerate(stages)]
                    layers = torch.tensor(made["layers"], dtype=torch.double)[stages].mean()
                    assert rule["points"]["layers"][place] == pytest.approx(float(layers))
                    if one["metric"] == "accuracy":
                        assert rule["points"]["score"][place] == pytest.approx(sum(right) / len(right))
