#!/usr/bin/env python3
"""Draws the scaling simulation's figures as SVG, one file a question.

In: the JSON that simulate_scaling writes, a folder. Out: drains.svg, daily.svg, burst.svg, spot-storm.svg and settings.svg
in it.
Run with a python that has matplotlib: `$(tests/tools/venv.sh matplotlib 3.11.2) tests/tools/plot_scaling.py FIGURES FOLDER`.
Lines are named where they are, not in a legend; the colours differ in lightness too. The same figures give the same files.
"""

import argparse
import json
import pathlib

import matplotlib

matplotlib.use("Agg")
# Without these two, each run writes other ids and the date.
matplotlib.rcParams["svg.hashsalt"] = "inferq"
matplotlib.rcParams.update({
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False,
    "axes.spines.right": False, "axes.titlesize": 11, "axes.titlelocation": "left", "axes.grid": True,
    "grid.color": "#e4e4e4", "grid.linewidth": 0.8, "axes.edgecolor": "#888888", "axes.axisbelow": True,
})

import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen first)
from matplotlib.ticker import MaxNLocator, MultipleLocator  # noqa: E402

COLOURS = {"messages": "#d99a2b", "work": "#7a9cc6", "work and busy": "#1d4e89"}
NAMES = {"messages": "by messages", "work": "by seconds of work", "work and busy": "by work, never fewer than are busy"}
MEASURED, SIMULATED, QUIET = "#1d4e89", "#c2410c", "#666666"


def save(figure, folder, name, png):
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    if png:
        figure.savefig(png / f"{name}.png", dpi=110)
    plt.close(figure)


def heading(figure, title, subtitle):
    figure.text(0.012, 0.985, title, fontsize=14, va="top", ha="left")
    figure.text(0.012, 0.985 - 0.30 / figure.get_figheight(), subtitle, fontsize=10, va="top", ha="left", color=QUIET)


def series(run, what):
    """Hours and values; of equal values in a row only the first and the last, which draws the same line."""
    moments = run["moments"]
    kept = [moment for before, moment, after in zip([None, *moments], moments, [*moments[1:], None])
            if before is None or after is None or before[what] != moment[what] or after[what] != moment[what]]
    return [moment["at_s"] / 3600 for moment in kept], [moment[what] for moment in kept]


def work(run):
    """Minutes of one worker's work that have no answer; the most of each 500th of the time, so that files stay small."""
    moments = run["moments"]
    stride = max(1, len(moments) // 500)
    groups = [moments[at:at + stride] for at in range(0, len(moments), stride)]
    hours = [group[0]["at_s"] / 3600 for group in groups]
    return hours, [max(moment["tokens"] for moment in group) / run["tokens_per_s"] / 60 for group in groups]


def draw_drains(data, folder, png):
    drains = data["drains"]
    figure, axes = plt.subplots(figsize=(8.6, 3.0))
    figure.subplots_adjust(left=0.37, right=0.95, top=0.74, bottom=0.2)
    heading(figure, "Measured drains and the same ones simulated",
            "600 jobs of about 253 tokens over sqlite; the simulation knows starts, phases, stops and each engine's rate")
    for row, drain in enumerate(reversed(drains)):
        measured, simulated = drain["measured_s"], drain["simulated_s"]
        axes.plot([measured * 0.8, measured * 1.2], [row, row], color="#dddddd", linewidth=9, solid_capstyle="butt", zorder=1)
        axes.scatter([measured], [row], s=70, color=MEASURED, zorder=3)
        axes.scatter([simulated], [row], s=110, facecolors="none", edgecolors=SIMULATED, linewidths=2, zorder=4)
        axes.text(measured, row + 0.24, f"{measured:.1f} s", color=MEASURED, ha="right", va="bottom", fontsize=9)
        axes.text(simulated, row + 0.24, f"  {simulated:.1f} s", color=SIMULATED, ha="left", va="bottom", fontsize=9)
    last = drains[-1]
    low, middle = last["measured_s"] * 0.8, last["measured_s"]
    small = {"fontsize": 9, "va": "center"}
    axes.annotate("measured", (middle, 0), (middle - 1.5, -0.6), color=MEASURED, ha="right", **small,
                  arrowprops={"arrowstyle": "-", "color": MEASURED})
    axes.annotate("simulated", (last["simulated_s"], 0), (middle + 1.5, -0.6), color=SIMULATED, ha="left", **small,
                  arrowprops={"arrowstyle": "-", "color": SIMULATED, "shrinkB": 7})
    axes.text(low - 0.6, 0, "measured ± 20 %", color=QUIET, fontsize=9, ha="right", va="center")
    axes.set_yticks(range(len(drains)), [drain["name"].replace(", ", ",\n") for drain in reversed(drains)])
    axes.set_ylim(-0.9, len(drains) - 0.35)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds until the last job is answered")
    axes.grid(axis="y", visible=False)
    save(figure, folder, "drains", png)


def runs_of(data, trace):
    return {run["follows"]: run for run in data["runs"] if run["trace"] == trace}


def minutes(seconds):
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def rows(data, trace, title, subtitle, hours):
    """One row of workers and waiting work for each way to scale, on the same axes."""
    runs = runs_of(data, trace)
    figure, grid = plt.subplots(len(runs), 2, figsize=(10.4, 7.4), sharex=True, sharey="col")
    figure.subplots_adjust(left=0.07, right=0.98, top=0.845, bottom=0.075, hspace=0.42, wspace=0.16)
    heading(figure, title, subtitle)
    for (name, run), (left, right) in zip(runs.items(), grid, strict=True):
        colour, outcome = COLOURS[name], run["outcome"]
        left.set_title(NAMES[name], color=colour)
        at, nodes = series(run, "nodes")
        left.fill_between(at, nodes, step="post", color="#dddddd", linewidth=0)
        left.step(*series(run, "ready"), where="post", color=colour, linewidth=1.3)
        right.set_title(f"p99 wait {minutes(outcome['wait_p99_s'])} · {outcome['node_hours']:.0f} node-hours · "
                        f"{outcome['reversals']} reversals", color=colour)
        right.plot(*work(run), color=colour, linewidth=1.3)
    for axes, values in ((grid[0][0], lambda run: series(run, "nodes")[1]), (grid[0][1], lambda run: work(run)[1])):
        axes.set_xlim(*hours)
        axes.set_ylim(0, 1.08 * max(max(values(run)) for run in runs.values()))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    first = grid[0]
    columns = ("workers that are ready (line), nodes that are paid (grey)", "work without an answer, in minutes of one worker")
    for axes, column in zip(first, columns, strict=True):
        axes.text(0, 1.28, column, transform=axes.transAxes, color=QUIET)
    for axes in grid[-1]:
        axes.set_xlabel("hours")
    return figure, grid


def draw_daily(data, folder, png):
    figure, grid = rows(data, "daily", "A day: documents by night, queries by day",
                        "documents from 1:00 to 4:00, twelve workers' load (shaded); queries from 5:00 on, up to four workers' "
                        "load at 13:00; simulated",
                        (0, 24))
    for axes in grid[:, 0]:
        axes.set_xticks(range(0, 25, 4))
        axes.axvspan(1, 4, color="#f4ead6", zorder=0)
    grid[0][0].text(4.3, grid[0][0].get_ylim()[1] * 0.86, "← documents", color="#8a6d2f", fontsize=9)
    grid[0][0].text(13, grid[0][0].get_ylim()[1] * 0.45, "queries", color="#8a6d2f", fontsize=9, ha="center")
    save(figure, folder, "daily", png)


def draw_storm(data, folder, png):
    figure, grid = rows(data, "spot storm", "Spot nodes taken away twice",
                        "twelve workers' load; at the dotted lines three of four nodes go, some without notice, and for ten "
                        "minutes there are no others; simulated", (0, 3.5))
    for row in grid:
        for axes in row:
            axes.axvline(0.75, color=SIMULATED, linewidth=1, linestyle=":")
            axes.axvline(1.75, color=SIMULATED, linewidth=1, linestyle=":")
    grid[0][0].text(0.77, grid[0][0].get_ylim()[1] * 0.86, "taken away", color=SIMULATED, fontsize=9)
    save(figure, folder, "spot-storm", png)


def draw_burst(data, folder, png):
    runs = runs_of(data, "burst")
    figure, (workers, waiting) = plt.subplots(1, 2, figsize=(10.4, 3.9))
    figure.subplots_adjust(left=0.07, right=0.97, top=0.73, bottom=0.14, wspace=0.2)
    heading(figure, "1,000,000 jobs within two minutes, from no worker and no node",
            "at most 100 workers, one a node; simulated")
    workers.set_title("workers that are ready (line), nodes that are paid (dotted)", color=QUIET)
    waiting.set_title("jobs without an answer, thousands", color=QUIET)
    for name in ("messages", "work and busy"):
        run, colour = runs[name], COLOURS[name]
        in_minutes = lambda pair: ([hour * 60 for hour in pair[0]], pair[1])  # noqa: E731
        workers.step(*in_minutes(series(run, "ready")), where="post", color=colour)
        workers.step(*in_minutes(series(run, "nodes")), where="post", color=colour, linestyle=":", linewidth=1)
        at, count = in_minutes(series(run, "unanswered"))
        waiting.plot(at, [value / 1000 for value in count], color=colour)
        cleared = run["outcome"]["cleared_s"] / 60
        height = 520 if name == "messages" else 700
        waiting.text(cleared * 0.93, height, f"{NAMES[name].split(',')[0]}: cleared after {cleared:.0f} min",
                     color=colour, fontsize=10, ha="left")
    workers.text(2.2, 108, NAMES["messages"], color=COLOURS["messages"], ha="left")
    workers.text(19, 108, NAMES["work"], color=COLOURS["work and busy"], ha="left")
    for axes in (workers, waiting):
        axes.set_xlabel("minutes")
        axes.set_xlim(0, 50)
        axes.set_ylim(bottom=0)
    workers.set_ylim(0, 118)
    save(figure, folder, "burst", png)


def draw_settings(data, folder, png):
    knobs = {}
    for point in data["search"]:
        knobs.setdefault(point["knob"], []).append(point)

    def wait(point):
        return point["wait_s"] / 60

    def reversals(point):
        return point["reversals"]

    panels = [
        ("seconds of work a worker", "seconds of work a worker", wait, "p99 wait, minutes"),
        ("busy workers a worker", "busy workers a worker", wait, "p99 wait, minutes"),
        ("up, 100 % or 4 pods in", "scaling up: twice as many, or four more, in", wait, "p99 wait, minutes"),
        ("stabilization window down", "scaling down: stabilization window", reversals, "reversals, eight runs together"),
    ]
    figure, grid = plt.subplots(2, 2, figsize=(10.4, 7.2), sharex=True)
    figure.subplots_adjust(left=0.07, right=0.98, top=0.85, bottom=0.08, wspace=0.16, hspace=0.22)
    heading(figure, "What each setting buys, the others as in the component",
            "means over four traces, two seeds each; left and low is better; ● is what the component sets; simulated")
    for axes, (knob, title, figure_of, unit) in zip(grid.flat, panels, strict=True):
        points = knobs[knob]
        axes.plot([point["cost"] for point in points], [figure_of(point) for point in points], color="#bbbbbb", zorder=1)
        for number, point in enumerate(points):
            at = (point["cost"], figure_of(point))
            fill = MEASURED if point["is_component"] else "white"
            axes.scatter(*at, s=42, color=fill, edgecolors=MEASURED, zorder=3)
            value = "off" if point["value"] == "1000" else point["value"]
            beside = (6, 7 if number % 2 else -13) if figure_of is wait else (8, -3)
            axes.annotate(value, at, xytext=beside, textcoords="offset points", fontsize=9,
                          fontweight="bold" if point["is_component"] else "normal")
        axes.set_title(title)
        axes.set_ylabel(unit)
        axes.margins(0.12)
        axes.xaxis.set_major_locator(MultipleLocator(0.25))
        if figure_of is wait:
            axes.set_ylim(8, 14.5)
    for axes in grid[1]:
        axes.set_xlabel("node-hours, × perfect foresight")
    save(figure, folder, "settings", png)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("figures", type=pathlib.Path)
    arguments.add_argument("folder", type=pathlib.Path)
    arguments.add_argument("--png", type=pathlib.Path, help="a folder for copies as PNG, to look at")
    options = arguments.parse_args()
    data = json.loads(options.figures.read_text(encoding="utf-8"))
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.png:
        options.png.mkdir(parents=True, exist_ok=True)
    for draw in (draw_drains, draw_daily, draw_burst, draw_storm, draw_settings):
        draw(data, options.folder, options.png)


if __name__ == "__main__":
    main()
