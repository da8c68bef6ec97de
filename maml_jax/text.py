"""Makes text of unknown origin safe to print."""


def printable(text: str, most: int = 2_000) -> str:
    r"""Cuts a text to `most` characters and escapes control characters and invalid UTF-8.

    Example:
        >>> from maml_jax.text import printable
        >>> printable("one\ttwo")
        'one\\ttwo'
    """
    shown = text if len(text) <= most else f"{text[:most]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
