#!/usr/bin/env python3
"""Draws tokens per second against context length, from runs of `reattn bench --json` and `reattention-peers run --json`.

    benches/rate_figure.py TITLE OUT.svg LABEL=RUN.json ... llama.cpp=RUN.json,RUN.json

One line for each run: prefill at the end of the text (solid) and decode (dashed). A run beside a peer gives the line of
the peer, the better of its two attentions. Both axes are logarithmic. Standard library only.
"""
import json
import math
import sys

COLOURS = ["#1b6ca8", "#c8553d", "#588157", "#8e5572", "#b8860b"]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 470, 70, 230, 46, 54


def points(path):
    """Length to (prefill, decode), in tokens a second."""
    found = {}
    with open(path) as file:
        run = json.load(file)
    for row in run["rows"]:
        if "end_tok_s" in row:
            found[row["length"]] = (row["end_tok_s"], row["decode_tok_s"])
    return found


def peer_points(paths):
    found = {}
    for path in paths:
        with open(path) as file:
            run = json.load(file)
        for row in run["rows"]:
            if row["engine"].startswith("llama") and row["start"] == "filled":
                times = sorted(row["seconds"])
                rate = row["tokens"] / times[len(times) // 2]
                at = found.setdefault(row["depth"], {"prefill": 0, "decode": 0})
                at[row["part"]] = max(at[row["part"]], rate)
    return {depth: (at["prefill"], at["decode"]) for depth, at in found.items()}


def short(n):
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if n >= unit:
            return f"{n / unit:g}{name}"
    return str(n)


def main():
    title, out, *runs = sys.argv[1:]
    series = []
    for run in runs:
        label, paths = run.split("=", 1)
        paths = paths.split(",")
        found = peer_points(paths) if label.startswith("llama") else points(paths[0])
        series.append((label, sorted(found.items())))
    lengths = sorted({n for _, line in series for n, _ in line})
    rates = [r for _, line in series for _, pair in line for r in pair if r > 0]
    low, high = math.floor(math.log10(min(rates))), math.ceil(math.log10(max(rates)))
    first, last = math.log2(lengths[0]), math.log2(lengths[-1])

    def x(n):
        return LEFT + (math.log2(n) - first) / max(last - first, 1e-9) * (WIDTH - LEFT - RIGHT)

    def y(rate):
        return HEIGHT - BOTTOM - (math.log10(rate) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="16">{title}</text>',
    ]
    for power in range(low, high + 1):
        at = y(10**power)
        svg.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
        svg.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10**power:,}</text>')
    for n in lengths:
        svg.append(f'<text x="{x(n):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{short(n)}</text>')
    svg.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">tokens in the context</text>')
    svg.append(f'<text x="16" y="{TOP - 14}">tokens/s</text>')
    for i, (label, line) in enumerate(series):
        colour = COLOURS[i % len(COLOURS)]
        for which, dash, name in ((0, "", "prefill"), (1, ' stroke-dasharray="5 4"', "decode")):
            at = [(x(n), y(pair[which])) for n, pair in line if pair[which] > 0]
            if not at:
                continue
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in at)
            svg.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
            svg.extend(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in at)
            row = TOP + 16 + 20 * (2 * i + which)
            start = WIDTH - RIGHT + 16
            svg.append(f'<line x1="{start}" x2="{start + 26}" y1="{row - 4}" y2="{row - 4}" stroke="{colour}" stroke-width="2"{dash}/>')
            svg.append(f'<text x="{start + 32}" y="{row}">{label}, {name}</text>')
    svg.append("</svg>")
    with open(out, "w") as file:
        file.write("\n".join(svg) + "\n")


main()
