"""Files of torch, read without torch and without running what is in them.

A state dict is a pickle of names and of references to storages, and beside it the storages' bytes; in a zip
file (torch 1.6 and later) or one after another (before). Here the pickle may call four functions, all of
this module, which make dictionaries and arrays; whatever else it names is refused, and none of torch's code
nor anyone's is imported.
"""

import io
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

__all__ = ["state_dict"]

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


def state_dict(content: bytes) -> dict[str, np.ndarray]:
    """The tensors of a file that ``torch.save`` wrote of a state dict, by name.

    Args:
        content: of the file, in either format.

    Returns:
        Arrays: float64 and float32 as they are, others as float32.

    Raises:
        ValueError: it is no such file, it is damaged, or it asks for more than tensors.

    Example::

        tensors = state_dict(Path("resnet18.pth").read_bytes())
    """
    read = _of_zip if content.startswith(b"PK\x03\x04") else _of_pickles
    try:
        found = read(content)
    except ValueError:
        raise
    except Exception as error:  # whatever a damaged pickle makes of the unpickler
        raise ValueError(f"it is damaged, or no file of torch ({type(error).__name__}: {error})") from None
    if not isinstance(found, Mapping):
        raise ValueError(f"it holds a {type(found).__name__}, not a dictionary of tensors")
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise ValueError(f"{name!r} in it is no tensor, but a {type(tensor).__name__}")
    return {name: tensor.array() for name, tensor in found.items()}


class _Storage:
    """A run of numbers; its bytes may come later than what refers to it."""

    __slots__ = ("content", "count", "dtype")

    def __init__(self, dtype: np.dtype, count: int):
        self.dtype, self.count, self.content = dtype, count, b""

    def fill(self, content: bytes) -> None:
        if len(content) != self.count * self.dtype.itemsize:
            raise ValueError("it is damaged: a storage has not as many bytes as its tensors say")
        self.content = content


class _Tensor(NamedTuple):
    """A view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """A copy of it."""
        storage, size = self.storage, math.prod(self.shape)
        reach = self.offset + sum(s * (n - 1) for s, n in zip(self.strides, self.shape, strict=True))
        if size and not size <= storage.count > reach:
            raise ValueError("it is damaged: a tensor reaches beyond its storage")
        numbers = np.frombuffer(storage.content, storage.dtype)[self.offset :]
        steps = tuple(stride * storage.dtype.itemsize for stride in self.strides)
        view = np.lib.stride_tricks.as_strided(numbers, self.shape, steps)
        return view.astype(storage.dtype if storage.dtype in (np.float32, np.float64) else np.float32)


class _Dictionary(dict):
    """Stands for OrderedDict; torch sets an attribute of it."""


class _Call:
    """What a pickle may call. Without attributes, so that it cannot change one."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable):
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> None:
        raise ValueError(f"it would set {name}, and is refused")

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    sound = (
        isinstance(storage, _Storage)
        and isinstance(shape, tuple)
        and isinstance(strides, tuple)
        and len(shape) == len(strides) <= 16
        and all(type(n) is int and 0 <= n < 2**40 for n in (offset, *shape, *strides))
    )
    if not sound:
        raise ValueError("it is damaged: a tensor's place in its storage makes no sense")
    return _Tensor(storage, offset, shape, strides)


_CALLS = {
    ("collections", "OrderedDict"): _Dictionary,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
}


class _Unpickler(pickle._Unpickler):  # pyright: ignore[reportAttributeAccessIssue]
    """Python's own in Python: that in C takes memory for what a few bytes say of a memo's length."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _CALLS:
            return _Call(_CALLS[module, name])
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return name
        raise ValueError(f"it names {module}.{name}, which is no part of a state dict, and is refused")

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or pid[1] not in _STORAGES:
            raise ValueError("it is damaged: a reference to no storage")
        _, kind, key, _, count = pid[:5]
        if not isinstance(key, str) or type(count) is not int or count < 0 or any(pid[5:]):
            raise ValueError("it is damaged: a storage without key or size, or a view of another")
        return self.storages.setdefault(key, _Storage(_STORAGES[kind], count))


def _of_pickles(content: bytes) -> Any:
    """Five pickles, then each storage's count and bytes."""
    file = io.BytesIO(content)
    header = [_Unpickler(file).load() for _ in range(3)] if content.startswith(b"\x80") else []
    if header[:2] != [_MAGIC, _PROTOCOL]:
        raise ValueError("it is no file of torch")
    if not isinstance(header[2], Mapping) or header[2].get("little_endian") is not True:
        raise ValueError("its numbers are big-endian, which is not read")
    unpickler = _Unpickler(file)
    found = unpickler.load()
    keys = _Unpickler(file).load()
    if not isinstance(keys, Sequence) or {*keys} != {*unpickler.storages}:
        raise ValueError("it is damaged: its storages are not those that its tensors name")
    for key in keys:
        storage = unpickler.storages[key]
        if int.from_bytes(file.read(8), "little") != storage.count:
            raise ValueError("it is damaged: a storage has another size than its tensors say")
        storage.fill(file.read(storage.count * storage.dtype.itemsize))
    return found


def _of_zip(content: bytes) -> Any:
    """The pickle and each storage are files of their own."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it is a zip file, but not of torch")
        folder = pickles[0].removesuffix("data.pkl")

        def entry(name: str) -> bytes:
            about = archive.getinfo(folder + name)
            if about.compress_type != zipfile.ZIP_STORED:
                raise ValueError("it is compressed, as torch's are not, and is refused")
            return archive.read(about)

        if f"{folder}byteorder" in archive.namelist() and entry("byteorder") != b"little":
            raise ValueError("its numbers are big-endian, which is not read")
        unpickler = _Unpickler(io.BytesIO(entry("data.pkl")))
        found = unpickler.load()
        for key, storage in unpickler.storages.items():
            storage.fill(entry(f"data/{key}"))
    return found
