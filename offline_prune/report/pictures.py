"""Pictures of a report: their names, and how Markdown shows them."""

from __future__ import annotations

from dataclasses import dataclass

FIGURES = "figures"


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, ``figures/<name>.png`` and ``.svg``.

    Attributes:
        name: of the files.
        caption: a sentence that says what is seen; also the text for who cannot see.
    """

    name: str
    caption: str

    @property
    def markdown(self) -> str:
        """Image and caption."""
        text = self.caption.replace("[", "(").replace("]", ")")
        return f"![{text}]({FIGURES}/{self.name}.png)\n\n*{self.caption}*"
