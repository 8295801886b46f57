"""The sentence for an unknown name."""

from eeutils.errors import InputError, unknown


def test_an_unknown_name_is_told_with_all_valid_ones_and_the_nearest() -> None:
    error = unknown("task", "moive", ["tweet", "movie", "amazon"])
    assert isinstance(error, InputError)
    assert isinstance(error, ValueError)
    assert str(error) == "unknown task 'moive' (did you mean 'movie'?); choose one of: amazon, movie, tweet"


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    assert str(unknown("pool", 7, {"cls": 1, "mean": 2})) == "unknown pool '7'; choose one of: cls, mean"
