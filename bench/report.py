"""A measurement as a table and as a picture."""

from html import escape
from typing import Any

COLUMNS = ("mode", "requests/s", "p99 ms", "memory MiB", "processes", "errors")
COLORS = {"recommended": "#1a7f5a", "alternative": "#5b8def", "copied": "#c2703d", "yardstick": "#8a8f98"}
BAR, LABELS, WIDTH = 22, 330, 960

# In one picture for a light and a dark page.
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.quiet { fill: #656d76 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .quiet { fill: #9198a1 } }
"""

Results = dict[str, Any]


def ordered(results: Results) -> list[dict[str, Any]]:
    """The modes by application, the fastest first."""
    families = ("fastapi", "flask", "django")

    def family(mode: dict[str, Any]) -> int:
        app = mode["app"]
        bare = {"bare-asgi": "fastapi", "bare-wsgi": "flask"}.get(app, app)
        return families.index(bare.partition("-")[0])

    return sorted(results["modes"], key=lambda mode: (family(mode), -mode["rate"]))


def sentence(results: Results) -> str:
    """What the README says of the results."""

    def best(app: str, kind: str) -> dict[str, Any]:
        return max(
            (mode for mode in results["modes"] if (mode["app"], mode["kind"]) == (app, kind)),
            key=lambda mode: mode["rate"],
        )

    ours, copied = best("fastapi", "recommended"), best("fastapi", "copied")
    flask, plain = best("flask", "recommended"), best("flask", "copied")
    machine = results["machine"]
    return (
        f"On {machine['cpus']} CPUs, {machine['date']}: `fastapi` answered "
        f"**{ours['rate'] / copied['rate']:.1f} times** the requests of the fastest command that people copy "
        f"from guides, `flask` **{flask['rate'] / plain['rate']:.1f} times** "
        f"in {flask['memory'] / plain['memory']:.0%} of its memory."
    )


def table(results: Results) -> str:
    """The results as a Markdown table."""
    lines = [" | ".join(COLUMNS), " | ".join(["---"] + ["---:"] * (len(COLUMNS) - 1))]
    for mode in ordered(results):
        name = f"**{mode['name']}**" if mode["kind"] == "recommended" else mode["name"]
        low, high = mode["rate_range"]
        rate = f"{mode['rate']:.0f} ({low:.0f} to {high:.0f})"
        figures = (
            f"{mode['p99']:.0f}",
            f"{mode['memory']:.0f}",
            f"{mode['processes']:.0f}",
            str(mode["errors"]),
        )
        lines.append(" | ".join((name, rate, *figures)))
    return "\n".join(f"| {line} |" for line in lines)


def draw(results: Results) -> str:
    """Requests per second as bars, by application; the 99th percentile beside each."""
    modes = ordered(results)
    scale = (WIDTH - LABELS - 190) / max(mode["rate"] for mode in modes)
    height = BAR * (len(modes) + 4)
    machine = results["machine"]
    caption = f"{machine['date']}, {machine['cpus']} CPUs, Python {machine['python']}, {machine['load']}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        f"<title>Requests per second by server mode</title><style>{STYLE}</style>",
    ]
    for number, mode in enumerate(modes):
        y, color = BAR * number + 6, COLORS[mode["kind"]]
        length = max(1, mode["rate"] * scale)
        text = f"{mode['rate']:.0f}/s, p99 {mode['p99']:.0f} ms"
        if mode["errors"]:
            text += f", {mode['errors']} errors"
        parts += [
            f'<text x="{LABELS - 10}" y="{y + 12}" text-anchor="end">{escape(mode["name"])}</text>',
            f'<rect x="{LABELS}" y="{y}" width="{length:.0f}" height="{BAR - 6}" fill="{color}"/>',
            f'<text x="{LABELS + length + 8:.0f}" y="{y + 12}">{text}</text>',
        ]
    y = BAR * len(modes) + 24
    for number, (kind, color) in enumerate(COLORS.items()):
        x = LABELS + number * 130
        parts.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" rx="2" fill="{color}"/>')
        parts.append(f'<text x="{x + 18}" y="{y}">{kind}</text>')
    parts.append(f'<text class="quiet" x="{LABELS}" y="{y + 26}">{escape(caption)}</text></svg>')
    return "\n".join(parts) + "\n"
