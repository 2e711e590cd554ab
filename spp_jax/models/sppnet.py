"""`SPPNet`: a convolutional body, the pyramid in place of its last pool, a fully connected head."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from spp_jax.bins import Level
from spp_jax.layers import SpatialPyramidPool
from spp_jax.padded import Padded
from spp_jax.reductions import Reduction

__all__ = ["SPPNet"]


class SPPNet(nnx.Module):
    """SPP-net (He et al. 2014, figure 1): the whole image in, a vector of fixed length to the head.

    Attributes:
        min_size: the smallest (height, width) it takes, in pixels.
    """

    def __init__(
        self,
        body: Callable[[Padded], tuple[Padded, ...]],
        *,
        features: int,
        min_size: tuple[int, int],
        levels: Sequence[Level],
        reduce: Sequence[Reduction],
        hidden: int,
        outputs: int,
        dtype: Dtype | None,
        rngs: nnx.Rngs,
    ):
        """Put a network together.

        Args:
            body: a module from `Padded` images ``[batch, height, width, 3]`` to one or more `Padded`
                feature maps; each is pooled by the pyramid.
            features: the channels that ``body`` gives, over all its maps.
            min_size: the smallest (height, width) for which each map has at least one cell.
            levels: the pyramid.
            reduce: the reductions of the pyramid; each gives its own features.
            hidden: width of the one hidden layer of the head.
            outputs: how many logits.
            dtype: to compute in; None: what parameters and input promote to.
            rngs: for the initial parameters.
        """
        self.body = body
        self.pools = nnx.List(SpatialPyramidPool(levels, reduce=reduction) for reduction in reduce)
        width = sum(pool.num_bins * features for pool in self.pools)
        # Adam moves each weight by about the learning rate, so a sum over a vector this long would leap
        # and leave hidden units dead: the vector is scaled down, and the weights are of order 1.
        self.scale = width**-0.5
        self.hidden = nnx.Linear(
            width, hidden, kernel_init=nnx.initializers.normal(1.0), dtype=dtype, rngs=rngs
        )
        self.logits = nnx.Linear(
            hidden, outputs, kernel_init=nnx.initializers.zeros_init(), dtype=dtype, rngs=rngs
        )
        self.min_size = min_size

    def __call__(self, images: Padded | jax.Array) -> jax.Array:
        """Images ``[batch, height, width, 3]`` to logits ``[batch, outputs]``.

        Integer images are sRGB of 0 to 255; floating ones are the same scaled to 0 to 1.

        Raises:
            ValueError: the array is no batch of RGB images, or smaller than :attr:`min_size`.
        """
        if not isinstance(images, Padded):
            images = Padded.whole(jnp.asarray(images))
        shape = images.values.shape
        if len(shape) != 4 or shape[-1] != 3:
            raise ValueError(f"images must be [batch, height, width, 3], got shape {shape}")
        if shape[1] < self.min_size[0] or shape[2] < self.min_size[1]:
            raise ValueError(
                f"images of {shape[1]}x{shape[2]} pixels are smaller than this model takes: at least "
                f"{self.min_size[0]}x{self.min_size[1]}"
            )
        maps = self.body(images.map(self._normalize))
        pooled = [pool(features) for features in maps for pool in self.pools]
        vector = jnp.concatenate(pooled, axis=-1).reshape(shape[0], -1)
        return self.logits(nnx.gelu(self.hidden(vector * self.scale)))

    def _normalize(self, pixels: jax.Array) -> jax.Array:
        """Pixels to about zero mean and unit variance: (x - 1/2) / (1/4)."""
        if jnp.issubdtype(pixels.dtype, jnp.integer):
            pixels = pixels.astype(self.hidden.kernel[...].dtype) / 255
        return pixels * 4 - 2
