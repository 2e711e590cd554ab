"""How fast training is, and where its time goes: device, data, Python, more devices, another framework.

    python benchmarks/throughput.py [--model NAME] [--epochs N] [--devices 1 2 4 8] [--torch] [--out FOLDER]

Over photographs that are made here, at sizes as real ones have them, trained on by `fit`, the project's own
loop. Tables: a step of each bucket (milliseconds, true megapixels a second, and of the device's peak where it
is known); the share of an epoch that the loop waits for data; what the loop itself takes (Python, transfers,
metrics, the journal), found by running it over steps that are done at once: a difference of two long times
would be noise; the same epoch on several virtual devices, in processes of their own, which on a CPU shows
overhead and no gain; and the same network in torch, one picture a step, as peers train on mixed shapes (where
there is a GPU, both run there).
"""

import dataclasses
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from PIL import Image

import spp_jax.training.loop
from spp_jax.buckets import plan_buckets
from spp_jax.compilation import data_mesh, default_cache_dir, replicated, use_compilation_cache
from spp_jax.config import RunConfig
from spp_jax.data.loading import load_batches, put
from spp_jax.data.records import Records
from spp_jax.data.schedule import Schedule
from spp_jax.run.journal import Journal
from spp_jax.training import configured_training, fit, step_executables

PEAKS = {  # operations a second in bfloat16, without sparsity, as the makers state them
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """How fast training is, and where its time goes."""

    count: int = 120
    """How many photographs are made."""
    model: str = "compact"
    """The network; torch has `compact` and `resnet18`."""
    buckets: int | Literal["auto"] = "auto"
    """Padded shapes."""
    pixels_per_step: int = RunConfig().pixels_per_step
    """Padded pixels of a batch."""
    dtype: str = "float32"
    """What the network computes in."""
    epochs: int = 3
    """Passes that are timed, after one that is not."""
    devices: tuple[int, ...] = ()
    """Virtual devices of a CPU to compare, such as 1 2 4 8. Batches are then multiples of the largest number,
    which pads more."""
    torch: bool = False
    """Train the same network in torch as well, one picture a step."""
    only_epoch: bool = False
    """Print the seconds of an epoch and nothing else."""
    out: Path | None = None
    """Folder for throughput.json."""


def make_records(count: int) -> Records:
    """Pictures of .05 to .4 megapixels, in memory as BMP, so that decoding them is nearly free."""
    rng = np.random.default_rng(0)
    pixels, aspect = np.exp(rng.uniform(np.log(5e4), np.log(4e5), count)), np.exp(rng.normal(0, 0.35, count))
    sizes = np.stack([np.sqrt(pixels / aspect), np.sqrt(pixels * aspect)], axis=1).astype(np.int64)
    photos = []
    for size in sizes:
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(file, "BMP")
        photos.append(file.getvalue())
    scores = rng.uniform(size=count).astype(np.float32)
    names = tuple(f"{i:05d}" for i in range(count))
    return Records(names, sizes, photos.__getitem__, scores, scores >= 0.5, names)


class Bench:
    """A run that can be timed epoch by epoch."""

    def __init__(self, options: Options):
        self.options, self.records, self.mesh = options, make_records(options.count), data_mesh()
        self.journal = Journal(Path(tempfile.mkdtemp(prefix="throughput-")), 0, writes=True)
        config = RunConfig(
            buckets=options.buckets,
            pixels_per_step=options.pixels_per_step,
            dtype=options.dtype,
            model=options.model,
            batch_multiple=max(options.devices, default=1),  # the same batches for every number of devices
        )
        plan = plan_buckets(self.records.sizes, **config.bucketing)
        self.schedule = Schedule(self.records.sizes, plan, seed=0, flip=True)
        self.steps = self.schedule.first_step(1)
        recipe, state = configured_training(config, 10_000, self.schedule.mean_batch)
        self.state = jax.device_put(state, replicated(self.mesh))
        self.step: Any = step_executables(recipe, self.state, self.mesh)
        for _ in self.step.compile_all(self.schedule.buckets):
            pass

    def epoch(self) -> float:
        """Seconds of `fit` over one epoch."""
        start = time.perf_counter()
        self.state = fit(
            self.step,
            self.state,
            self.records,
            self.schedule,
            self.mesh,
            start=0,
            stop=self.steps,
            after_step=self._note,
        )
        jax.block_until_ready(self.state)
        return time.perf_counter() - start

    def _note(self, done: int, state: Any, metrics: dict) -> bool:
        """What a run does with a step: its journal, and TensorBoard's."""
        metrics.pop("failed")
        self.journal.write({"step": done, **metrics})
        return False

    def loaded(self) -> list:
        """The batches of an epoch."""
        return list(load_batches(self.records, self.schedule.steps(0, self.steps), devices=self.mesh.size))

    def epoch_of(self, loaded: list) -> float:
        """Seconds of `fit` over batches that are decoded already."""
        original = spp_jax.training.loop.load_batches
        try:
            setattr(spp_jax.training.loop, "load_batches", lambda *_, **__: iter(loaded))  # noqa: B010
            return self.epoch()
        finally:
            setattr(spp_jax.training.loop, "load_batches", original)  # noqa: B010

    def loop_alone(self, loaded: list) -> float:
        """Seconds of `fit` over batches that are decoded already, with steps that are done at once."""
        spec, batch, _ = loaded[0]
        self.state, metrics = self.step[spec.bucket].call(self.state, put(batch, self.mesh))
        jax.block_until_ready(metrics)
        original, self.step = self.step, _Done(metrics)
        try:
            return self.epoch_of(loaded)
        finally:
            self.step = original

    def device_only(self, loaded: list) -> tuple[float, dict]:
        """Seconds of the steps alone, batches on the device, and the times of each bucket's step."""
        batches = [(spec, put(batch, self.mesh)) for spec, batch, _ in loaded]
        jax.block_until_ready(batches)
        by_bucket: dict = {}
        total = 0.0
        for spec, batch in batches:
            start = time.perf_counter()
            self.state, metrics = self.step[spec.bucket].call(self.state, batch)
            jax.block_until_ready((self.state, metrics))
            took = time.perf_counter() - start
            by_bucket.setdefault(spec.bucket, []).append((took, sum(h * w for h, w in spec.sizes)))
            total += took
        return total, by_bucket


class _Done:
    """Executables whose every step is done at once."""

    def __init__(self, metrics: Any):
        self.call = lambda state, _: (state, metrics)

    def __getitem__(self, bucket: Any) -> "_Done":
        return self


def operations(call: Any) -> float:
    cost = call.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    return float((cost or {}).get("flops", float("nan")))


def peak() -> float | None:
    kind = jax.devices()[0].device_kind
    found = [peak for name, peak in PEAKS.items() if kind.startswith(name)]
    return found[0] * len(jax.devices()) if found else None


def virtual(options: Options, devices: int) -> float:
    """Seconds of an epoch on so many virtual devices, in a process of its own."""
    arguments = ["--only-epoch", "--devices", *map(str, options.devices)]
    for name in ("count", "model", "buckets", "pixels_per_step", "dtype", "epochs"):
        arguments += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    ran = subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(ran.stdout.split()[-1])


def torch_compact() -> Any:
    """`compact` in torch."""
    import torch
    from torch import nn
    from torch.nn import functional as F  # noqa: N812

    class Compact(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 24, 3, 4, 1, bias=False)
            self.stage = nn.Conv2d(24, 48, 3, 2, 1)
            self.hidden, self.logits = nn.Linear(2 * 21 * 72, 64), nn.Linear(64, 1)

        def forward(self, x):
            contrast = torch.log1p(5 * self.stem(x).abs())
            maps = (contrast, F.relu(self.stage(contrast)))
            pools = (F.adaptive_avg_pool2d, F.adaptive_max_pool2d)
            pooled = [pool(m, n).flatten(1) for m in maps for pool in pools for n in (1, 2, 4)]
            vector = torch.cat(pooled, 1) * (2 * 21 * 72) ** -0.5
            return self.logits(F.gelu(self.hidden(vector)))

    return Compact()


def torch_resnet18() -> Any:
    """`resnet18` in torch, with a pyramid of means."""
    import torch
    from torch import nn
    from torch.nn import functional as F  # noqa: N812

    class Block(nn.Module):
        def __init__(self, before, width, stride):
            super().__init__()
            self.branch = nn.Sequential(
                nn.Conv2d(before, width, 3, stride, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, 1, 1, bias=False),
                nn.BatchNorm2d(width),
            )
            self.shortcut = nn.Sequential()
            if stride > 1 or before != width:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)
                )

        def forward(self, x):
            return F.relu(self.branch(x) + self.shortcut(x))

    class ResNet(nn.Module):
        def __init__(self):
            super().__init__()
            widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
            self.stem = nn.Sequential(
                nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
            )
            self.blocks = nn.Sequential(*(Block(a, b, 1 + (a != b)) for a, b in itertools.pairwise(widths)))
            self.logits = nn.Linear(21 * 512, 1)

        def forward(self, x):
            x = self.blocks(self.stem(x))
            return self.logits(torch.cat([F.adaptive_avg_pool2d(x, n).flatten(1) for n in (1, 2, 4)], 1))

    return ResNet()


TORCH = {"compact": torch_compact, "resnet18": torch_resnet18}


class TorchRun:
    """A network trained in torch, one picture a step, channels last, pictures decoded before."""

    def __init__(self, name: str, records: Records):
        import torch

        from spp_jax.data.decoding import decode

        torch.set_num_threads(os.cpu_count() or 1)
        self.device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
        self.model: Any = TORCH[name]().to(device=self.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3, weight_decay=0.05)
        self.scores = records.scores
        self.pictures = [
            torch.from_numpy(decode(records.photo(i)).copy())[None].permute(0, 3, 1, 2)
            for i in range(len(records))
        ]

    def epoch(self) -> float:
        """Seconds of it."""
        import torch
        from torch.nn import functional as F  # noqa: N812

        start = time.perf_counter()
        for picture, score in zip(self.pictures, self.scores, strict=True):
            self.optimizer.zero_grad()
            logit = self.model(picture.to(self.device).float() / 255 * 4 - 2)[:, 0]
            F.binary_cross_entropy_with_logits(logit, torch.tensor([score], device=self.device)).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def tell_buckets(bench: Bench, steps: dict[Bucket, list[tuple[float, float]]]) -> list[dict]:
    """A line for each, of the seconds and true pixels of its steps; the same as figures."""
    device_peak = peak()
    print(f"{'bucket':>22s} {'ms a step':>10s} {'true Mpx/s':>11s} {'GFLOP/s':>9s} {'of peak':>8s}")
    rows = []
    for bucket, times in steps.items():
        seconds = float(np.median([took for took, _ in times]))
        true = sum(p for _, p in times) / sum(took for took, _ in times) / 1e6
        speed = operations(bench.step[bucket].call) / seconds
        share = f"{speed / device_peak:.1%}" if device_peak else "unknown"
        print(f"{bucket!s:>22s} {seconds * 1e3:10.1f} {true:11.2f} {speed / 1e9:9.1f} {share:>8s}")
        rows.append({"bucket": str(bucket), "seconds": seconds, "true Mpx/s": true, "FLOP/s": speed})
    return rows


def main() -> None:
    options = tyro.cli(Options)
    if options.torch and options.model not in TORCH:
        sys.exit(f"--torch: {options.model} is not written in torch here; {', '.join(TORCH)} are")
    use_compilation_cache(default_cache_dir())
    bench = Bench(options)
    bench.epoch()
    if options.only_epoch:
        print(float(np.median([bench.epoch() for _ in range(options.epochs)])))
        return
    loaded = bench.loaded()
    bench.epoch_of(loaded)
    bench.device_only(loaded)
    whole, decoded, device, loop, steps, beside = [], [], [], [], {}, []
    rival = TorchRun(options.model, bench.records) if options.torch else None
    if rival is not None:
        rival.epoch()
    for _ in range(options.epochs):  # in turns: what disturbs one disturbs all
        whole.append(bench.epoch())
        decoded.append(bench.epoch_of(loaded))
        if rival is not None:
            beside.append(rival.epoch())
        loop.append(bench.loop_alone(loaded))
        seconds, by_bucket = bench.device_only(loaded)
        device.append(seconds)
        for bucket, times in by_bucket.items():
            steps.setdefault(bucket, []).extend(times)
    count, pixels = len(bench.records), float(bench.records.sizes.prod(axis=1).sum())
    epoch, ready, alone, idle = (float(np.median(times)) for times in (whole, decoded, device, loop))
    print(
        f"{options.model}, {options.dtype}; {bench.mesh.size} {jax.devices()[0].device_kind}, "
        f"{os.cpu_count()} cores"
    )
    print(
        f"{count} pictures, {bench.steps} steps an epoch, {bench.schedule.waste:.1%} of the pixels padding\n"
    )
    rows = tell_buckets(bench, steps)
    print(f"\nan epoch {epoch:.2f} s: {count / epoch:.1f} images/s, {pixels / epoch / 1e6:.2f} true Mpx/s")
    print(
        f"waiting for data {max(epoch - ready, 0) / epoch:.1%} of it; Python, transfers and metrics take "
        f"{1e3 * idle / bench.steps:.2f} ms a step, {idle / alone:.1%} of the device's time"
    )
    described = {
        "version": 1,
        "options": dataclasses.asdict(options),
        "buckets": rows,
        "epoch": whole,
        "decoded": decoded,
        "device": device,
        "loop": loop,
        "pictures": count,
        "pixels": pixels,
    }
    if options.devices:
        described["devices"] = {n: virtual(options, n) for n in options.devices}
        first = described["devices"][options.devices[0]]
        for n, seconds in described["devices"].items():
            print(f"{n} virtual devices: {seconds:.2f} s an epoch, {seconds / first:.2f} of the first")
    if beside:
        seconds, ratio = float(np.median(beside)), float(np.median(np.divide(beside, decoded)))
        described |= {"torch": beside}
        print(
            f"torch, one picture a step, decoded before: {seconds:.2f} s, {count / seconds:.1f} images/s: "
            f"{ratio:.2f} of ours with pictures decoded before, the median of {options.epochs} turns"
        )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(described, indent=2, default=str)
        (options.out / "throughput.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
