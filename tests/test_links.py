"""Links between the documents of the tree lead somewhere: the file is there, and so is the heading."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOUND = [*ROOT.glob("*.md"), *(path for folder in ("docs", "tests") for path in (ROOT / folder).rglob("*.md"))]
DOCUMENTS = sorted(str(path.relative_to(ROOT)) for path in FOUND)


def prose(document: Path) -> str:
    """The text outside blocks of code."""
    return re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def headings(document: Path) -> set[str]:
    """The fragments that GitHub gives the headings: lower case, hyphens for spaces, no other punctuation."""
    titles = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_inside_the_tree_leads_somewhere(name: str) -> None:
    document = ROOT / name
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(document))
    for target in targets:
        if re.match(r"[a-z]+:", target):  # an address
            continue
        path, _, fragment = target.partition("#")
        there = (document.parent / path).resolve() if path else document
        assert there.exists(), target
        assert not fragment or fragment in headings(there), target


def test_a_fragment_is_made_as_github_makes_it(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text(
        "# What `--x_y` does: a, b\n```bash\n# no heading\n```\n## 8. When it stops\n### LLaVA-NeXT's\n"
    )
    assert headings(document) == {"what---x_y-does-a-b", "8-when-it-stops", "llava-nexts"}
