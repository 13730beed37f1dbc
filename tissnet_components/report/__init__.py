"""Tables and figures of finished runs."""

import re


def slug(name: str) -> str:
    """A row's name as that of its folder and weights."""
    return re.sub(r"[^\w.+-]+", "_", str(name)).strip("_.")
