"""Every case, by the slug of its source. A registered source without one fails the suite.

The case of a source is the constant `CASE` of the module `case_<slug>.py` beside this one.
"""

from importlib import import_module
from pathlib import Path

from em_pipeline_tests.contracts.case import SourceCase

SLUGS = sorted(path.stem.removeprefix("case_") for path in Path(__file__).parent.glob("case_*.py"))
CASES: dict[str, SourceCase] = {
    slug: import_module(f"em_pipeline_tests.contracts.case_{slug}").CASE for slug in SLUGS
}
