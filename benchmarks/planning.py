"""How good the bucket planner is: its padding beside a proven lower bound and a long random search.

    python benchmarks/planning.py [--sizes FILE [FILE ...]] [--anneal-seconds 25] [--out FOLDER]

A FILE has lines `height,width,count` after a heading; without one, the default data set's sizes are planned.

The bound is the Lagrangian one of the p-median problem (Cornuejols, Fisher, Nemhauser 1977): no plan of so
many boxes, found by whatever means, pads less. A price for each size is paid instead of holding it; for any
prices, their sum less what the k most profitable boxes earn is a bound, and a subgradient method raises it.

The random search anneals the boxes, which it moves by one side or to another size's, from a random start.
`both ways` plans portraits turned to landscapes: what one program for both orientations would need.

Prints a table; saves JSON, and a picture of each plan of the second number of buckets.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from photo_sizes import read_sizes, scaled

from spp_jax import plan_buckets


@dataclasses.dataclass(frozen=True)
class Options:
    """How good the bucket planner is."""

    sizes: tuple[Path, ...] = ()
    """Files of sizes, lines of height,width,count after a heading."""
    buckets: tuple[int, ...] = (4, 12, 24)
    """Numbers of buckets."""
    multiple: int = 8
    """Of which the sides are multiples."""
    max_side: int = 1024
    """Larger pictures are scaled down to this longest side."""
    anneal_seconds: float = 25
    """How long the random search takes for each plan; 0: none."""
    bound_steps: int = 1500
    """Of the subgradient method."""
    out: Path | None = None
    """Folder for planning.json and the pictures."""


class Problem:
    """Distinct rounded sizes with counts, every box worth having, and what each size pays in each box."""

    def __init__(self, sizes: np.ndarray, counts: np.ndarray, multiple: int):
        rounded = -(-sizes // multiple) * multiple
        self.places, where = np.unique(rounded, axis=0, return_inverse=True)
        self.counts = np.bincount(where.reshape(-1), counts)
        rows, columns = (np.unique(side) for side in self.places.T)
        self.boxes = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
        self.pixels = float((sizes.prod(axis=1) * counts).sum())

    def cost(self, boxes: np.ndarray) -> float:
        """Padded pixels of a plan; infinite where a size fits no box."""
        fits = (self.places <= boxes[:, None]).all(-1)
        paid = np.where(fits, boxes.prod(1)[:, None], np.inf).min(0)
        return float(paid @ self.counts)


def lower_bound(problem: Problem, most: int, target: float, steps: int) -> float:
    """Padded pixels that no plan of ``most`` boxes undercuts; ``target`` is what some plan costs."""
    fits = (problem.places <= problem.boxes[:, None]).all(-1)
    paid = np.where(fits, problem.boxes.prod(1)[:, None] * problem.counts, np.inf)
    prices = paid[-1] / 2
    bound, scale, stale = -np.inf, 1.0, 0
    for _ in range(steps):
        earned = np.minimum(paid - prices, 0)
        totals = earned.sum(1)
        chosen = np.argpartition(totals, most)[:most] if most < len(totals) else np.arange(len(totals))
        value = prices.sum() + totals[chosen].sum()
        stale = 0 if value > bound else stale + 1
        bound = max(bound, value)
        if stale > 20:
            scale, stale = scale / 1.5, 0
        slope = 1.0 - (earned[chosen] < 0).sum(0)
        if not slope.any():
            break
        prices = np.maximum(prices + scale * (target - value) / (slope @ slope) * slope, 0)
    return float(bound)


def anneal(problem: Problem, most: int, seconds: float, seed: int = 0) -> float:
    """The least cost that a random search from a random start meets."""
    rng = np.random.default_rng(seed)
    top = problem.places.max(0)
    sides = [np.unique(side) for side in problem.places.T]
    boxes = np.concatenate([problem.places[rng.choice(len(problem.places), most - 1)], top[None]])
    cost = best = problem.cost(boxes)
    start, heat = time.perf_counter(), cost / 50
    while (passed := (time.perf_counter() - start) / seconds) < 1:
        moved = boxes.copy()
        row, axis = rng.integers(most), rng.integers(2)
        if rng.random() < 0.2:
            moved[row] = problem.places[rng.integers(len(problem.places))]
        else:
            at = np.searchsorted(sides[axis], moved[row, axis]) + rng.choice([-3, -2, -1, 1, 2, 3])
            moved[row, axis] = sides[axis][np.clip(at, 0, len(sides[axis]) - 1)]
        found = problem.cost(moved)
        if found < cost or rng.random() < np.exp((cost - found) / (heat * (1 - passed) ** 2 + 1e-9)):
            boxes, cost = moved, found
            best = min(best, cost)
    return best


def measure(name: str, sizes: np.ndarray, counts: np.ndarray, options: Options) -> list[dict[str, Any]]:
    rows = []
    problem = Problem(sizes, counts, options.multiple)
    turned = np.sort(sizes, axis=1)
    for most in options.buckets:
        start = time.perf_counter()
        plan = plan_buckets(sizes, most, counts=counts, multiple=options.multiple)
        seconds = time.perf_counter() - start
        cost = problem.cost(np.array(plan.shapes))
        bound = lower_bound(problem, most, cost, options.bound_steps)
        searched = anneal(problem, most, options.anneal_seconds) if options.anneal_seconds else np.nan
        both = plan_buckets(turned, most, counts=counts, multiple=options.multiple)
        rows.append(
            {
                "collection": name,
                "distinct": len(problem.places),
                "buckets": most,
                "seconds": seconds,
                "padding": plan.waste(sizes, counts),
                "bound": 1 - problem.pixels / bound,
                "gap": cost / bound - 1,
                "annealed": 1 - problem.pixels / searched,
                "both_orientations": both.waste(turned, counts),
                "shapes": plan.shapes,
            }
        )
        row = rows[-1]
        print(
            f"{name:20s}{row['distinct']:9d}{most:9d}{row['seconds']:9.1f}{row['padding']:10.2%}{row['bound']:10.2%}"
            f"{row['gap']:9.2%}{row['annealed']:10.2%}{row['both_orientations']:10.2%}",
            flush=True,
        )
        if options.out and most == options.buckets[min(1, len(options.buckets) - 1)]:
            plan.draw(sizes, options.out / f"plan-{name}.png", counts=counts, title=name)
    return rows


def main() -> None:
    options = tyro.cli(Options)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    collections = {}
    for path in options.sizes or (None,):
        sizes, counts = read_sizes(path)
        collections[path.stem if path else "distorted_photos"] = scaled(sizes, options.max_side), counts
    print(
        f"{'collection':20s}{'distinct':>9s}{'buckets':>9s}{'seconds':>9s}{'padding':>10s}{'bound':>10s}{'gap':>9s}"
        f"{'annealed':>10s}{'both ways':>10s}"
    )
    rows = []
    for name, (sizes, counts) in collections.items():
        rows += measure(name, sizes, counts, options)
    if options.out:
        described = {"version": 1, "options": dataclasses.asdict(options), "rows": rows}
        (options.out / "planning.json").write_text(json.dumps(described, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
