"""The code in the README and the guides runs as it stands, page by page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# docs/networks.md runs in test_recipes.py, which looks at what its code gives.
PAGES = [
    "README.md",
    "docs/algorithm.md",
    "CONTRIBUTING.md",
    "docs/meta_gradient_modes.md",
    "docs/your_own_problem.md",
    "docs/training.md",
    "docs/few_shot.md",
    "docs/reinforcement.md",
    "docs/scaling.md",
]


@pytest.mark.parametrize("page", PAGES)
def test_code_runs(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    exec(compile("\n".join(blocks), page, "exec"), {"__name__": "page"})


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_quick_start_is_ten_lines():
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line for line in block.group(1).splitlines() if line.strip()]
    assert len(lines) <= 12  # ten and the imports
