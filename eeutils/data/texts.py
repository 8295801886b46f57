"""When a text counts as empty, and when two texts count as one."""

from unicodedata import category, normalize

# Spaces, control and format characters, and marks, which show nothing without a letter to stand on.
_INVISIBLE_KINDS = {"Zs", "Zl", "Zp", "Cc", "Cf", "Mn"}
_INVISIBLE_LETTERS = set("\u115f\u1160\u3164\uffa0\u2800")  # Hangul's fillers, and Braille without a dot


def is_empty(text: str) -> bool:
    """Whether nothing of a text is seen: it has no characters, or only spaces and invisible ones."""
    return all(category(letter) in _INVISIBLE_KINDS or letter in _INVISIBLE_LETTERS for letter in text)


def normal_form(text: str) -> str:
    """Two texts that differ in case, accents, spacing or invisible characters only are one, as to an uncased
    tokenizer."""
    parts = normalize("NFD", " ".join(text.lower().split()))
    return "".join(letter for letter in parts if category(letter) not in ("Cc", "Cf", "Mn"))
