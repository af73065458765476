"""What lies beside a page: the files of its figures and tables."""

import csv
import os
import pathlib
import re

from matplotlib.figure import Figure

from mmcl_jax import figures as draw
from mmcl_jax.csv_text import neutral
from mmcl_jax.html_page import Html, picture


class Figures:
    """Writes each figure as a PNG beside the page and returns it for the page itself.

    Args:
        output: folder of the page.
        svg: also write each figure as SVG.
    """

    def __init__(self, output: pathlib.Path, *, svg: bool = False):
        self.output, self.svg = output, svg
        self.names: list[str] = []

    def add(self, name: str, figure: Figure, alt: str, caption: str = "") -> Html:
        content = draw.png(figure)
        stem = self._write(name, content)
        if self.svg:
            self.names.append(f"{stem}.svg")
            (self.output / self.names[-1]).write_bytes(draw.svg(figure))
        return picture(content, alt, caption)

    def add_png(self, name: str, content: bytes, alt: str, caption: str = "") -> Html:
        self._write(name, content)
        return picture(content, alt, caption)

    def _write(self, name: str, content: bytes) -> str:
        stem = file_name(name)
        taken = sum(other.startswith(f"{stem}.") and other.endswith(".png") for other in self.names)
        stem = f"{stem}.{taken + 1}" if taken else stem
        self.names.append(f"{stem}.png")
        (self.output / self.names[-1]).write_bytes(content)
        return stem


def file_name(text: str) -> str:
    """Text as part of a file name: letters, digits, '.', '-' and '_'."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("._") or "unnamed"


def write_csv(path: pathlib.Path, rows: list) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(map(neutral, row) for row in rows)


def write_page(path: pathlib.Path, text: str) -> None:
    """Written beside and moved, so that a reader never sees half a page."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
