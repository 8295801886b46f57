"""Which tasks there are: names, classes, texts and metrics, without any data."""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from eeutils.data.own import is_own, read_card, read_own
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
    source: Literal["offline", "glue", "own"]
    note: str  # what the texts and labels are
    corpus: str = ""  # of an offline task: which of the pinned files it reads
    bins: tuple[float, ...] = ()  # where the numbers of the corpus are cut into classes

    @property
    def kind(self) -> Literal["classification", "regression"]:
        """Whether labels are classes or numbers."""
        return "classification" if self.class_names else "regression"


def spec_of(name: str) -> TaskSpec:
    """What the task called `name` is: one of `TASKS`, or one's own.

    One's own is a table (csv, tsv, jsonl, parquet), a folder with one for each split or of `save_to_disk`, a dataset of
    the hub as `owner/name` or `owner/name:configuration`, or a card that names one of these. A card, `task.toml` in a
    folder or `NAME.toml` beside a file, says what the data do not: title, texts (one column, or two for pairs), label
    (a column), classes (names as they stand in the files; empty for numbers) and metrics (the first is the headline).

    Raises:
        InputError: none of these, a wrong card, or data that cannot be read; see `own.read_own`.
    """
    if name in TASKS:
        return TASKS[name]
    if not is_own(name):
        if Path(name).suffix or "/" in name:
            near = get_close_matches(Path(name).name, [path.name for path in Path(name).parent.glob("*")], n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise InputError(
                f"there is no file or folder {name!r}{meant}; give a table of your own (csv, tsv, jsonl, parquet), a "
                f"folder of them, or one of: {', '.join(TASKS)}"
            )
        raise InputError(
            f"{unknown('task', name, TASKS)}; or give a table of your own (csv, tsv, jsonl, parquet), a folder of "
            "them, or owner/name of a dataset on the hub"
        )
    card = read_card(name)
    if {"title", "texts", "classes", "metrics"} <= card.keys():  # all is said, and no data need be read
        title, classes, metrics, texts = card["title"], tuple(card["classes"]), tuple(card["metrics"]), card["texts"]
    else:
        own = read_own(name)
        title, classes, metrics, texts = own.title, own.classes, own.metrics, own.texts
    metrics = metrics or (CLASS_METRICS[:1] if classes else NUMBER_METRICS)
    spec = TaskSpec(name, title, classes, _TEXTS[: len(texts)], metrics, "own", f"own task {name}")
    fitting = CLASS_METRICS if classes else NUMBER_METRICS
    for metric in metrics:
        if metric not in fitting:
            raise unknown(f"metric of a {spec.kind} in the card of {name}", metric, fitting)
    if "f1" in metrics and len(classes) > 2:
        raise InputError(
            f"the card of {name} asks for f1, that of the second of two classes, and has {len(classes)} classes; "
            "choose accuracy or matthews"
        )
    return spec


_TEXTS = ("text_a", "text_b")


def number_task(task: str) -> str:
    """The task whose answer is a number and whose texts are those of `task`, or the nearest that there is."""
    spec = spec_of(task)
    if f"{spec.corpus}-valence" in TASKS:
        return f"{spec.corpus}-valence"
    return "stsb" if spec.source == "glue" else "movie-valence"


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
