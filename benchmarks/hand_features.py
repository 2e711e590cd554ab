"""The floor: features made by hand, and a boosted model on them.

What judges of photographs looked at before networks did: how edges are spread (Ke, Tang and Jing 2006,
section 4), colours, and what lies at the thirds (Datta et al. 2006, section 3). Needs spp_jax[demo].
"""

import numpy as np
from scipy import ndimage
from sklearn.ensemble import HistGradientBoostingRegressor

from spp_jax.data.decoding import decode
from spp_jax.data.records import Records

__all__ = ["features", "judge"]


def features(pixels: np.ndarray) -> np.ndarray:
    """uint8 ``[height, width, 3]`` to float ``[89]``."""
    rgb = pixels.astype(np.float32) / 255
    grey = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    edges = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1)) / 4
    fine = np.abs(ndimage.laplace(grey))
    return np.concatenate([_edges(edges, fine), _colours(rgb), _thirds(edges, rgb)])


def _edges(edges: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """How strong they are, how they are spread, and the box that holds most of them."""
    strengths, _ = np.histogram(np.log10(edges + 1e-4), 12, (-4, 0.2))
    quantiles = np.log10(np.quantile(fine, (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)) + 1e-4)
    boxes = []
    for axis in (0, 1):
        line = np.cumsum(edges.sum(axis)) / max(edges.sum(), 1e-9)
        low, high = np.searchsorted(line, (0.05, 0.95))
        boxes.append((high - low) / len(line))
    return np.concatenate([strengths / edges.size, quantiles, [boxes[0] * boxes[1]], _cells(edges, 3)])


def _colours(rgb: np.ndarray) -> np.ndarray:
    """A histogram of 4x4x3 of hue, saturation and value, and the means of the last two."""
    value, low = rgb.max(-1), rgb.min(-1)
    chroma = value - low
    saturation = chroma / np.maximum(value, 1e-6)
    r, g, b = np.moveaxis(rgb, -1, 0)
    safe = np.maximum(chroma, 1e-6)
    sector = np.where(
        value == r, (g - b) / safe % 6, np.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4)
    )
    cells = np.stack([sector / 6, saturation, value], -1).reshape(-1, 3)
    histogram, _ = np.histogramdd(cells, (4, 4, 3), ((0, 1.0001),) * 3)
    return np.concatenate([histogram.ravel() / len(cells), [saturation.mean(), value.mean(), value.std()]])


def _thirds(edges: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """Colour of the middle third against the whole, and the edges near the four points of the thirds."""
    height, width, _ = rgb.shape
    middle = rgb[height // 3 : height - height // 3, width // 3 : width - width // 3].mean((0, 1))
    rows, columns = (np.linspace(0, 1, n)[:, None] for n in (height, width))
    near = 0
    for row in (1 / 3, 2 / 3):
        for column in (1 / 3, 2 / 3):
            near = near + np.exp(-((rows - row) ** 2 + (columns.T - column) ** 2) / 0.02)
    total = max(float(edges.sum()), 1e-9)
    centre = [float((edges * r).sum()) / total for r in (rows, columns.T)]
    at_points = float((edges * near).sum()) / total
    return np.concatenate(
        [middle - rgb.mean((0, 1)), centre, [at_points], [np.log(width / height)], rgb.std((0, 1))]
    )


def _cells(array: np.ndarray, parts: int) -> np.ndarray:
    """The share of each of ``parts * parts`` cells."""
    sums = [c.sum() for r in np.array_split(array, parts) for c in np.array_split(r, parts, axis=1)]
    return np.array(sums) / max(float(array.sum()), 1e-9)


def judge(parts: dict[str, Records], table: dict[str, np.ndarray], seed: int) -> np.ndarray:
    """Fit on the training and validation parts, and score the test part: float ``[n]`` in [0, 1].

    Args:
        parts: of the data set, by their names.
        table: features by a picture's id; those that lack are computed and put in.
        seed: of the model.
    """

    def matrix(records: Records) -> np.ndarray:
        for index, name in enumerate(records.ids):
            if name not in table:
                table[name] = features(decode(records.photo(index), records.decoding))
        return np.stack([table[name] for name in records.ids])

    fitted = [parts["train"], parts["validation"]]
    inputs = np.concatenate([matrix(records) for records in fitted])
    labels = np.concatenate([records.scores for records in fitted])
    model = HistGradientBoostingRegressor(random_state=seed).fit(inputs, labels)
    return np.clip(model.predict(matrix(parts["test"])), 0, 1)
