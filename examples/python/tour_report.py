# SPDX-License-Identifier: BSD-3-Clause
"""How the tour is told: a table on the terminal, and one HTML file with the table and a picture."""
from __future__ import annotations

import base64
import html
import io
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import trireme as tri

COLOURS = {"Trireme": "#1b6ca8", "standard library": "#c98b2b"}
STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;
color:#222;background:#fff} table{border-collapse:collapse;width:100%} th,td{padding:.35rem .6rem;
border-bottom:1px solid #ddd;text-align:right;vertical-align:top} th:first-child,td:first-child{
text-align:left} small{color:#666;display:block} .no{color:#b00020;font-weight:bold}
img,svg{max-width:100%;height:auto;margin:1rem 0}"""


@dataclass
class Row:
    """One workload.  Times are seconds; None means that there is none, and the text says why."""

    name: str
    note: str
    serial: float | None = None
    trireme: float | None = None
    standard: float | None = None
    same: bool | None = None
    standard_text: str = ""

    @classmethod
    def skipped(cls, name: str, why: str) -> Row:
        return cls(name, f"skipped: {why}")

    def cells(self) -> list[str]:
        """The row as text, one string per column."""
        same = "-" if self.same is None else "yes" if self.same else "NO"
        return [self.name, seconds(self.serial), seconds(self.trireme),
                seconds(self.standard) if self.standard else self.standard_text or "-",
                times(self.serial, self.trireme), times(self.serial, self.standard), same]


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} s" if value < 1 else f"{value:.2f} s"


def times(before: float | None, after: float | None) -> str:
    return f"{before / after:.2f} x" if before and after else "-"


class Table:
    """Rows, printed as they come."""

    HEAD = ["workload", "serial", "Trireme", "standard library", "Trireme gains", "std. gains",
            "same results"]
    WIDTHS = [34, 9, 9, 28, 13, 10, 12]

    def __init__(self, workers: int) -> None:
        self.rows: list[Row] = []
        self.seconds = 0.0
        self.machine = (f"{cpu_model()}, {tri.cpu_count()} CPUs, {workers} workers; "
                        f"Linux {platform.release()}, Python {platform.python_version()}, "
                        f"Trireme {getattr(tri, '__version__', '?')}; "
                        f"{time.strftime('%Y-%m-%d %H:%M')}")
        self.method = ("Standard library: multiprocessing.Pool with the fork start method. "
                       "Times include opening and closing the pool; a gain is serial time divided "
                       "by the time taken.")
        print(self.machine, self.method, "", self._line(self.HEAD), sep="\n", flush=True)
        print("-" * (sum(self.WIDTHS) + 2 * len(self.WIDTHS)), flush=True)

    def _line(self, cells: list[str]) -> str:
        first, *rest = (f"{c:>{w}}" for c, w in zip(cells, self.WIDTHS, strict=True))
        return f"{cells[0]:<{self.WIDTHS[0]}}  " + "  ".join(rest)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(self._line(row.cells()), f"    {row.note}", sep="\n", flush=True)

    def finish(self, elapsed: float) -> None:
        self.seconds = elapsed
        print(f"\nThe whole tour took {elapsed:.0f} s.", flush=True)

    def all_same(self) -> bool:
        return all(row.same is not False for row in self.rows)

    def gains(self) -> list[tuple[str, dict[str, float]]]:
        """What the picture shows: for each complete row the two gains over serial."""
        return [(r.name, {"Trireme": r.serial / r.trireme}
                 | ({"standard library": r.serial / r.standard} if r.standard else {}))
                for r in self.rows if r.serial and r.trireme]


def cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            return next(line.split(":")[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def write_html(table: Table, path: Path) -> Path:
    """Write the self-contained page and return its path."""
    esc = html.escape
    body = []
    for row in table.rows:
        cells = [f"<td>{esc(row.name)}<small>{esc(row.note)}</small></td>"]
        cells += [f"<td{' class=no' if c == 'NO' else ''}>{esc(c)}</td>" for c in row.cells()[1:]]
        body.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{esc(h)}</th>" for h in table.HEAD)
    path.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Trireme: the tour</title>"
        f"<style>{STYLE}</style><h1>Trireme: the tour</h1><p>{esc(table.machine)}</p>"
        f"{picture(table)}<table><tr>{head}</tr>{''.join(body)}</table>"
        f"<p>{esc(table.method)} The whole tour took {table.seconds:.0f} s.</p></html>\n",
        encoding="utf-8")
    return path


def picture(table: Table) -> str:
    """The gains as bars: by matplotlib where there is one, as plain SVG otherwise."""
    gains = table.gains()
    if not gains:
        return ""
    try:
        os.environ.setdefault("MPLBACKEND", "Agg")
        from matplotlib.figure import Figure
    except ImportError:
        return svg_bars(gains)
    fig = Figure(figsize=(9, 0.9 + 0.6 * len(gains)), layout="constrained")
    ax = fig.subplots()
    for i, (who, colour) in enumerate(COLOURS.items()):
        at = [y + 0.38 * (i - 0.5) for y in range(len(gains))]
        bars = ax.barh(at, [g.get(who, 0) for _, g in gains], 0.36, color=colour, label=who)
        ax.bar_label(bars, [f"{g[who]:.2f}" if who in g else "" for _, g in gains], padding=3)
    ax.axvline(1, color="#444", linewidth=1)
    ax.set_yticks(range(len(gains)), [name for name, _ in gains])
    ax.invert_yaxis()
    ax.set_xlabel("times faster than the plain loop (line: as fast)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    png = io.BytesIO()
    fig.savefig(png, format="png", dpi=120)
    data = base64.b64encode(png.getvalue()).decode("ascii")
    return f'<img alt="Gains over the plain loop" src="data:image/png;base64,{data}">'


def svg_bars(gains: list[tuple[str, dict[str, float]]]) -> str:
    most = max(max(g.values()) for _, g in gains)
    scale, parts = 480 / max(most, 1), []
    for i, (name, g) in enumerate(gains):
        parts.append(f'<text x="290" y="{44 * i + 26}" text-anchor="end">'
                     f'{html.escape(name)}</text>')
        for j, (who, colour) in enumerate(COLOURS.items()):
            if who in g:
                y, width = 44 * i + 4 + 17 * j, g[who] * scale
                parts.append(f'<rect x="300" y="{y}" width="{width:.0f}" height="15" '
                             f'fill="{colour}"><title>{who}</title></rect>'
                             f'<text x="{306 + width:.0f}" y="{y + 12}">{g[who]:.2f}</text>')
    height = 44 * len(gains)
    parts.append(f'<path d="M{300 + scale:.0f} 0V{height}" stroke="#444"/>')
    legend = ", ".join(f'<b style="color:{c}">{w}</b>' for w, c in COLOURS.items())
    return (f'<svg viewBox="0 0 840 {height}" font-size="14" role="img" aria-label="Gains">'
            f'{"".join(parts)}</svg><p>Times faster than the plain loop: {legend}.</p>')
