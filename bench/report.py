"""A measurement as tables, sentences and pictures."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import ceil
from typing import Any

from bench.apps import PAGES

COLUMNS = ("mode", "requests/s", "p99 ms", "memory MiB", "processes", "errors")
COLORS = {"recommended": "#1a7f5a", "alternative": "#5b8def", "copied": "#c2703d", "yardstick": "#8a8f98"}
LINES = ("#1a7f5a", "#5b8def", "#c2703d", "#8a8f98", "#9a6dd7")
EVENTS = ("stop", "reload", "recycling")
WIDTH = 960

# The capacity plan: CPU that pods use on average, pods that may be lost, connections of a pod with one
# CPU (2 workers with 6 threads and a readiness check), and those of migrations, backups and the like.
RATES = (1_000, 50_000, 1_000_000)
UTILIZATION, SPARE, POD_CONNECTIONS, RESERVED = 0.6, 1, 14, 10

# In one picture for a light and a dark page.
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.quiet { fill: #656d76 } .axis { stroke: #8a8f98; stroke-width: 1 } .middle { text-anchor: middle }
.end { text-anchor: end }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .quiet { fill: #9198a1 } }
"""

# Part -> {"machine": where it was measured, "figures": what its module returns}.
Results = dict[str, Any]


def ordered(results: Results) -> list[dict[str, Any]]:
    """The modes by application, the fastest first."""
    families = ("fastapi", "flask", "django")

    def family(mode: dict[str, Any]) -> int:
        app = mode["app"]
        bare = {"bare-asgi": "fastapi", "bare-wsgi": "flask"}.get(app, app)
        return families.index(bare.partition("-")[0])

    return sorted(results["modes"]["figures"], key=lambda mode: (family(mode), -mode["rate"]))


def best(results: Results, app: str, kind: str) -> dict[str, Any]:
    """The fastest mode of that kind that answered every request; raises ValueError if there is none."""
    modes = (mode for mode in results["modes"]["figures"] if (mode["app"], mode["kind"]) == (app, kind))
    return max((mode for mode in modes if not mode["errors"]), key=lambda mode: mode["rate"])


def sentence(results: Results) -> str:
    """What the README says of the results, in lines of at most 100 characters."""
    said = []
    for app in ("fastapi", "flask", "django"):
        ours, copied = best(results, app, "recommended"), best(results, app, "copied")
        ratio = f"{ours['rate'] / copied['rate']:.1f} times"
        said.append(f"`{app}` **{ratio}** in {ours['memory'] / copied['memory']:.0%} of the memory")
    machine = results["modes"]["machine"]
    text = (
        "Requests per second, each with an access log, against the fastest command that people copy from "
        f"guides: {', '.join(said)}. Measured on {machine['cpus']} CPUs on {machine['date']}, "
        f"Python {machine['python']}."
    )
    return textwrap.fill(text, 100, break_on_hyphens=False)


def machine(results: Results) -> str:
    """Where and with what it was measured, in lines of at most 100 characters."""
    where = results["modes"]["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    text = f"Measured: {caption(where)}, {where['load']}; {where['processor']}; {packages}."
    return textwrap.fill(text, 100, break_on_hyphens=False)


def table(results: Results) -> str:
    """The modes, the fastest first, by application."""
    rows = []
    for mode in ordered(results):
        name = f"**{mode['name']}**" if mode["kind"] == "recommended" else mode["name"]
        low, high = mode["rate_range"]
        rate = f"{mode['rate']:.0f} ({low:.0f} to {high:.0f})"
        numbers = [f"{mode[column]:.0f}" for column in ("p99", "memory", "processes")]
        rows.append([name, rate, *numbers, str(mode["errors"])])
    return _table(COLUMNS, rows)


def verbatim(results: Results) -> str:
    """Requests per second of the copied commands without the access log that the table above gives them."""
    rows = [
        [mode["name"], f"{mode['rate']:.0f}", f"{mode['verbatim_rate']:.0f}"]
        for mode in ordered(results)
        if "verbatim_rate" in mode
    ]
    return _table(("command", "with an access log", "exactly as copied"), rows)


def formulas(results: Results) -> str:
    """Requests per second of gthread by page, threads and number of workers."""
    rows = []
    figures = [row for row in results["workers"]["figures"] if row["threads"]]
    titles = {row["formula"]: row["workers"] for row in figures}
    for page in PAGES:
        for threads in dict.fromkeys(row["threads"] for row in figures):
            cells = [_range(row[page], 0) for row in figures if row["threads"] == threads]
            rows.append([f"`{page}`, {threads} threads", *cells])
    for threads in dict.fromkeys(row["threads"] for row in figures):
        cells = [f"{row['memory']:.0f}" for row in figures if row["threads"] == threads]
        rows.append([f"MiB, {threads} threads", *cells])
    return _table(("page", *(f"{formula} = {count}" for formula, count in titles.items())), rows)


def front_table(results: Results, app: str = "flask") -> str:
    """Speed against latency of a page by threads and workers; first the copied command, and no server."""
    figures = [row for row in results["front"]["figures"] if row["app"] == app]
    rows = []
    for row in figures:
        workers = f"{row['workers']} workers" + (f" ({row['formula']})" if row["formula"] else "")
        kind = f"{row['threads']} threads" if row["threads"] > 1 else "1 thread"
        name = f"{workers}, {kind}" if row["threads"] else "gunicorn --workers 4"
        if "p99" not in row:
            rows.append([f"no server, {row['workers']} processes", _range(row["rate"], 0), "", ""])
            continue
        rows.append([name, _range(row["rate"], 0), _range(row["p99"], 0), _range(row["constant"], 1)])
    constant = f"p99 ms at {figures[0]['constant_rate']}/s"
    return _table(("workers and threads", "requests/s at saturation", "p99 ms", constant), rows)


def latency_table(results: Results) -> str:
    """Milliseconds by mode and share of its capacity: p50, p99 and p99.9."""
    rows = []
    for name, it in results["latency"]["figures"].items():
        cells = []
        for share in (key for key in it if key != "capacity"):
            p99 = _range(it[share]["p99"], 1)
            cells.append(f"{it[share]['p50']['median']:.1f} / {p99} / {it[share]['p99.9']:.0f}")
        rows.append([name, f"{it['capacity']}", *cells])
    shares = [key for key in it if key not in ("capacity", "slow")]
    return _table(("mode", "requests/s at saturation", *shares, "10%, a tenth slow"), rows)


def memory_table(results: Results) -> str:
    """MiB by setting and number of workers, and what each further worker added."""
    counts = sorted({row["workers"] for row in results["memory"]["figures"]})
    rows = []
    for setting in dict.fromkeys(row["setting"] for row in results["memory"]["figures"]):
        weights = {
            row["workers"]: row["memory"] for row in results["memory"]["figures"] if row["setting"] == setting
        }
        few, many = min(weights), max(weights)
        each = (weights[many] - weights[few]) / (many - few)
        rows.append([setting, *(f"{weights[count]:.0f}" for count in counts), f"{each:.1f}"])
    titles = [f"{count} workers" if count > 1 else "1 worker" for count in counts]
    return _table(("MiB", *titles, "each further worker"), rows)


def losses_table(results: Results) -> str:
    """The requests that got no answer, of those sent, by mode and event."""
    rows = []
    for name, events in results["losses"]["figures"].items():
        found = (events[event] for event in EVENTS)
        rows.append([name, *(f"{each['lost']} of {each['lost'] + each['answered']}" for each in found)])
    return _table(("lost", *EVENTS), rows)


def edge_table(results: Results) -> str:
    """Each way to a service: its figures, and CPU time and throughput relative to the short Caddyfile."""
    rows = []
    for service, ways in results["edge"]["figures"].items():
        for way, it in ways.items():
            cells = [_range(it["rate"], 0), _range(it["rate_ratio"], 2)]
            for name, digits in (("cpu", 0), ("cpu_ratio", 2)):
                cells.append(_range(it[name], digits) if name in it else "")
            rows.append([f"{service}, {way}", *cells, str(it["errors"])])
    titles = ("way", "requests/s", "relative", "CPU µs per request", "relative", "errors")
    return _table(titles, rows)


def edge_latency_table(results: Results) -> str:
    """Milliseconds on each way at half of what our edge answers at saturation."""
    rows = []
    for service, ways in results["edge"]["figures"].items():
        for way, it in ((way, it["latency"]) for way, it in ways.items() if "latency" in it):
            cells = [
                f"{it['rate']}",
                f"{it['p50']['median']:.1f}",
                _range(it["p99"], 1),
                f"{it['p99.9']:.0f}",
            ]
            rows.append([f"{service}, {way}", *cells])
    return _table(("way", "requests/s", "p50 ms", "p99 ms", "p99.9 ms"), rows)


def hardening_table(results: Results) -> str:
    """Requests per second of Flask's container without one restriction, relative to the shipped one."""
    rows = [
        [name, _range(it["rate"], 0), _range(it["rate_ratio"], 2), str(it["errors"])]
        for name, it in results["hardening"]["figures"].items()
    ]
    return _table(("container", "requests/s", "relative", "errors"), rows)


def capacity_table(results: Results) -> str:
    """How many pods and edges of one CPU each application needs, by requests per second; docs/fleet.md."""
    cpus = results["modes"]["machine"]["cpus"]
    edges = [it["our edge"]["cpu"]["median"] for it in results["edge"]["figures"].values()]
    rows = []
    for rate in RATES:
        for app in ("django", "flask", "fastapi"):
            each = best(results, app, "recommended")["rate"] / cpus * UTILIZATION
            pods = ceil(rate / each) + SPARE
            proxies = ceil(rate * max(edges) / 1e6 / UTILIZATION) + SPARE
            connections = f"{(pods + 1) * POD_CONNECTIONS + RESERVED:,}" if app != "fastapi" else "its pools"
            rows.append([f"{rate:,}", f"`{app}`", f"{pods:,}", f"{proxies:,}", connections])
    return _table(("requests/s", "application", "pods", "edges", "database connections"), rows)


def metrics_table(results: Results) -> str:
    """Each server with METRICS=on, next to the same one without."""
    rows = []
    for name, it in results["metrics"]["figures"].items():
        rates = [_range(it[f"rate_{key}"], 0) for key in ("off", "on")]
        ratios = [_range(it[f"{key}_ratio"], 2) for key in ("rate", "cpu")]
        rows.append([name, *rates, *ratios, f"{it['memory']:.0f}", str(it["errors"])])
    titles = ("server", "requests/s off", "on", "relative", "CPU, relative", "MiB more", "errors")
    return _table(titles, rows)


def _range(figures: Mapping[str, float], digits: int) -> str:
    """A median and its quartiles, or the smallest and the largest value."""
    lowest = ("low", "high") if "low" in figures else ("min", "max")
    median, low, high = (f"{figures[name]:.{digits}f}" for name in ("median", *lowest))
    return f"{median} ({low} to {high})"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns but the first are figures."""
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def caption(machine: Mapping[str, Any]) -> str:
    """Where and with what it was measured."""
    return f"{machine['date']}, {machine['cpus']} CPUs, Python {machine['python']}"


def pictures(results: Results) -> dict[str, str]:
    """File name -> SVG, of the parts that were measured."""
    drawings = {"modes": modes, "workers": workers, "memory": memory, "losses": losses}
    # The colours of the lost requests are those of their modes.
    parts = [part for part in drawings if part in results and (part != "losses" or "modes" in results)]
    return {f"{part}.svg": drawings[part](results) for part in parts}


def modes(results: Results) -> str:
    """Requests per second as bars, by application, with the 99th percentile."""
    rows, labels, bar = ordered(results), 330, 22
    scale = (WIDTH - labels - 190) / max(mode["rate"] for mode in rows)
    parts = []
    for number, mode in enumerate(rows):
        y, length = bar * number + 6, max(1, mode["rate"] * scale)
        color = COLORS[mode["kind"]]
        text = f"{mode['rate']:.0f}/s, p99 {mode['p99']:.0f} ms"
        if mode["errors"]:
            text += f", {mode['errors']} errors"
        parts += [
            _text(labels - 10, y + 12, mode["name"], "end"),
            f'<rect x="{labels}" y="{y}" width="{length:.0f}" height="{bar - 6}" fill="{color}"/>',
            _text(labels + length + 8, y + 12, text),
        ]
    y = bar * len(rows) + 24
    parts += _legend(labels, y, COLORS)
    return _picture(
        "Requests per second by server mode", y + 26, labels, caption(results["modes"]["machine"]), parts
    )


def workers(results: Results) -> str:
    """Requests per second against the number of workers, a panel for each page."""
    machine, figures = results["workers"]["machine"], results["workers"]["figures"]
    names = {
        it: f"gthread, {it} threads" if it else "event loop" for it in (row["threads"] for row in figures)
    }
    formulas = {row["workers"]: row["formula"] for row in figures}
    parts = []
    for number, (page, (milliseconds, seconds)) in enumerate(PAGES.items()):
        series = {
            name: [(row["workers"], row[page]["median"]) for row in figures if row["threads"] == threads]
            for threads, name in names.items()
        }
        needs = [f"about {milliseconds} ms of CPU"] * bool(milliseconds) + [
            f"{seconds * 1000:.0f} ms of waiting"
        ] * bool(seconds)
        parts += _lines(60 + number * 310, " + ".join(needs), series, formulas)
    parts += _legend(60, 330, dict(zip(names.values(), LINES[: len(names)], strict=True)), 180)
    note = f"requests/s by number of workers; n = {machine['cpus']} CPUs; {caption(machine)}"
    return _picture("Requests per second by number of workers", 356, 60, note, parts)


def memory(results: Results) -> str:
    """Memory against the number of workers."""
    names = list(dict.fromkeys(row["setting"] for row in results["memory"]["figures"]))
    series = {
        name: [
            (row["workers"], row["memory"]) for row in results["memory"]["figures"] if row["setting"] == name
        ]
        for name in names
    }
    parts = _lines(60, "MiB (PSS) of Django after load", series, {}, width=560)
    parts += _legend(60, 330, dict(zip(names, LINES[: len(names)], strict=True)), 180)
    note = f"by number of workers; {caption(results['memory']['machine'])}"
    return _picture("Memory by number of workers", 356, 60, note, parts)


def losses(results: Results) -> str:
    """Requests that got no answer, as bars, per mode and event."""
    labels, bar, column = 330, 22, 205
    rows = results["losses"]["figures"]
    kinds = {mode["name"]: mode["kind"] for mode in results["modes"]["figures"]}
    most = max(1, *(found["lost"] for events in rows.values() for found in events.values()))
    parts = [_text(labels + column * number, 14, event) for number, event in enumerate(EVENTS)]
    for number, (name, events) in enumerate(rows.items(), 1):
        y = bar * number + 2
        parts.append(_text(labels - 10, y + 12, name, "end"))
        for place, event in enumerate(EVENTS):
            x, lost = labels + column * place, events[event]["lost"]
            length = lost / most * (column - 100)
            color = COLORS[kinds[name]]
            text = f"{lost} of {lost + events[event]['answered']}"
            parts.append(f'<rect x="{x}" y="{y}" width="{length:.0f}" height="{bar - 6}" fill="{color}"/>')
            parts.append(_text(x + length + 6, y + 12, text))
    y = bar * (len(rows) + 1) + 20
    parts += _legend(
        labels, y, {kind: color for kind, color in COLORS.items() if kind in set(kinds.values())}
    )
    note = f"requests without an answer, of those sent by 16 clients; {results['losses']['machine']['date']}"
    return _picture("Requests lost by mode and event", y + 26, labels, note, parts)


def _lines(
    x: int,
    title: str,
    series: Mapping[str, Sequence[tuple[int, float]]],
    marks: Mapping[int, str],
    *,
    width: int = 260,
) -> list[str]:
    """One panel: a line for each series over evenly spaced counts, `marks` written below theirs."""
    top, bottom = 40, 260
    counts = sorted({count for points in series.values() for count, _ in points})
    highest = max(value for points in series.values() for _, value in points)
    step = width / max(1, len(counts) - 1)
    parts = [
        _text(x, 20, title),
        f'<path class="axis" d="M{x} {top}V{bottom}H{x + width}" fill="none"/>',
        _text(x - 6, top + 8, f"{highest:.0f}", "quiet end"),
        _text(x - 6, bottom, "0", "quiet end"),
    ]
    for number, count in enumerate(counts):
        parts.append(_text(x + number * step, bottom + 18, str(count), "middle"))
        if count in marks:
            parts.append(_text(x + number * step, bottom + 36, marks[count], "quiet middle"))
    for color, points in zip(LINES[: len(series)], series.values(), strict=True):
        places = [
            (x + counts.index(count) * step, bottom - value / highest * (bottom - top))
            for count, value in points
        ]
        path = " ".join(f"{a:.0f},{b:.0f}" for a, b in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.0f}" cy="{b:.0f}" r="3" fill="{color}"/>' for a, b in places]
    return parts


def _legend(x: int, y: int, colors: Mapping[str, str], step: int = 130) -> list[str]:
    parts = []
    for number, (name, color) in enumerate(colors.items()):
        parts.append(
            f'<rect x="{x + number * step}" y="{y - 10}" width="12" height="12" rx="2" fill="{color}"/>'
        )
        parts.append(_text(x + number * step + 18, y, name))
    return parts


def _text(x: float, y: float, text: str, classes: str = "") -> str:
    attribute = f' class="{classes}"' if classes else ""
    return f'<text{attribute} x="{x:.0f}" y="{y:.0f}">{escape(text)}</text>'


def _picture(title: str, y: int, x: int, note: str, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 14}" role="img">'
    lines = [
        head,
        f"<title>{title}</title><style>{STYLE}</style>",
        *parts,
        _text(x, y, note, "quiet"),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


# Part -> its table, which is printed when it has been measured.
TABLES: dict[str, Callable[[Results], str]] = {
    "modes": table,
    "workers": formulas,
    "front": front_table,
    "memory": memory_table,
    "losses": losses_table,
    "latency": latency_table,
    "metrics": metrics_table,
    "edge": edge_table,
    "hardening": hardening_table,
}
