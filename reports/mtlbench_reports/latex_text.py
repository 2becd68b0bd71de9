"""Text as LaTeX that typesets exactly these characters in every engine, with no package except booktabs."""

from __future__ import annotations

import unicodedata

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    '"': "''",
    "`": r"\`{}",
    "\u2060": "{}",
    "…": r"\ldots{}",
    "–": "--",
    "—": "---",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "→": r"$\to$",
    "∗": "*",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "§": r"\S{}",
    "°": r"$^\circ$",
    "µ": r"$\mu$",
    "μ": r"$\mu$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "Δ": r"$\Delta$",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "\u00a0": "~",
}
"""Of the rest, ``--`` would become a dash: a word joiner goes between."""
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c",
}  # fmt: skip
_LETTERS = {"ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "ø": r"\o{}", "Ø": r"\O{}", "œ": r"\oe{}", "ł": r"\l{}"}


def escaped(text: str) -> str:
    """One line of LaTeX. Letters that the standard fonts lack become their code, such as ``[U+4E2D]``."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return "".join(_letter(c) for c in unicodedata.normalize("NFC", line.replace("--", "-\u2060-")))


def _letter(letter: str) -> str:
    known = _SPECIAL.get(letter) or _LETTERS.get(letter)
    if known is not None:
        return known
    if letter.isascii():
        return letter
    base, *marks = list(unicodedata.normalize("NFD", letter))
    if base.isascii() and base.isalpha() and len(marks) == 1 and marks[0] in _ACCENTS:
        dotless = {"i": r"\i", "j": r"\j"}.get(base, base)
        return f"\\{_ACCENTS[marks[0]]}{{{dotless}}}"
    return f"[U+{ord(letter):04X}]"
