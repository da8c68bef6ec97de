"""Text of unknown origin, made safe to show."""


def printable(text: str, most: int = 2_000) -> str:
    """At most `most` characters of a text; control characters and broken UTF-8 as escapes."""
    shown = text if len(text) <= most else f"{text[:most]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
