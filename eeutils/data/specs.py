"""Which tasks there are: names, classes, texts and metrics, without any data."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eeutils.errors import InputError, unknown

CLASS_METRICS = ("accuracy", "f1", "matthews")
NUMBER_METRICS = ("pearson", "spearman")


@dataclass(frozen=True)
class TaskSpec:
    """What a task is, without its data."""

    name: str
    title: str  # for plots and tables
    class_names: tuple[str, ...]  # the meaning of labels 0, 1, ...; empty for regression
    text_columns: tuple[str, ...]  # `text_a`, and `text_b` for pairs
    metrics: tuple[str, ...]  # the headline first
    source: Literal["offline", "glue", "folder"]
    note: str  # what the texts and labels are
    corpus: str = ""  # of an offline task: which of the pinned files it reads
    bins: tuple[float, ...] = ()  # where the numbers of the corpus are cut into classes

    @property
    def kind(self) -> Literal["classification", "regression"]:
        """Whether labels are classes or numbers."""
        return "classification" if self.class_names else "regression"


def spec_of(name: str) -> TaskSpec:
    """What the task called `name` is: one of `TASKS`, or a folder with `task.toml`, `train.tsv` and `test.tsv`.

    `task.toml` holds title, texts (one column, or two for pairs), label (a column), classes (names as they stand in the
    files; empty for regression) and metrics (the first is the headline). 10% of train becomes dev.

    Raises:
        InputError: neither a task nor such a folder; a `task.toml` that is not TOML, or a field of it that is missing,
            unknown or of the wrong kind.
    """
    if name in TASKS:
        return TASKS[name]
    if not (Path(name) / _CARD).is_file():
        raise InputError(f"{unknown('task', name, TASKS)}; or give a folder that holds {_CARD}, train.tsv and test.tsv")
    card = read_card(name)
    classes, metrics, texts = (tuple(card[field]) for field in ("classes", "metrics", "texts"))
    if len(classes) == 1 or not 1 <= len(texts) <= 2 or not metrics:
        raise InputError(f"{name}/{_CARD} needs one or two texts, no class or at least two, and at least one metric")
    spec = TaskSpec(name, card["title"], classes, _TEXTS[: len(texts)], metrics, "folder", f"own task {name}")
    fitting = CLASS_METRICS if classes else NUMBER_METRICS
    for metric in metrics:
        if metric not in fitting:
            raise unknown(f"metric of a {spec.kind} in {name}/{_CARD}", metric, fitting)
    if "f1" in metrics and len(classes) > 2:
        raise InputError(
            f"{name}/{_CARD} asks for f1, that of the second of two classes, and has {len(classes)} classes; choose "
            "accuracy or matthews"
        )
    return spec


_TEXTS = ("text_a", "text_b")
_CARD = "task.toml"
_CARD_FIELDS = {"title": str, "texts": list, "label": str, "classes": list, "metrics": list}


def number_task(task: str) -> str:
    """The task whose answer is a number and whose texts are those of `task`, or the nearest that there is."""
    spec = spec_of(task)
    if f"{spec.corpus}-valence" in TASKS:
        return f"{spec.corpus}-valence"
    return "stsb" if spec.source == "glue" else "movie-valence"


def read_card(folder: str) -> dict[str, Any]:
    """The fields of a folder's `task.toml`, checked; errors are those of `spec_of`."""
    path = Path(folder) / _CARD
    try:
        card = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML in UTF-8: {error}") from error
    for field in card:
        if field not in _CARD_FIELDS:
            raise unknown(f"field of {path}", field, _CARD_FIELDS)
    for field, kind in _CARD_FIELDS.items():
        if not isinstance(card.get(field), kind):
            there = repr(card[field]) if field in card else "nothing"
            raise InputError(f"{path} needs {field} as a {'list' if kind is list else 'text'}; found {there}")
        if kind is list and not all(isinstance(value, str) for value in card[field]):
            raise InputError(f"{path} needs {field} as a list of texts, each in quotes; found {card[field]!r}")
        if kind is list and len({value.strip() for value in card[field]} - {""}) < len(card[field]):
            raise InputError(f"{path} needs {field} that differ, none of them empty; found {card[field]!r}")
        card[field] = [value.strip() for value in card[field]] if kind is list else card[field]
    if card["label"] in card["texts"]:
        raise InputError(f"{path} names the column {card['label']!r} as text and as label; each needs one of its own")
    return card


def _offline(name: str, domain: str, texts: str) -> list[TaskSpec]:
    note = f"{texts}, each rated from -4 to 4 by 20 people or more (Hutto and Gilbert, ICWSM 2014)"
    kinds = [(name, "polarity", ("negative", "positive"), (0.0,)), (f"{name}-valence", "valence", (), ())]
    if name == "movie":  # a third of its sentences in each
        kinds.append(("movie-3", "three classes", ("negative", "mild", "positive"), (-1.5, 1.5)))
    return [
        TaskSpec(
            *(task, f"{domain}, {kind}", classes, _TEXTS[:1], ("accuracy",) if classes else NUMBER_METRICS),
            *("offline", note, name, bins),
        )
        for task, kind, classes, bins in kinds
    ]


def _glue(name: str, title: str, classes: str, metrics: str, texts: int, note: str) -> TaskSpec:
    return TaskSpec(name, title, tuple(classes.split()), _TEXTS[:texts], tuple(metrics.split()), "glue", note)


_TOPICS = (
    "Arts",
    "Biology and health sciences",
    "Everyday life",
    "Geography",
    "History",
    "Mathematics",
    "People",
    "Philosophy and religion",
    "Physical sciences",
    "Society and social sciences",
    "Technology",
)
_NLI = "entailment neutral contradiction"

TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        *_offline("movie", "Movie reviews", "sentences of movie reviews"),
        *_offline("amazon", "Amazon reviews", "sentences of product reviews"),
        *_offline("editorial", "Editorials", "sentences of newspaper editorials"),
        *_offline("tweet", "Tweets", "tweets"),
        TaskSpec(
            *("wiki", "Wikipedia topics", _TOPICS, _TEXTS[:1], ("accuracy",), "offline"),
            "which of eleven topics is the first paragraph of an article of Wikipedia about (CC BY-SA 4.0)",
            "wiki",
        ),
        _glue("sst2", "SST-2", "negative positive", "accuracy", 1, "the sentiment of a phrase of a movie review"),
        _glue("mrpc", "MRPC", "not_equivalent equivalent", "accuracy f1", 2, "do the two sentences say the same"),
        _glue("rte", "RTE", "entailment not_entailment", "accuracy", 2, "does the first text entail the second"),
        _glue("cola", "CoLA", "unacceptable acceptable", "matthews accuracy", 1, "is the sentence good English"),
        _glue("stsb", "STS-B", "", "pearson spearman", 2, "how alike two sentences are, from 0 to 5"),
        _glue("qnli", "QNLI", "entailment not_entailment", "accuracy", 2, "does the sentence answer the question"),
        _glue("qqp", "QQP", "not_duplicate duplicate", "accuracy f1", 2, "do the two questions ask the same"),
        _glue("mnli", "MNLI matched", _NLI, "accuracy", 2, "premise and hypothesis; test has the genres of train"),
        _glue("mnli-mm", "MNLI mismatched", _NLI, "accuracy", 2, "premise and hypothesis; test has other genres"),
        _glue("wnli", "WNLI", "not_entailment entailment", "accuracy", 2, "is the pronoun replaced by the right name"),
    )
}
"""Every task, by name."""
