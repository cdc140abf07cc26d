"""Draws the panels of the Grafana dashboard as one SVG, with the data of a Prometheus. See hack/update-dashboard-picture.

It needs only the standard library, and supports only what that dashboard uses: rows, time series (stacked or not), stats.
"""

import argparse
import html
import json
import math
import pathlib
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
WIDTH, COLUMNS, CELL, GAP = 1500, 24, 32, 8
COLOURS = ["#3a6ea5", "#c8553d", "#4f8a4f", "#b08a2e", "#7a5aa6", "#3f9aa0", "#a34f7d", "#707070", "#8c6d46", "#22223b"]


def ask(url, path, **query):
    """Returns the answer of Prometheus, or exits with its error message."""
    address = f"{url.rstrip('/')}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            return json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        sys.exit(f"error: {query['query']}: {json.load(error)['error']}")
    except urllib.error.URLError as error:
        sys.exit(f"error: no Prometheus at {url}: {error.reason}")


def number(value, unit):
    """Formats a value in the panel's unit."""
    if unit == "s":
        for size, letter in ((86400, "d"), (3600, "h"), (60, "min")):
            if abs(value) >= 2 * size:
                return f"{value / size:.3g} {letter}"
        return f"{value * 1000:.3g} ms" if 0 < abs(value) < 1 else f"{value:.3g} s"
    if unit == "bytes":
        return f"{value / 2**20:.3g} MiB" if abs(value) >= 2**20 else f"{value / 2**10:.3g} KiB"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    return f"{value:.3g}" + {"cpm": "/min"}.get(unit, "")


def ticks(low, high, unit):
    """About four round numbers that cover the range."""
    base = 2**20 if unit == "bytes" else 1
    quarter = max(high - low, 1e-9) / 4 / base
    step = 10 ** math.floor(math.log10(quarter))
    step *= base * next(factor for factor in (1, 2, 5, 10) if factor * step >= 0.999 * quarter)
    return [n * step for n in range(math.floor(low / step), math.ceil(round(high / step, 6)) + 1)]


def legend(template, labels):
    return re.sub(r"{{\s*(\w+)\s*}}", lambda match: labels.get(match[1], ""), template).strip() or "value"


class Picture:
    def __init__(self):
        self.parts = []

    def text(self, x, y, words, size=11, anchor="start", colour="#222", weight="normal"):
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}" '
            f'font-weight="{weight}">{html.escape(words)}</text>'
        )

    def line(self, x1, y1, x2, y2, colour="#e4e4e4"):
        self.parts.append(f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}" fill="none"/>')

    def box(self, x, y, width, height, colour, stroke="none"):
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}" stroke="{stroke}"/>'
        )

    def legend(self, entries, x, y, width):
        """Draws the names below the panel, in as many lines as fit, then the number of names that do not fit."""
        at, bottom = x, y + 36
        for n, (name, last) in enumerate(entries):
            words = f"{name} {last}"
            wide = 20 + 6 * len(words)
            if at > x and at + wide > x + width:
                at, y = x, y + 12
            if y > bottom:
                self.text(x + width, y - 12, f"+{len(entries) - n}", 10, "end")
                return
            self.box(at, y - 7, 9, 3, COLOURS[n % len(COLOURS)])
            self.text(at + 13, y, words, 10)
            at += wide

    def series(self, found, unit, stacked, span, area):
        """Draws axes and lines of the series found: (name, [(time, value)])."""
        (x, y, width, height), (start, end) = area, span
        if stacked:
            below = {}
            for _, points in found:
                for n, (at, value) in enumerate(points):
                    below[at] = below.get(at, 0) + value
                    points[n] = (at, below[at])
        values = [value for _, points in found for _, value in points]
        marks = ticks(min([0, *values]), max([0, *values]) or 1, unit)
        low, high = marks[0], marks[-1]
        across = lambda at: x + (at - start) / (end - start) * width
        up = lambda value: y + height - (value - low) / (high - low) * height
        for mark in marks:
            self.line(x, up(mark), x + width, up(mark))
            self.text(x - 5, up(mark) + 3, number(mark, unit) if mark else "0", 9, "end", "#666")
        for n in range(5):
            at = start + (end - start) * n / 4
            anchor = ("start", "middle", "middle", "middle", "end")[n]
            self.text(across(at), y + height + 12, time.strftime("%H:%M:%S", time.gmtime(at)), 9, anchor, "#666")
        gap = 2.5 * (end - start) / 200
        for n, (_, points) in enumerate(found):
            path, before = "", None
            for at, value in points:
                path += f"{'L' if before and at - before <= gap else 'M'}{across(at):.1f} {up(value):.1f}"
                before = at
            # A single point is a line of zero length, which round caps turn into a dot.
            path += "h0" if len(points) == 1 else ""
            colour = COLOURS[n % len(COLOURS)]
            self.parts.append(f'<path d="{path}" stroke="{colour}" stroke-width="1.4" stroke-linecap="round" fill="none"/>')


def draw(dashboard, url, minutes, rate_interval):
    end = time.time()
    start, step = end - 60 * minutes, 60 * minutes / 200
    picture, cell = Picture(), WIDTH / COLUMNS
    bottom = 0
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        x, y, width, height = grid["x"] * cell + GAP, grid["y"] * CELL, grid["w"] * cell - GAP, grid["h"] * CELL - GAP
        if panel.get("collapsed"):
            continue  # What it hides needs Loki.
        bottom = max(bottom, y + height)
        if panel["type"] == "row":
            picture.text(x, y + CELL - GAP, panel["title"], 16, weight="bold")
            continue
        picture.box(x, y + GAP, width - GAP, height, "#fff", "#d8d8d8")
        picture.text(x + 10, y + GAP + 18, panel["title"], 12, weight="bold")
        defaults = panel["fieldConfig"]["defaults"]
        unit, found = defaults["unit"], []
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", rate_interval)
            for series in ask(url, "query_range", query=query, start=start, end=end, step=step):
                points = [(at, float(value)) for at, value in series["values"]]
                points = [point for point in points if math.isfinite(point[1])]
                if points:
                    found.append((legend(target["legendFormat"], series["metric"]), points))
        lasts = [(name, number(points[-1][1], unit)) for name, points in found]
        if not found:
            picture.text(x + width / 2, y + height / 2, "no data", 11, "middle", "#999")
        elif panel["type"] == "stat":
            for n, (name, last) in enumerate(lasts):
                middle = x + (width - GAP) * (n + 0.5) / len(lasts)
                picture.text(middle, y + height / 2 + 10, last, 24, "middle", weight="bold")
                picture.text(middle, y + height / 2 + 32, name, 11, "middle", "#666")
        else:
            stacked = defaults["custom"]["stacking"]["mode"] == "normal"
            picture.series(found, unit, stacked, (start, end), (x + 62, y + 40, width - 62 - 3 * GAP, height - 112))
            picture.legend(lasts, x + 12, y + height - 38, width - 4 * GAP)
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(end))
    picture.text(WIDTH - GAP, bottom + 22, f"{minutes} minutes until {when}", 10, "end", "#666")
    body = "\n".join(picture.parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 32}" font-family="sans-serif">\n'
        f'<title>{html.escape(dashboard["title"])}</title>\n<rect width="100%" height="100%" fill="#f7f7f8"/>\n{body}\n</svg>\n'
    )


def main():
    parser = argparse.ArgumentParser(prog="hack/update-dashboard-picture")
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:9090")
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--rate-interval", default="1m")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs/dashboard.svg")
    given = parser.parse_args()
    dashboard = json.loads((ROOT / "manifests/components/monitoring/dashboard.json").read_text())
    given.out.write_text(draw(dashboard, given.url, given.minutes, given.rate_interval))
    print(given.out)


main()
