"""docs/flower.md, for the tests that hold it to what it shows."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "flower.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Its blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def app() -> tuple[str, str]:
    """The module of the app that it shows, and its components in the pyproject."""
    (module,) = blocks("python")
    (components,) = (block for block in blocks("toml") if "components" in block)
    return module, components
