"""Default settings by kind of images, ways and shots; the paper's where it states them."""

from __future__ import annotations

from typing import Any


def characters(num_ways: int, num_shots: int) -> dict[str, Any]:
    """Defaults for characters: the paper's settings for Omniglot (appendix A.1)."""
    many = num_ways >= 20
    return {
        "train_queries": num_shots,
        "num_tasks": 16 if many else 32,
        "inner_steps": 5 if many else 1,
        "inner_lr": 2.0,
        "num_filters": 64,
        "image_size": 28,
        "image_kind": "ink",
        "rotations": "augment",
        "clip": 0.0,
        "pooling": "stride",
        "report_steps": 5 if many else 3,
        "steps_per_call": 100,
    }


def photographs(num_ways: int, num_shots: int, train_queries: int | None) -> dict[str, Any]:
    """Defaults for photographs: the original code's settings for MiniImagenet.

    The paper's text has 2 tasks a meta-batch for 5-shot, the code's command 4 for 1-shot and
    5-shot. The code clips at 10 the gradient of a loss that is N * queries / K times the mean.
    """
    queries = train_queries or 15
    return {
        "train_queries": queries,
        "num_tasks": 4,
        "inner_steps": 5,
        "inner_lr": 0.05,
        "num_filters": 32,
        "image_size": 84,
        "image_kind": "colour",
        "rotations": "none",
        "clip": 10.0 / (num_ways * queries / num_shots),
        "pooling": "max",
        "report_steps": 10,
        "steps_per_call": 25,
    }
