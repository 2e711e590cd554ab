"""torchvision's networks, and others in torch, as a reference: whole pictures, one at a time, unpadded."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the comparison with torch needs the extra 'compare'")


def torchvision_models():
    """torchvision's networks. They use none of its operators, which may be of another build than torch."""
    library = torch.library.Library("torchvision", "DEF")
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except ModuleNotFoundError:
        pytest.skip("the comparison with torchvision needs the extra 'compare'")
    return pytest.importorskip("torchvision.models")


def network(name: str):
    """torchvision's own, every variable of it random."""
    torch.manual_seed(0)
    made = getattr(torchvision_models(), name)(weights=None)
    for key, value in made.state_dict().items():
        if "running_var" in key or ("bn" in key and "weight" in key):
            value.uniform_(0.5, 1.5)
        elif "running_mean" in key or "bias" in key:
            value.normal_(0, 0.1)
    return made.eval()


def zf5_body():
    """The layers before the pyramid, as Zeiler and Fergus draw them."""
    nn = torch.nn
    norm = {"size": 5, "alpha": 5e-4, "beta": 0.75, "k": 2.0}
    return nn.Sequential(
        *(nn.Conv2d(3, 96, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2), nn.LocalResponseNorm(**norm)),
        *(nn.Conv2d(96, 256, 5, 2, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.LocalResponseNorm(**norm)),
        *(nn.Conv2d(256, 384, 3, 1, 1), nn.ReLU(), nn.Conv2d(384, 384, 3, 1, 1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU()),
    )


def body(name: str):
    """What stands before the pyramid, and the names of its state dict as torchvision's are."""
    if name == "zf5":
        return zf5_body(), "features."
    made = network("vgg16" if name == "mna" else name)
    if name.startswith("resnet"):
        made.avgpool, made.fc = torch.nn.Identity(), torch.nn.Identity()
        made._forward_impl = lambda x: made.layer4(
            made.layer3(made.layer2(made.layer1(made.maxpool(made.relu(made.bn1(made.conv1(x)))))))
        )
        return made, ""
    return made.features[:-1], "features."


def pyramid(x, levels, reduce: str):
    """``[1, channels, height, width]`` to ``[bins, channels]``, by torch's adaptive pools."""
    pool = getattr(torch.nn.functional, {"max": "adaptive_max_pool2d", "mean": "adaptive_avg_pool2d"}[reduce])
    return torch.cat([pool(x, level)[0].flatten(1).T for level in levels])


def normalized(image: np.ndarray):
    """``[height, width, 3]`` of 0 to 1 to a leaf, and from it ``[1, 3, height, width]`` as torchvision's."""
    leaf = torch.tensor(image, requires_grad=True)
    mean, std = (torch.tensor(c, dtype=leaf.dtype) for c in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return leaf, ((leaf - mean) / std).permute(2, 0, 1)[None]
