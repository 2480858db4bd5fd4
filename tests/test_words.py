"""The package speaks plain English: the phrases that the style page replaces appear nowhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMPARED = (
    "longer",
    "more",
    "less",
    "fewer",
    "better",
    "worse",
    "larger",
    "smaller",
    "slower",
    "faster",
    "wider",
    "one",
)
# What the first table of the style page says, as expressions; a sentence may go on in the next line.
PHRASES = {
    r"\b(leav(e|es|ing)|left)\b[^.]{0,30}(?<!far )\baway\b": "omit",
    rf"(?<!there )\b(is|are|was|were|be) no (?!({'|'.join(COMPARED)})\b)[a-z`]": "is not a",
    r"\bcalls? of (the|a|its|one) (vector )?(field|network)s?\b": "function evaluations",
    r"\bdear(er|est)?\b": "expensive",
    r"\bto the bit\b": "bit for bit",
    r"\bto be had\b": "not available",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bunless given\b": "Default:",
}


def texts():
    """Yields every text that a user may read: the package, recipes, benchmarks and pages."""
    for folder in ("cflow", "recipes", "tests/benchmarks", ".github"):
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix in (".py", ".md", ".ipynb"):
                yield file, file.read_text()
    yield ROOT / "README.md", (ROOT / "README.md").read_text()


def found(text):
    """Returns the phrases of a text, each with what to write in place of it."""
    joined = re.sub(r"\s+", " ", re.sub(r"[\"']?\n\s*(#|f?[\"'])?", " ", text))
    hits = ((match, better) for phrase, better in PHRASES.items() for match in re.finditer(phrase, joined, re.I))
    return [f"{joined[max(0, match.start() - 40) : match.end() + 20]!r}: {better}" for match, better in hits]


def test_no_phrase_of_the_style_page_is_left():
    wrong = []
    for file, text in texts():
        if file.name == "CONTRIBUTING.md":  # the page that lists them
            text = re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)
        wrong += [f"{file.relative_to(ROOT)}: {each}" for each in found(text)]
    assert wrong == []


@pytest.mark.parametrize(
    "text",
    [
        "the mask is no tensor",
        "leave the option away",
        "100 calls of the field",
        "equal to the bit",
        "a dear solve",
        "runs/x unless given",
        'f"this is "\n    "no tensor"',
    ],
)
def test_a_phrase_is_found(text):
    assert len(found(text)) == 1


@pytest.mark.parametrize(
    "text", ["there is no tensor", "it is no longer there", "the field is evaluated", "recommended"]
)
def test_plain_words_are_not(text):
    assert found(text) == []
