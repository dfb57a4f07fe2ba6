"""The losses of a run, step by step -> a picture of them in SVG, which a card shows and a browser opens.

It is drawn by hand, for no plotting library here writes a picture without a browser or 40 MB more.
"""

from collections.abc import Sequence
from math import isfinite

WIDTH, HEIGHT, MARGIN = 640, 320, 48
COLOURS = ("#1f77b4", "#d62728")
Curve = Sequence[tuple[int, float]]  # (step, loss)


def loss_plot(title: str, curves: dict[str, Curve]) -> str | None:
    """A line for each curve, by its name, over common axes; None where there is no line to draw."""
    kept = {name: [point for point in curve if isfinite(point[1])] for name, curve in curves.items()}
    kept = {name: curve for name, curve in kept.items() if len(curve) > 1}
    points = [point for curve in kept.values() for point in curve]
    if not points:
        return None
    last, low, high = max(step for step, _ in points), min(y for _, y in points), max(y for _, y in points)
    spread = high - low or 1.0

    def place(step: int, loss: float) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * step / max(1, last)
        return f"{x:.1f},{HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (loss - low) / spread:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(WIDTH / 2, 20, title, "middle"),
        f'<path d="M{MARGIN},{MARGIN} V{HEIGHT - MARGIN} H{WIDTH - MARGIN}" fill="none" stroke="black"/>',
        _text(MARGIN - 4, HEIGHT - MARGIN, f"{low:.3g}", "end"),
        _text(MARGIN - 4, MARGIN + 4, f"{high:.3g}", "end"),
        _text(MARGIN, HEIGHT - MARGIN + 16, "0", "middle"),
        _text(WIDTH - MARGIN, HEIGHT - MARGIN + 16, f"{last:,} steps", "end"),
    ]
    for number, (name, curve) in enumerate(kept.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(place(*point) for point in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(_text(WIDTH - MARGIN, MARGIN + 16 * number, name, "end", colour))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str, colour: str = "black") -> str:
    safe = text.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}">{safe}</text>'
