"""The one exception for bad input, and the sentence for an unknown name."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input, told in a sentence: what was wrong, what was expected, what to do."""


def unknown(kind: str, name: object, valid: Iterable[str]) -> InputError:
    """The error for a name that is not in a list of valid names; it lists them and suggests the nearest."""
    names = sorted(valid)
    near = get_close_matches(str(name), names, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return InputError(f"unknown {kind} {str(name)!r}{hint}; choose one of: {', '.join(names)}")
