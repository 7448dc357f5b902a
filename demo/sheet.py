"""The contact sheet: each photograph beside its nearest neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont, ImageOps

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from demo.neighbours import Neighbour

_TILE = 148  # pixels of a thumbnail, both ways
_GAP = 12
_AFTER_PHOTO = 30  # between a photograph and its first neighbour
_CAPTION = 26
_BAR = 4  # the similarity, as a bar below the thumbnail
_MARGIN = 36
_BETWEEN = 56  # between the columns of rows
_HEADER = 88

_PAPER, _INK, _SOFT, _RULE = "#fafaf8", "#1c1c1a", "#75756f", "#e3e3de"
_BAR_FULL = "#2f6f6a"


def draw_sheet(
    neighbours: Mapping[Path, list[Neighbour]], path: Path, heading: str, note: str, columns: int = 2, colours: int = 0
) -> None:
    """Draws the sheet and saves it as PNG.

    Args:
        neighbours: of each photograph, nearest first.
        path: of the PNG.
        heading: the large line at the top.
        note: the small one below it.
        columns: photographs side by side.
        colours: of the palette, for a smaller file; 0 keeps them all.
    """
    count = max(map(len, neighbours.values()))
    block = _TILE * (count + 1) + _GAP * (count - 1) + _AFTER_PHOTO
    row = _TILE + _BAR + _CAPTION + _GAP
    rows = -(-len(neighbours) // columns)
    width = 2 * _MARGIN + columns * block + (columns - 1) * _BETWEEN
    sheet = Image.new("RGB", (width, _HEADER + _MARGIN + rows * row + _MARGIN // 2), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN - 8), heading, _INK, ImageFont.load_default(24))
    draw.text((_MARGIN, _MARGIN + 26), note, _SOFT, ImageFont.load_default(14))
    for index, (photo, others) in enumerate(neighbours.items()):
        left = _MARGIN + (index // rows) * (block + _BETWEEN)
        top = _HEADER + _MARGIN // 2 + (index % rows) * row
        _tile(sheet, photo, left, top, photo.name, None)
        middle = left + _TILE + _AFTER_PHOTO // 2
        draw.line((middle, top, middle, top + _TILE), _RULE, 1)
        for place, other in enumerate(others):
            x = left + _TILE + _AFTER_PHOTO + place * (_TILE + _GAP)
            _tile(sheet, other.path, x, top, other.path.stem, other.cosine)
    if colours:
        sheet = sheet.quantize(colours, dither=Image.Dither.FLOYDSTEINBERG)
    sheet.save(path, optimize=True)


def _tile(sheet: Image.Image, image: Path, left: int, top: int, name: str, cosine: float | None) -> None:
    """A thumbnail (the whole image, on a mat) with its caption; a neighbour's has its cosine and a bar as well."""
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((left, top, left + _TILE - 1, top + _TILE - 1), _RULE)
    with Image.open(image) as opened:
        thumbnail = ImageOps.contain(opened.convert("RGB"), (_TILE, _TILE), Image.Resampling.LANCZOS)
    sheet.paste(thumbnail, (left + (_TILE - thumbnail.width) // 2, top + (_TILE - thumbnail.height) // 2))
    bottom = top + _TILE
    room = _TILE
    if cosine is not None:
        draw.rectangle((left, bottom + 2, left + _TILE - 1, bottom + 1 + _BAR), _RULE)
        draw.rectangle((left, bottom + 2, left + round((_TILE - 1) * max(0.0, cosine)), bottom + 1 + _BAR), _BAR_FULL)
        label, font = f"{cosine:.2f}", ImageFont.load_default(14)
        draw.text((left + _TILE, bottom + _BAR + 5), label, _INK, font, anchor="ra")
        room -= round(font.getlength(label)) + 10
    small = ImageFont.load_default(13)
    colour = _SOFT if cosine is not None else _INK
    draw.text((left, bottom + _BAR + 5), _shortened(name, small, room), colour, small)


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> str:
    """The text, its middle left out where it is too long; the end tells halves apart."""
    if font.getlength(text) <= room:
        return text
    for keep in range(len(text) - 1, 2, -1):
        tail = keep // 2
        shorter = f"{text[: keep - tail]}…{text[len(text) - tail :]}"
        if font.getlength(shorter) <= room:
            return shorter
    return "…"
