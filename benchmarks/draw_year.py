"""Draw what a simulated year made of two repositories: ``python benchmarks/draw_year.py year.json docs/year.svg``.

The JSON is that of tests/keeping/simulated_year.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 56, 190, 40, 36
LINE_HEIGHT = 15
MB = 1e6
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f }
  .grid { stroke: #d0d7de; stroke-width: 1 }
  path { fill: none; stroke-width: 2; stroke-linejoin: round }
  .all { stroke: #8c959f; stroke-dasharray: 5 4 } .chains { stroke: #bc4c00 } .merged { stroke: #0969da }
  .needed { stroke: #0969da; stroke-dasharray: 2 3 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .grid { stroke: #3d444d }
    .all { stroke: #9198a1 } .chains { stroke: #f0883e } .merged, .needed { stroke: #58a6ff }
  }
"""


def draw(days: Sequence[dict[str, dict[str, int]]]) -> str:
    """Return the picture as SVG, for light and dark."""
    lines = {
        "all": ("nothing ever expired", [day["all"]["total"] for day in days]),
        "chains": ("full backups weekly, expire", [day["chains"]["total"] for day in days]),
        "merged": ("incremental for ever, expire --merge", [day["merged"]["total"] for day in days]),
        "needed": ("of that, what backups need", [day["merged"]["needed"] + day["merged"]["wal"] for day in days]),
    }
    step = _step(max(max(values) for _, values in lines.values()) / MB)
    top = step * (int(max(max(values) for _, values in lines.values()) / MB / step) + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="title">',
        f'<title id="title">Size of a repository over {len(days)} days of daily backups</title>',
        f"<style>{STYLE}</style>",
        f'<text x="{LEFT}" y="20">Size of the repository after each daily backup, MB</text>',
    ]

    def place(day: float, megabytes: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * day / max(1, len(days) - 1)
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * megabytes / top

    for number in range(round(top / step) + 1):
        _, y = place(0, number * step)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number * step:g}</text>')
    for day in range(0, len(days), 60 if len(days) > 120 else 10):
        x, y = place(day, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">day {day}</text>')
    for name, (_, values) in lines.items():
        points = [place(day, value / MB) for day, value in enumerate(values)]
        parts.append(f'<path class="{name}" d="M{" L".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
    # Beside where the lines end, from the bottom up: none lies over another one, or over what stands below.
    lowest = HEIGHT - BOTTOM - LINE_HEIGHT + 4.0
    for label, values in sorted(lines.values(), key=lambda line: line[1][-1]):
        y = min(lowest, place(0, values[-1] / MB)[1] + 4)
        lowest = y - 2 * LINE_HEIGHT - 4
        for at, text in enumerate(_wrapped(label)):
            parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{y + LINE_HEIGHT * at:.1f}">{text}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _step(highest: float) -> float:
    """Return the distance of lines, of which there are some five."""
    step = 1.0
    while highest / step > 8:
        step *= 2.5 if str(step).startswith("2") else 2
    return step


def _wrapped(label: str) -> list[str]:
    first, _, rest = label.partition(", ")
    return [first + ",", rest] if rest else [first]


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(draw(json.loads(Path(sys.argv[1]).read_text())), encoding="utf-8")
