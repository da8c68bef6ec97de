"""Text tables of results, with the paper's numbers for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import results
from .closing import closing
from .results import format_table


def run_table(run: dict[str, Any]) -> str:
    """Formats a run's results, the paper's numbers where there are any, and the seconds taken."""
    clock, where = run["wall_clock_s"], run["environment"]
    speed = run["meta_steps_per_s"]
    table, note = group_table([run]), ""
    if "paper" in table:
        note = "Columns 'paper': published numbers, for the settings of the preset 'paper'.\n"
    verdict = closing(run)
    return (
        f"{table}\n\n{note}"
        + (f"{verdict}\n" if verdict else "")
        + f"{run['meta_steps']:,} meta-steps in all, {results.pace(speed)} a second; "
        f"compile {clock['compile']:.1f} s, train {clock['train']:.1f} s, "
        f"evaluate {clock['evaluate']:.1f} s on {where['device']}"
    )


def group_table(runs: Sequence[dict[str, Any]]) -> str:
    """Formats the results of runs that differ in their seed only, and the paper's numbers."""
    paper = results.published()
    pooled = results.pool(runs)
    steps = sorted({k[2] for k in pooled if k[2] is not None})
    chosen: list[int | None] = [s for s in (0, 1, 2, 3, 5, 10) if s in steps]
    if any(k[2] is None for k in pooled):
        chosen.append(None)  # methods that take no gradient steps
    metrics = sorted({k[3] for k in pooled})
    blocks = []
    for metric in metrics:
        header = [f"{metric} after ... steps", "tasks", "seeds"]
        for s in chosen:
            header += [f"{s}" if s is not None else "(none)", "paper"]
        header.append("paper, no step named")
        lines = []
        named = dict.fromkeys((k[1], k[0]) for k in pooled if k[3] == metric)
        for setting, method in named:
            cells = [pooled.get((method, setting, s, metric)) for s in chosen]
            first = next(c for c in cells if c is not None)
            line = [
                f"{setting}  {results.METHOD_TITLES.get(method, method)}",
                str(first["num_tasks"]),
                str(first["num_seeds"]),
            ]
            for s, cell in zip(chosen, cells, strict=True):
                theirs = paper.get((runs[0]["experiment"], method, setting, s, metric))
                line.append("" if cell is None else _shown(cell))
                shown = theirs is not None and s is not None
                line.append(f"{theirs['mean']:.2f}" if shown else "")
            unnamed = paper.get((runs[0]["experiment"], method, setting, None, metric))
            line.append(_shown(unnamed) if unnamed else "")
            lines.append(line)
        keep = [
            i for i, h in enumerate(header) if "paper" not in h or any(line[i] for line in lines)
        ]
        blocks.append(
            format_table([header[i] for i in keep], [[line[i] for i in keep] for line in lines])
        )
    return "\n\n".join(blocks)


def _shown(cell: dict[str, Any]) -> str:
    if not np.isfinite(cell["mean"]):
        return "diverged"
    if cell["ci95"] is None:  # the paper gives none for numbers that it quotes
        return f"{cell['mean']:.3f}"
    return f"{cell['mean']:.3f} ±{cell['ci95']:.3f}"


def members_table(run: dict[str, Any]) -> str:
    """Formats one line per member: its main metric and, if there is any, its validation score."""
    members = run["members"]
    main = next(m for m in members.values() if "diverged_after" not in m)
    scores = [m["validation"] for m in members.values() if m["validation"] is not None]
    after = main["gradient_steps"]
    header = ["member", main["metric"] if after is None else f"after {after} steps"]
    header += ["validation", ""] if scores else []
    lines = []
    for label, member in members.items():
        if "diverged_after" in member:
            value = f"diverged in training, after meta-step {member['diverged_after']:,}"
        elif member["mean"] is None:
            value = "diverged"
        else:
            value = f"{member['mean']:.4g} ±{member['ci95']:.2g}"
        line, score = [label, value], member["validation"]
        if scores:
            best = score is not None and score == max(scores)
            line += ["" if score is None else f"{score:.4f}", "best by validation" if best else ""]
        lines.append(line)
    title = results.METHOD_TITLES.get(main["method"], main["method"])
    return f"{main['metric']}, {main['setting']}, {title}\n\n{format_table(header, lines)}"
