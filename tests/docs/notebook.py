"""A page of docs/ as a notebook: ``python -m tests.docs.notebook`` writes it anew.

Text stays text. A block that begins with the name of a file is written to that file; console blocks
become shell commands, sh blocks bash cells, and what a text block says is the output before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs/strategy.md"
NOTEBOOK = PAGE.with_suffix(".ipynb")

_BLOCK = re.compile(r"```(\w+)\n(.*?)```\n", re.S)
_FILE = re.compile(r"# (\S+\.(?:py|toml))\n")


@dataclass(frozen=True)
class Cell:
    """A cell of the notebook, and what the page says that it prints, line by line.

    A line ``...`` stands for any others.
    """

    kind: str
    source: str
    told: tuple[str, ...] = ()

    def to_json(self, number: int) -> dict[str, Any]:
        made: dict[str, Any] = {
            "cell_type": self.kind,
            "id": f"cell-{number}",
            "metadata": {},
            "source": self.source.splitlines(keepends=True),
        }
        return made | ({"execution_count": None, "outputs": []} if self.kind == "code" else {})


def cells(page: str) -> list[Cell]:
    """The cells that a page is made of."""
    found: list[Cell] = []
    at = 0
    for block in _BLOCK.finditer(page):
        if text := page[at : block.start()].strip():
            found.append(Cell("markdown", text))
        if block[1] == "text":
            found[-1] = Cell("code", found[-1].source, tuple(block[2].splitlines()))
        else:
            found += _code(block[1], block[2])
        at = block.end()
    rest = page[at:].strip()
    return [*found, Cell("markdown", rest)] if rest else found


def _code(kind: str, text: str) -> Iterator[Cell]:
    if named := _FILE.match(text):
        yield Cell("code", f"%%writefile {named[1]}\n{text[named.end() :].rstrip()}")
    elif kind == "console":
        for command in re.split(r"^\$ ", text, flags=re.M)[1:]:
            line, _, told = command.partition("\n")
            yield Cell("code", f"!{line}", tuple(told.splitlines()))
    else:
        yield Cell("code", f"%%bash\n{text.rstrip()}" if kind == "sh" else text.rstrip())


def notebook(page: str) -> dict[str, Any]:
    """The notebook, in the format of Jupyter."""
    return {
        "cells": [cell.to_json(number) for number, cell in enumerate(cells(page))],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def written(page: str) -> str:
    """The notebook as it stands in its file."""
    return json.dumps(notebook(page), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
