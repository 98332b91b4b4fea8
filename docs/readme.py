"""Renew the table of components in README.md, which comes from their cards: python docs/readme.py."""

from __future__ import annotations

from pathlib import Path

from maskmed_zoo import registry

README = Path(__file__).resolve().parents[1] / "README.md"
FIRST, LAST = "<!-- components: python docs/readme.py -->", "<!-- end of components -->"


def main() -> None:
    """Write README.md, where the table has changed."""
    old = README.read_text(encoding="utf-8")
    if (new := renewed(old)) != old:
        README.write_text(new, encoding="utf-8")


def renewed(text: str) -> str:
    """The text with the table that the cards give between the two marks."""
    before, first, rest = text.partition(FIRST)
    _, last, after = rest.partition(LAST)
    if not first or not last:
        raise SystemExit(f"README.md: expected a line '{FIRST}' and after it '{LAST}'; put them around the table")
    return f"{before}{FIRST}\n\n{table()}\n\n{LAST}{after}"


def table() -> str:
    """One row per component of this repository, by kind and name; those of installed plug-ins are left out."""
    own = registry.data_folder("registry")
    cards = [card for kind in registry.COMPONENT_KINDS for card in registry.find(kind=kind)]
    rows = [
        f"| {card.kind} | `{card.name}` | {card.summary} |"
        for card in cards
        if card.source is not None and card.source.is_relative_to(own)
    ]
    return "\n".join(["| kind | name | what it is |", "|---|---|---|", *rows])


if __name__ == "__main__":
    main()
