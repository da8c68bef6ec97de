"""The pages: their code runs, their links and pictures resolve, their results are the files'."""

import collections
import configparser
import json
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from maml_jax import confidence_interval

ROOT = Path(__file__).resolve().parents[1]
# docs/networks.md runs in test_recipes.py, which looks at what its code gives.
PAGES_WITH_CODE = [
    "README.md",
    "docs/algorithm.md",
    "CONTRIBUTING.md",
    "docs/meta_gradient_modes.md",
    "docs/your_own_problem.md",
    "docs/training.md",
    "docs/few_shot.md",
    "docs/reinforcement.md",
    "docs/scaling.md",
    "docs/install.md",
]
ALL_PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    ROOT / "benchmarks/README.md",
    ROOT / "experiments/results/README.md",
]
PACKAGE_INDEX = ROOT / "docs/package_index.md"


def code_blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def without_code(text):
    return re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def links(page):
    """The targets of a page's links and pictures, outside code."""
    return re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text()))


def anchors(page):
    """The anchors of a page's headings, as GitHub forms them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    counts = collections.Counter()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        counts[re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")] += 1
    repeated = {f"{anchor}-{i}" for anchor, count in counts.items() for i in range(1, count)}
    return {*counts, *repeated}


@pytest.mark.parametrize("page", PAGES_WITH_CODE)
def test_code_runs(page):
    blocks = code_blocks(ROOT / page, "python")
    assert blocks
    exec(compile("\n".join(blocks), page, "exec"), {"__name__": "page"})


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_resolve(page):
    for target in links(page):
        if "://" in target:
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT), target
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), f"{target}: no such heading"


def test_links_are_recognised(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`, c\n![p](q.png) [x](y.md#z)\n## Twice\n## Twice\n```sh\n# no\n[a](b)\n```\n"
    )
    assert links(page) == ["q.png", "y.md#z"]
    assert anchors(page) == {"a-b-c", "twice", "twice-1"}


def test_the_package_index_page_has_no_relative_link():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert settings["metadata"]["long_description"] == "file: docs/package_index.md"
    assert all("://" in target for target in links(PACKAGE_INDEX))
    assert "<img" not in PACKAGE_INDEX.read_text()


def test_the_package_index_page_shows_the_readmes_example():
    assert code_blocks(PACKAGE_INDEX, "python") == code_blocks(ROOT / "README.md", "python")


def test_every_guide_is_linked():
    """Every page of docs/ is reachable from the README."""
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        targets = [t.partition("#")[0] for t in links(page) if "://" not in t]
        waiting += [(page.parent / t).resolve() for t in targets if t.endswith(".md")]
    assert set(ROOT.glob("docs/**/*.md")) - reached == {PACKAGE_INDEX}


METHODS = {
    "MAML": "maml",
    "MAML, first order": "first_order",
    "pretrained on all tasks": "pretrained",
    "averaged networks": "averaged",
    "averaged networks, L2": "averaged_l2",
    "averaged networks, to the mean": "averaged_to_mean",
    "random initialisation": "random",
    "oracle, not adapted": "oracle",
}


def curves_on_the_results_page():
    """Rows of docs/results.md by steps: (run, number of points K, row label, step, cell)."""
    run = points = steps = None
    for line in (ROOT / "docs/results.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("### K = "):
            points = f"K={line.removeprefix('### K = ')}"
        elif line.startswith("#"):
            points = None
        elif match := re.match(r"Runs? `(\w+)`", line):
            run = match[1]
        elif not line.startswith("|"):
            steps = None
        elif cells[0] == "gradient steps":
            steps = [int(cell) for cell in cells[1:]]
        elif steps and not line.startswith("|---"):
            for step, cell in zip(steps, cells[1:], strict=True):
                if cell:
                    yield run, points, cells[0], step, cell


def recorded(run, paper, method, points, step):
    """The row of a run's results, or the paper's of the same experiment and setting."""
    folder = ROOT / "experiments"
    results = json.loads((folder / "results" / run / "results.json").read_text())
    rows, setting = results["rows"], points or results["rows"][0]["setting"]
    if paper:
        rows = json.loads((folder / "paper_results.json").read_text())["rows"]
        rows = [row for row in rows if row["experiment"] == results["experiment"]]
    key = (method, setting, step)
    (row,) = [r for r in rows if (r["method"], r["setting"], r["gradient_steps"]) == key]
    return row


def test_the_curves_on_the_results_page_are_those_of_the_files():
    checked = 0
    for run, points, label, step, cell in curves_on_the_results_page():
        if "lead" in label:
            continue
        if match := re.search(r" \(`(\w+)`\)", label):  # another run than the table's
            run, label = match[1], label.replace(match[0], "").partition(", curvature")[0]
        method = re.sub(r", (paper|short|whole)\b", "", label)
        row = recorded(run, ", paper" in label, METHODS[method], points, step)
        mean, _, half = cell.partition(" ± ")
        digits = len(mean.partition(".")[2])
        assert float(mean) == round(row["mean"], digits), (run, label, step)
        assert (not half) or float(half) == round(row["ci95"], digits), (run, label, step)
        checked += 1
    assert checked > 150


def returns_by_task(run, method):
    """Test returns of a run of one seed [task, gradient step]."""
    with np.load(ROOT / "experiments/results" / run / "evaluation.npz") as arrays:
        return arrays[f"returns/{method}"][0].astype(np.float64)


def check_interval(shown, differences, where):
    """Checks "MEAN ± HALF", with the digits that are shown, against one difference per task."""
    expected = f"{differences.mean():.1f} ± {confidence_interval(differences):.1f}"
    assert shown == expected, where


def test_the_leads_on_the_results_page_are_those_of_the_files():
    checked = 0
    for run, _, label, step, cell in curves_on_the_results_page():
        if "lead" in label:
            lead = returns_by_task(run, "maml") - returns_by_task(run, "pretrained")
            check_interval(cell, lead[:, step], (run, step))
            checked += 1
    assert checked == 9
    text = " ".join((ROOT / "docs/results.md").read_text().split())
    (gain,) = re.findall(r"first gradient step is worth ([^,]*), task by task", text)
    returns = returns_by_task("ant_velocity", "maml")
    check_interval(gain, returns[:, 1] - returns[:, 0], "ant_velocity")
