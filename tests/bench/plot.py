"""A result of matrix.py as bars in an SVG: for each work the rate of every server."""

from xml.sax.saxutils import escape

COLUMNS, WIDTH, BAR, GAP = 3, 300, 13, 34
LABEL, TOP = 112, 46
COLOURS = {"iscsi": "#3b6ea5", "nbd": "#4a8f5a", "fuse": "#b0713a"}


def colour(name):
    kind = name.removeprefix("lunfs-")
    return COLOURS.get(kind, "#444") if name.startswith("lunfs") else "#b9bec4"


def text(x, y, words, size=10, anchor="start", more=""):
    return (f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" text-anchor="{anchor}"{more}>'
            f"{escape(words)}</text>")


def number(value):
    return f"{value / 1000:.1f}k" if value >= 10000 else f"{value:.0f}"


def panel(x, y, what, lines):
    """The bars of one work; longer is better."""
    unit = next(iter(lines.values()))["unit"]
    out = [text(x, y, f"{what}, {unit}", 12, more=' font-weight="bold"')]
    most = max(line["rate"] for line in lines.values()) or 1
    for row, (name, line) in enumerate(lines.items()):
        top = y + 8 + row * BAR
        length = (WIDTH - LABEL - 50) * line["rate"] / most
        own = ' font-weight="bold"' if name.startswith("lunfs") else ""
        out.append(text(x + LABEL - 4, top + BAR - 4, name, 10, "end", own))
        out.append(f'<rect x="{x + LABEL}" y="{top + 1}" width="{length:.1f}" height="{BAR - 3}" '
                   f'fill="{colour(name)}"/>')
        note = f"{number(line['rate'])}  {line['server_us_least']:.1f} µs"
        out.append(text(x + LABEL + length + 3, top + BAR - 4, note, 9))
    return out


def svg(result):
    """The whole picture; behind each bar its rate and the server's least CPU time an operation."""
    lines = result["lines"]
    rows = max((len(one) for one in lines.values()), default=0)
    height = rows * BAR + GAP
    about, run = result["machine"], result["run"]
    head = (f"{about['cpu']}, Linux {about['kernel']}, commit {about['commit']}, {about['date']}; "
            f"LUN {run['mib']} MiB, {run['rounds']} rounds of {run['seconds']} s, pin {run['pin']}")
    out = [text(10, 18, "Rate, and server CPU time for each operation (least over rounds)", 14),
           text(10, 34, head)]
    for place, (what, one) in enumerate(lines.items()):
        x = 10 + place % COLUMNS * (WIDTH + 20)
        out += panel(x, TOP + 14 + place // COLUMNS * height, what, one)
    total = TOP + 14 + -(-len(lines) // COLUMNS) * height
    wide = 10 + COLUMNS * (WIDTH + 20)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{total}" '
            f'viewBox="0 0 {wide} {total}" font-family="sans-serif">'
            f'<rect width="100%" height="100%" fill="white"/>' + "\n".join(out) + "</svg>\n")
