"""The picture of deletion and insertion: the mean curves of each network's heats."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

# Colours that are told apart without seeing red and green; grey knows nothing of the network.
STYLES = {
    "attention": ("#0072b2", "-"),
    "attention x gradient": ("#0072b2", "--"),
    "rollout": ("#009e73", "-"),
    "gradient-weighted rollout": ("#009e73", "--"),
    "relevance": ("#e69f00", "-"),
    "Grad-CAM": ("#d55e00", "-"),
    "Grad-CAM, last map": ("#d55e00", "--"),
    "random": ("#888888", "-"),
    "random, coarse": ("#888888", ":"),
    "contrast": ("#888888", "--"),
}


def draw_curves(rows: list[dict[str, str]], path: Path, *, fill: str = "mean") -> None:
    """Mean over seeds, a row of panels for each network; one fill."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    figure, axes = plt.subplots(
        len(networks), 2, figsize=(10.5, 3.4 * len(networks)), layout="constrained", squeeze=False
    )
    for line, network in zip(axes, networks, strict=True):
        for panel, name in zip(line, ("deletion", "insertion"), strict=True):
            wanted = {"network": network, "curve": name, "fill": fill}
            mine = [row for row in rows if wanted.items() <= row.items()]
            for method, (colour, style) in STYLES.items():
                points = [
                    [float(each) for each in row["points"].split()]
                    for row in mine
                    if row["method"] == method
                ]
                if points:
                    mean = torch.tensor(points).mean(0).tolist()
                    share = [100 * step / (len(mean) - 1) for step in range(len(mean))]
                    panel.plot(share, mean, style, color=colour, label=method, lw=1.5)
            seeds = len({row["seed"] for row in mine})
            panel.set_title(f"{network}, {mine[0]['data']}: {name} (seeds: {seeds})", fontsize=10)
            panel.set(
                ylim=(0, 1), xlabel=f"pixels {'replaced' if name == 'deletion' else 'put in'}, %"
            )
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel("probability of the class")
        line[1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
