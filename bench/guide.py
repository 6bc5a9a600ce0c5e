"""docs/choosing.md and the pictures, from the checked-in results; `make bench` ends with it."""

import json
from typing import Any

from bench import report
from bench.modes import MODES, ROOT, Mode

RESULTS = ROOT / "bench/results"
GUIDE = ROOT / "docs/choosing.md"

HEAD = """# Which server, which worker, how many

Written by `make bench` from what it measured ([`results.json`](../bench/results/results.json)); do not edit.
{machine}. Your machine differs: the ratios count, and one command measures them again.

## The way to a mode

1. **Is the application asynchronous (ASGI)?** No: go to 5.
2. **Does an orchestrator run, count and replace your containers?** Yes: `uvicorn`, **one process** in each.
3. **Is memory shorter than {uvicorn_memory} MiB for {cpus} processes?** Yes: the **hybrid**, Gunicorn
   managing **n** Uvicorn workers ({hybrid_memory} MiB).
4. **Otherwise**: `uvicorn`, by `python -m asgi_app`, **n** workers.
5. **Do requests wait in hundreds at a time, on services that you can not make faster?** Yes: make that part
   asynchronous and go to 2; if you can not, `gevent`, **n** workers.
6. **Do requests mostly wait, but not in hundreds?** Yes: `gthread`, `WORKLOAD=io`, **4n+1** workers.
7. **Do they only compute?** Yes: `gthread`, `WORKLOAD=cpu`, **n+1** workers. No, pages and JSON with a
   database behind: `gthread`, **n+1** workers of six threads, the default.

n is the number of CPUs that the container may use, a fraction rounded up; `serving/sizing.py` reads it from
the control groups, and never starts more than memory holds.

## The figures

Requests per second are medians with their range; the access log is on in all of them.

{table}

![Requests per second by server mode](../bench/results/modes.svg)

## How many workers

![Requests per second by number of workers](../bench/results/workers.svg)

{formulas}

The right number is the smallest after which its row no longer grows: a worker more costs memory. Where
requests wait, more threads do what more workers do, for less.

## What a worker costs

![Memory by number of workers](../bench/results/memory.svg)

{memory}

## What a stop, a reload and recycling lose

Sixteen clients on kept-alive connections, no proxy in front. Under *stop*, a refused connection is no loss:
the client may ask elsewhere.

![Requests lost by mode and event](../bench/results/losses.svg)

No server stops without a loss: connections that wait in its listen queue are reset. So a planned stop
is: `/readyz` says 503, the proxy has seen it, then SIGTERM. Recycling is free with threads, and expensive
with an event loop: hence `max_requests` in `gunicorn.conf.py`, and none for asyncio workers.
"""

KINDS = {
    "recommended": "What runs here",
    "alternative": "What else this configuration can run",
    "copied": "What guides say, and what comes of it",
    "yardstick": "Yardsticks",
}


def figures(mode: Mode, results: report.Results) -> dict[str, Any]:
    """What a mode's paragraph may name."""
    found = next((row for row in results["modes"] if row["name"] == mode.name), {})
    rounded = {name: f"{found[name]:.0f}" for name in ("rate", "p99", "memory", "errors") if name in found}
    events = results["losses"].get(mode.name, {})
    return rounded | {event: counts["lost"] for event, counts in events.items()}


def paragraph(mode: Mode, results: report.Results) -> str:
    """A mode's paragraph: its command, and when to take it."""
    text = mode.about.format(**figures(mode, results))
    row: dict[str, Any] = next((row for row in results["modes"] if row["name"] == mode.name), {})
    if "verbatim_rate" in row:
        text += f" Exactly as copied, without an access log: {row['verbatim_rate']:.0f}."
    command = mode.command.format(app="APP", port=8000)
    return f"**{mode.name}** (`{command}`). {text}\n"


def formulas(results: report.Results) -> str:
    """What the sweep says of the formulas, page by page, for gthread."""
    cpus = results["machine"]["cpus"]
    named = {"n": cpus, "n+1": cpus + 1, "2n": 2 * cpus, "2n+1": 2 * cpus + 1, "4n+1": 4 * cpus + 1}
    rows = {row["workers"]: row for row in results["workers"] if row["server"] == "gthread"}
    named = {formula: count for formula, count in named.items() if count in rows}
    pages = [key for key in next(iter(rows.values())) if key.startswith("/")]
    lines = ["| page, gthread | " + " | ".join(f"{name} = {count}" for name, count in named.items()) + " |"]
    lines.append("|---|" + "---:|" * len(named))
    for page in pages:
        cells = (f"{rows[count][page]:.0f}/s" for count in named.values())
        lines.append(f"| `{page}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def memory(results: report.Results) -> str:
    """The cost of the last worker in each setting."""
    costs = []
    for setting in dict.fromkeys(row["setting"] for row in results["memory"]):
        rows = sorted(
            (row["workers"], row["memory"]) for row in results["memory"] if row["setting"] == setting
        )
        (few, least), (many, most) = rows[0], rows[-1]
        costs.append(f"{(most - least) / (many - few):.0f} MiB with {setting}")
    return f"Each further worker of Django costs {', '.join(costs)}."


def guide(results: report.Results) -> str:
    """The whole document."""
    machine = results["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    memories = {row["name"]: f"{row['memory']:.0f}" for row in results["modes"]}
    head = HEAD.format(
        machine=f"{report.caption(results)}; {machine['processor']}; {packages}",
        cpus=machine["cpus"],
        uvicorn_memory=memories["fastapi uvicorn"],
        hybrid_memory=memories["fastapi hybrid"],
        table=report.table(results),
        formulas=formulas(results),
        memory=memory(results),
    )
    parts = [head]
    for kind, title in KINDS.items():
        parts.append(f"## {title}\n")
        parts += [paragraph(mode, results) for mode in MODES if mode.kind == kind and mode.about]
    return "\n".join(parts)


def main() -> None:
    """Write the pictures and the guide."""
    results = json.loads((RESULTS / "results.json").read_text())
    for name, picture in report.pictures(results).items():
        (RESULTS / name).write_text(picture)
    GUIDE.parent.mkdir(exist_ok=True)
    GUIDE.write_text(guide(results))
    print(f"written: {GUIDE}")


if __name__ == "__main__":
    main()
