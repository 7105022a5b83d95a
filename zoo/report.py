"""
Make one HTML page of a benchmark and of single runs: tables, figures and the command behind each, to be filtered.

    python zoo/report.py --folder logs/benchmark --runs logs/hipi_sac/PointFourRooms-v0_1 --out report.html

The page is a single file: figures are inline SVG, and nothing is loaded from anywhere.
"""

import argparse
import html
import io
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hipi_sb3.experience.whole import NotWritten
from zoo.comparison import ALL, median_steps, summarize, with_interval, write_atomically
from zoo.configuration import read_yaml
from zoo.errors import ConfigurationError, configuration_errors, exit_with_error
from zoo.plots import Looks, all_figures, read_evaluations, read_tasks
from zoo.provenance import command_line

PAGE = Path(__file__).with_name("report.html")


def main(arguments: list[str] | None = None) -> None:
    """
    Run the command line.

    :param arguments: command line; that of the process if None
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    args = make_parser().parse_args(arguments)
    try:
        page = make_page(args, command_line("report.py", arguments))
        write_atomically(Path(args.out), page)
    except (ConfigurationError, NotWritten) as error:
        exit_with_error("report.py", error)
    print(f"Report: {args.out} ({len(page) / 1e6:.1f} MB)")


def make_parser() -> argparse.ArgumentParser:
    """
    Make the parser of the command line.

    :return: parser
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="logs/benchmark", help="results of zoo/benchmark.py (default: %(default)s)")
    parser.add_argument("--csv", default="evaluations.csv", help="file with the evaluations (default: %(default)s)")
    parser.add_argument("--summary", default="summary.json", help="file with the command and machine (default: %(default)s)")
    parser.add_argument("--runs", nargs="*", default=[], metavar="RUN_FOLDER", help="run folders of zoo/train.py to list")
    parser.add_argument("--threshold", type=float, default=0.5, help="success whose first step is reported (default: 0.5)")
    parser.add_argument("--out", default="report.html", help="file to write (default: %(default)s)")
    return parser


def make_page(args: argparse.Namespace, command: str) -> str:
    """
    Put the page together.

    :param args: command line
    :param command: the command, to be shown
    :return: HTML
    :raises ConfigurationError: when there are no results
    """
    folder = Path(args.folder)
    frame = read_evaluations(folder / args.csv)
    path = folder / args.summary
    with configuration_errors():
        about = json.loads(path.read_text()) if path.is_file() else {}
    summary = summarize(frame, args.threshold)
    figures = all_figures(frame, read_tasks(folder, frame))
    methods = list(dict.fromkeys(frame["method"]))
    envs = list(dict.fromkeys(entry["env"] for entry in summary))
    csv = [] if args.csv == "evaluations.csv" else ["--csv", args.csv]
    plot_command = command_line("plots.py", ["--folder", args.folder, *csv])
    sections = []
    for env in envs:
        commands = cell_commands(folder, frame[frame["env"] == env])
        parts = [f"<h2>{html.escape(env)}</h2>", table([e for e in summary if e["env"] == env], args.threshold)]
        for name, figure in figures.items():
            if name.partition("_")[2] != env:
                continue
            width = f"max-width: {95 * figure.get_figwidth():.0f}px"  # two of the usual width side by side
            caption = f"<figcaption>{code([plot_command])}</figcaption>"
            parts.append(f'<figure id="{html.escape(name)}" style="{width}">{svg(figure, name)}{caption}</figure>')
        if commands:
            parts.append(f"<details><summary>The runs behind it</summary>{code(commands)}</details>")
        sections.append(f'<section data-env="{html.escape(env)}">{"".join(parts)}</section>')
    looks = Looks(methods)
    values = {
        "filters": filters("env", [env for env in envs if env != ALL]) + filters("method", methods, looks),
        "about": facts(about),
        "sections": "\n".join(sections),
        "runs": runs_table(args.runs) if args.runs else "",
        "commands": code([*([about["command"]] if "command" in about else []), command]),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match.group(1)], PAGE.read_text())


def svg(figure: Figure, name: str) -> str:
    """
    Draw a figure as inline SVG whose parts say of which method they are.

    :param figure: figure
    :param name: salt of the ids in it, which are to be unique in the page
    :return: SVG element
    """
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'id="method:([^"]+)"', r'data-method="\1"', text)
    # Other ids of matplotlib (figure_1, axes_1) repeat from figure to figure, and nothing refers to them.
    text = re.sub(r' id="[a-z]+[A-Za-z0-9.]*_\d+"', "", text)
    title = html.escape(name.replace("_", " of ", 1))
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def table(entries: Sequence[dict[str, Any]], threshold: float) -> str:
    """
    Format the comparison in one environment.

    :param entries: entries of :func:`zoo.comparison.summarize`
    :param threshold: success whose first step is reported
    :return: HTML
    """
    first = entries[0]
    after = f" after {first['timesteps']} steps" if "timesteps" in first else ""
    metric = {"success": "success rate", "mean_return": "mean return"}[first["metric"]]
    head = ["method", "IQM [95 %]", "mean [95 %]", "seeds"]
    # The threshold is one of success.
    of_success = first["metric"] == "success"
    if "area" in first:
        steps = [f"steps to {threshold:g}: median (seeds)"] if of_success else []
        head += ["area under the curve [95 %]", *steps, "wall s", "CPU s"]
    rows = []
    for entry in entries:
        cells = [entry["method"], with_interval(entry, "iqm"), with_interval(entry, "mean"), str(len(entry["final"]))]
        if "area" in entry:
            cells += [with_interval(entry, "area"), *([median_steps(entry)] if of_success else [])]
            seconds = [entry["wall_seconds"], entry["cpu_seconds"]]
            cells += ["" if np.isnan(value) else f"{value:.0f}" for value in seconds]
        rows.append(row(cells, f' data-method="{html.escape(entry["method"])}"'))
    return f"<p>{metric}{after}</p><table><thead>{row(head, tag='th')}</thead><tbody>{''.join(rows)}</tbody></table>"


def runs_table(folders: Iterable[str]) -> str:
    """
    List single runs.

    :param folders: run folders of zoo/train.py
    :return: HTML
    :raises ConfigurationError: when one is no run folder
    """
    head = ["run", "algorithm", "environment", "seed", "steps", "mean return [95 %]", "success [95 %]", "command"]
    rows = []
    for folder in map(Path, folders):
        path = folder / "task_evaluation.json"
        if not path.is_file():
            raise ConfigurationError(f"{folder} is no folder of a finished run: there is no {path.name} in it.")
        run = json.loads(path.read_text())
        recorded = next(iter(folder.glob("*/run.yml")), None)
        about: dict[str, Any] = {"command": ""} if recorded is None else read_yaml(recorded)
        # With -n the command of a run that was gone on with may say fewer steps than it has.
        steps = [str(resumed["step"]) for resumed in about.get("resumed", [])]
        command = about["command"] + (f" (gone on with --resume from step {', '.join(steps)})" if steps else "")
        cells = [folder.name, run["algo"], run["env"], str(run["seed"]), str(run["num_timesteps"])]
        for name in ("mean_return", "success_rate"):
            value, interval = run[name], run[f"{name}_interval"]
            cells.append("" if value is None else f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]")
        rows.append(row([*cells, command], f' data-env="{html.escape(run["env"])}"'))
    return f"<section><h2>Runs</h2><table><thead>{row(head, tag='th')}</thead><tbody>{''.join(rows)}</tbody></table></section>"


def cell_commands(folder: Path, of_env: pd.DataFrame) -> list[str]:
    """
    Collect the commands of the cells of one environment.

    :param folder: folder of the benchmark
    :param of_env: evaluations
    :return: commands, those that are known
    """
    commands = []
    for env, method, seed in of_env[["env", "method", "seed"]].drop_duplicates().itertuples(index=False):
        path = folder / env / method / f"seed{seed}" / "cell.json"
        if path.is_file():
            commands.append(command_line("train.py", json.loads(path.read_text())["command"][1:]))
    return commands


def filters(kind: str, names: Sequence[str], looks: Looks | None = None) -> str:
    """
    Make the check boxes of a filter.

    :param kind: ``env`` or ``method``
    :param names: what can be chosen
    :param looks: colours to show beside the names
    :return: HTML
    """
    title = {"env": "Environments", "method": "Methods"}[kind]
    boxes = []
    for name in map(str, names):
        swatch = "" if looks is None else f'<i style="background:{looks.color(name)}"></i>'
        escaped = html.escape(name)
        boxes.append(f'<label><input type="checkbox" checked data-filter="{kind}" value="{escaped}">{swatch}{escaped}</label>')
    return f"<fieldset><legend>{title}</legend>{''.join(boxes)}</fieldset>"


def facts(about: dict[str, Any]) -> str:
    """
    Say where the numbers come from.

    :param about: what zoo/benchmark.py wrote beside its results
    :return: HTML
    """
    versions = ", ".join(f"{name} {number}" for name, number in about.get("versions", {}).items())
    lines = {name: about.get(name) for name in ("date", "commit", "machine", "note")} | {"versions": versions}
    return "".join(f"<dt>{name}</dt><dd>{html.escape(str(value))}</dd>" for name, value in lines.items() if value)


def code(lines: Iterable[str]) -> str:
    """
    Show commands.

    :param lines: commands
    :return: HTML
    """
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"


def row(cells: Iterable[str], attributes: str = "", tag: str = "td") -> str:
    """
    Make a row of a table.

    :param cells: texts
    :param attributes: attributes of the row
    :param tag: ``td`` or ``th``
    :return: HTML
    """
    return f"<tr{attributes}>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"


if __name__ == "__main__":
    main()
