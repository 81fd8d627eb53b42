"""Text from files of strangers, made fit to be shown."""

import unicodedata

_LINE_BREAKS = "\n\r\t\u2028\u2029"


def clean(text: object, length_max: int = 400) -> str:
    """One line without control or direction characters, cut to a length: names come from files of strangers."""
    # Looking at every character of a huge string would be a harm of its own.
    said = str(text)[: 16 * length_max]
    shown = "".join(" " if character in _LINE_BREAKS else character for character in said)
    shown = "".join(character for character in shown if unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Cn"})
    return shown if len(shown) <= length_max else shown[: length_max - 1] + "…"
