"""The README tells the truth: its code runs and prints what it says, and its picture and paths exist."""

import doctest
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_code_prints_what_it_says():
    failed, attempted = doctest.testfile(str(ROOT / "README.md"), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert attempted > 5
    assert failed == 0


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    local = [link for link in links if "://" not in link]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []
