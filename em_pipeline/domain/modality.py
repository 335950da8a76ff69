"""How a volume was imaged, in one vocabulary; portals and files spell it in many ways.

The names are those of EMPIAR's experiment types, where it has one (deposition schema, `experiment_type`), and
else those in common use.
"""

import re

# Spelling, reduced by `_reduced` → name.
NAMES = {
    "fib": "FIB-SEM",
    "fibem": "FIB-SEM",
    "fibsem": "FIB-SEM",
    "efibsem": "FIB-SEM",
    "sbf": "SBF-SEM",
    "sbfem": "SBF-SEM",
    "sbfsem": "SBF-SEM",
    "sbem": "SBF-SEM",
    "sbsem": "SBF-SEM",
    "atum": "ATUM-SEM",
    "atumem": "ATUM-SEM",
    "atumsem": "ATUM-SEM",
    "sstem": "ssTEM",
    "sssem": "ssSEM",
    "sset": "ssET",
    "arraytomography": "array tomography",
    "stem": "STEM",
    "sem": "SEM",
    "tem": "TEM",
}
# Long form → its letters, in this order: what is part of another comes after it.
_LETTERS = (
    (re.compile(r"enhanced (?=foc|fib)"), "e"),
    (re.compile(r"focuss?ed ion beam( milling)?"), "fib"),
    (re.compile(r"serial block face"), "sbf"),
    (re.compile(r"automat(ed|ic) tape collecting ultra ?microto(me|my)"), "atum"),
    (re.compile(r"serial section(s|ing)?"), "ss"),
    (re.compile(r"scanning transmission electron micro(scopy|scope)"), "stem"),
    (re.compile(r"scanning electron micro(scopy|scope)"), "sem"),
    (re.compile(r"transmission electron micro(scopy|scope)"), "tem"),
    (re.compile(r"electron micro(scopy|scope)"), "em"),
    (re.compile(r"electron tomography"), "et"),
)
_PARENTHESIS = re.compile(r"\(([^()]*)\)")
_WORDS = re.compile(r"[^a-z0-9]+")


def known_modality(text: str) -> str | None:
    """The vocabulary's name for what `text` says; None where it says nothing known, or two things.

    Case and punctuation do not matter; an abbreviation may follow in parentheses.
    """
    parts = (_PARENTHESIS.sub(" ", text), *_PARENTHESIS.findall(text))
    found = {name for part in parts if (name := NAMES.get(_reduced(part)))}
    return found.pop() if len(found) == 1 else None


def modality(text: str) -> str:
    """As `known_modality`, or `text` as it stands where that knows nothing."""
    return known_modality(text) or text


def _reduced(text: str) -> str:
    """Letters and digits of `text`, its long forms abbreviated."""
    words = _WORDS.sub(" ", text.lower()).strip()
    for long, letters in _LETTERS:
        words = long.sub(letters, words)
    return words.replace(" ", "")
