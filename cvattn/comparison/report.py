"""What a comparison comes to, in tables and sentences."""

from rich.table import Table

from cvattn.comparison.compared import Comparison
from cvattn.comparison.intervals import mean_text
from cvattn.comparison.metrics import Metric

# Up to here two costs are taken for the same.
_SAME_COST = 0.02
# Runs that differ in these are compared all the same; it is said.
_CIRCUMSTANCES = {
    "precision": "precisions (trainer.precision= makes them one)",
    "gpu": "GPUs",
    "cpu": "processors",
    "torch": "versions of torch",
    "commit": "commits",
    "threads": "numbers of threads",
    "at_once": "numbers of runs at once, which the minutes depend on",
}
# What an empty value means; of all others that there is none.
_UNSAID = {"threads": "unknown", "at_once": "unknown"}


def metric_table(comparison: Comparison, metric: Metric) -> Table:
    """Means and differences; intervals are 95 %, Student's t."""
    first = comparison.first
    unit = f", {metric.unit}" if metric.unit else ""
    better = "more" if metric.mode == "max" else "less"
    table = Table(
        title=f"{metric.name} on {comparison.data}{unit} ({better} is better)", title_justify="left"
    )
    table.add_column("run", no_wrap=True)
    for name in ("seeds", "mean (95 %)", f"from {first} (95 %)"):
        table.add_column(name, justify="right", overflow="fold")
    for arm in comparison.arms(metric):
        apart = list(arm.differences.values())
        alone = arm.name == first or len(apart) == len(arm.values)
        table.add_row(
            arm.name,
            f"{len(arm.values)}" + ("" if alone else f", {len(apart)} paired"),
            mean_text(list(arm.values.values()), digits=metric.digits),
            mean_text(apart, "+", metric.digits) if apart else "",
        )
    return table


def cost_table(comparison: Comparison) -> Table:
    """What each run costs; minutes are of the machine that it ran on."""
    unit = comparison.rows[0]["sample"]
    table = Table(title=f"cost on {comparison.data}", title_justify="left")
    table.add_column("run", no_wrap=True)
    for name in (f"MACs per {unit}, 1e6", "parameters", "training PFLOP", "minutes"):
        table.add_column(name, justify="right", overflow="fold")
    macs, parameters, pflop, minutes = (
        comparison.means(key) for key in ("macs_per_sample", "parameters", "pflop", "minutes")
    )
    for run, cost in pflop.items():
        table.add_row(
            *(run, f"{macs[run] / 1e6:,.3f}", f"{parameters[run]:,.0f}"),
            *(f"{cost:.4g}", f"{minutes[run]:.1f}"),
        )
    return table


def sentences(comparison: Comparison) -> list[str]:
    """A sentence for each run after the first, and what to keep in mind."""
    first = comparison.first
    runs = list(comparison.means("pflop"))
    if first not in runs:
        return [f"No run of {first} on {comparison.data}: there is nothing to compare with."]
    said: dict[str, dict[str, list[str]]] = {run: {} for run in runs if run != first}
    for metric in comparison.metrics:
        for arm in comparison.arms(metric):
            if arm.name != first:
                said[arm.name].setdefault(arm.verdict(metric), []).append(metric.name)
    lines = [
        f"{run} against {first}: "
        + "; ".join(f"{verdict} ({', '.join(names)})" for verdict, names in found.items())
        for run, found in said.items()
    ]
    lines += _of_cost(comparison)
    for key, name in _CIRCUMSTANCES.items():
        unsaid = _UNSAID.get(key, "none")
        found = dict.fromkeys(_circumstance(key, row.get(key) or unsaid) for row in comparison.rows)
        if len(found) > 1:
            lines.append(f"The runs are of different {name}: {', '.join(found)}.")
    if said:
        lines.append(
            "Intervals are 95 % (Student's t), of differences between equal seeds. Each stands for "
            "itself: where nothing differs, one in 20 excludes 0 all the same."
        )
    return lines


def _of_cost(comparison: Comparison) -> list[str]:
    lines = []
    for key, name in (("pflop", "training PFLOP"), ("parameters", "parameters")):
        means = comparison.means(key)
        base = means[comparison.first]
        unequal = [
            f"{run} {value / base:.2f}"
            for run, value in means.items()
            if base and abs(value / base - 1) > _SAME_COST
        ]
        if unequal:
            lines.append(
                f"Unequal {name}, as shares of what {comparison.first} has: {', '.join(unequal)}. "
                "A difference may come from that alone."
            )
    return lines


def _circumstance(key: str, text: str) -> str:
    """Of commits the beginning of each, and what was changed since."""
    if key != "commit":
        return text
    return " ".join(word[:7] + ("+changes" if "+" in word else "") for word in text.split())
