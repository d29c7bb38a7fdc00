"""Draw many pictures as one labeled picture."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont


def draw_sweep_grid(
    pictures: Sequence[Image.Image], strengths: Sequence[float], scales: Sequence[float]
) -> Image.Image:
    """Draw one labeled picture of a sweep; `pictures` are in rows, one row per guidance scale."""
    columns = len(strengths)
    return draw_grid(
        [pictures[i : i + columns] for i in range(0, len(pictures), columns)],
        [f"{value:g}" for value in strengths],
        [f"{value:g}" for value in scales],
        column_title="strength",
        row_title="guidance",
    )


def draw_grid(
    rows: Sequence[Sequence[Image.Image]],
    column_labels: Sequence[str],
    row_labels: Sequence[str],
    *,
    column_title: str = "",
    row_title: str = "",
) -> Image.Image:
    """Draw many pictures as one labeled grid.

    Args:
        rows: pictures of one size, in rows.
        column_labels: labels above the columns.
        row_labels: labels left of the rows.
        column_title: name of the value that changes by column, above its labels.
        row_title: name of the value that changes by row, in the top left corner.
    """
    width, height = rows[0][0].size
    text = min(max(height // 12, 12), 36)
    font, gap = ImageFont.load_default(text), max(text // 2, 6)
    title_width = font.getlength(row_title)
    left = int(max([title_width, *map(font.getlength, row_labels)])) + 2 * gap
    top = 2 * text + 3 * gap
    columns = len(column_labels)
    sheet = Image.new(
        "RGB",
        (left + columns * (width + gap), top + len(rows) * (height + gap)),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    middle = left + (columns * (width + gap) - gap) / 2
    draw.text((middle, gap), column_title, fill="#555555", font=font, anchor="ma")
    draw.text((gap, top - gap), row_title, fill="#555555", font=font, anchor="ls")
    for column, label in enumerate(column_labels):
        x = left + column * (width + gap)
        draw.text((x + width / 2, top - gap), label, fill="black", font=font, anchor="ms")
    for row, (label, images) in enumerate(zip(row_labels, rows, strict=True)):
        y = top + row * (height + gap)
        draw.text((left - gap, y + height / 2), label, fill="black", font=font, anchor="rm")
        for column, image in enumerate(images):
            sheet.paste(image, (left + column * (width + gap), y))
    return sheet
