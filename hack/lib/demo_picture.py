"""Draws a part of the output of hack/demo as a terminal in an SVG. See hack/update-demo-picture.

hack/demo prints steps: `N. TITLE`, indented text, and commands, each as `$ COMMAND` with its output below.
"""

import html
import pathlib
import re
import sys

COLUMNS, LINES = 100, 40
# Left out, because its twenty lines repeat what other commands show.
LEFT_OUT = r"kubectl pristine describe"
FONT, CHARACTER, LINE, MARGIN = 13, 7.83, 19, 20
STYLES = {
    "title": 'fill="#7ee787"',
    "command": 'fill="#ffffff" font-weight="bold"',
    "answer": 'fill="#c9d1d9"',
}


def steps(text):
    """The steps of the demo: (title, [(command, [line of its output])])."""
    found = []
    # Remove the escape sequences for bold and plain text.
    text = re.sub(r"\x1b(\[[0-9;]*[A-Za-z]|\(B)", "", text)
    for line in text.expandtabs().splitlines():
        if match := re.match(r"\d+\. (.*)", line):
            found.append((match[1], []))
        elif not found or not line.startswith("   ") or is_prose(line):
            continue
        elif match := re.match(r"   \$ (.*)", line):
            found[-1][1].append((match[1], []))
        elif found[-1][1]:
            found[-1][1][-1][1].append(line[3:].rstrip())
    return found


def is_prose(line):
    """Whether the line is a sentence of the demo itself. Output of commands has columns, or few words."""
    return line.endswith(".") and "  " not in line.strip() and line.count(" ") > 10


def telling(found):
    """The steps from the exec to the list of pods after the eviction."""

    def runs(step, pattern):
        return any(re.match(pattern, command) for command, _ in step[1])

    first = next((n for n, step in enumerate(found) if runs(step, r"kubectl .*\bexec\b")), None)
    if first is None:
        sys.exit("error: no `kubectl exec` in this output")
    last = next((n for n, step in enumerate(found) if n > first and runs(step, r"kubectl .*\bget pods")), None)
    if last is None:
        sys.exit("error: no `kubectl get pods` after the exec in this output")
    return found[first : last + 1]


def wrap(line):
    """Wraps the line into at most two. The second one may be truncated."""
    if len(line) <= COLUMNS:
        return [line]
    at = line.rfind(" ", COLUMNS // 2, COLUMNS) + 1 or COLUMNS
    rest = "    " + line[at:]
    return [line[:at], rest if len(rest) <= COLUMNS else rest[: COLUMNS - 1] + "…"]


def lines(found, longest):
    """The lines to draw, with at most `longest` lines of output for each command: (style, text)."""
    drawn = []
    for title, commands in found:
        commands = [command for command in commands if not re.match(LEFT_OUT, command[0])]
        if not commands:
            continue
        if drawn:
            drawn.append(("answer", ""))
        drawn.append(("title", f"# {title}"))
        for command, answer in commands:
            drawn.extend(("command", line) for line in wrap(f"$ {command}"))
            drawn.extend(("answer", part) for line in answer[:longest] for part in wrap(line))
            if len(answer) > longest:
                drawn.append(("answer", "…"))
    return drawn


def draw(found):
    # Shorten long outputs until everything fits.
    drawn = next((drawn for longest in range(20, 1, -1) if len(drawn := lines(found, longest)) <= LINES), lines(found, 2))
    width, height = COLUMNS * CHARACTER + 2 * MARGIN, len(drawn) * LINE + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}">',
        "<title>An exec, the mark on the pod, its eviction, and its replacement</title>",
        # A dark terminal with a border, which suits both a light and a dark page.
        f'<rect x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="8" fill="#16181d" stroke="#4d5560"/>',
        f'<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, \'DejaVu Sans Mono\', monospace" font-size="{FONT}">',
    ]
    for n, (style, text) in enumerate(drawn):
        if not text:
            continue
        y = MARGIN + (n + 0.75) * LINE
        words = html.escape(text, quote=False)
        parts.append(f'<text x="{MARGIN}" y="{y:.1f}" xml:space="preserve" style="white-space:pre" {STYLES[style]}>{words}</text>')
    return "\n".join([*parts, "</g>", "</svg>"]) + "\n"


def main():
    output, out = map(pathlib.Path, sys.argv[1:])
    out.write_text(draw(telling(steps(output.read_text()))))
    print(out)


main()
