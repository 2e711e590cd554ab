"""Files of torch are read as torch reads them, and whatever is in them, no more than arrays are made."""

import collections
import io
import pickle
import struct
import zipfile
from typing import Any

import numpy as np
import pytest

from spp_jax.models.torch_file import state_dict

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class Named:
    """Pickles as a call of what has this name, without that being there."""

    def __init__(self, module, name, *arguments):
        self.module, self.name, self.arguments = module, name, arguments


class Storage:
    def __init__(self, kind, key, count, place=None):
        self.pid = ("storage", kind, key, "cpu", count, place)


class Class(str):
    """A global of this dotted name."""


PythonPickler: Any = pickle._Pickler  # pyright: ignore[reportAttributeAccessIssue]


class Writer(PythonPickler):
    """Of what torch would write, and of what it would not, without torch."""

    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Storage) else None

    def save(self: Any, obj, save_persistent_id=True):
        if isinstance(obj, Class):
            module, _, name = obj.rpartition(".")
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        elif isinstance(obj, Named):
            self.save(Class(f"{obj.module}.{obj.name}"))
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        else:
            pickle._Pickler.save(self, obj, save_persistent_id)  # pyright: ignore[reportAttributeAccessIssue]


def dumped(obj) -> bytes:
    file = io.BytesIO()
    Writer(file, 2).dump(obj)
    return file.getvalue()


FLOATS = Class("torch.FloatStorage")
NUMBERS = struct.pack("<6f", *range(6))


def tensor(shape=(2, 3), strides=(3, 1), offset=0, kind=FLOATS, key="0", count=6, place=None):
    hooks = collections.OrderedDict()
    storage = Storage(kind, key, count, place)
    return Named("torch._utils", "_rebuild_tensor_v2", storage, offset, shape, strides, False, hooks)


def legacy(state, storages=None, about=None) -> bytes:
    about = {"protocol_version": PROTOCOL, "little_endian": True} if about is None else about
    storages = {"0": (6, NUMBERS)} if storages is None else storages
    parts = [dumped(part) for part in (MAGIC, PROTOCOL, about, state, sorted(storages))]
    return b"".join([*parts, *(struct.pack("<q", n) + raw for _, (n, raw) in sorted(storages.items()))])


def zipped(state, storages=None, compression=zipfile.ZIP_STORED, order=b"little") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", dumped(state))
        archive.writestr("archive/byteorder", order)
        for key, raw in ({"0": NUMBERS} if storages is None else storages).items():
            archive.writestr(f"archive/data/{key}", raw)
    return file.getvalue()


@pytest.mark.parametrize("write", [legacy, zipped])
def test_names_shapes_and_views_are_read(write):
    found = state_dict(
        write(
            {
                "a": tensor(),
                "turned": tensor((3, 2), (1, 3)),
                "one": tensor((), (), 5),
                "none": tensor((0,), (1,)),
            }
        )
    )
    whole = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(found["a"], whole)
    np.testing.assert_array_equal(found["turned"], whole.T)
    assert found["one"] == 5
    assert found["one"].shape == ()
    assert found["none"].shape == (0,)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_writes_is_read_bit_by_bit(zipped):
    torch = pytest.importorskip("torch", reason="the comparison with torch needs the extra 'compare'")
    state = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).state_dict()
    state["half"] = torch.arange(6).reshape(2, 3).T.half()
    state["bfloat16"] = torch.tensor([1.5, -3], dtype=torch.bfloat16)
    state["double"] = torch.tensor([0.1], dtype=torch.float64)
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    found = state_dict(file.getvalue())
    assert list(found) == list(state)
    for name, value in state.items():
        expected = value if value.dtype == torch.float64 else value.float()
        assert found[name].dtype == expected.numpy().dtype
        np.testing.assert_array_equal(found[name], expected.numpy())


HOSTILE = {
    "a function": Named("os", "system", "true"),
    "builtins": Named("builtins", "eval", "1"),
    "of numpy": Named("numpy.core.multiarray", "_reconstruct"),
    "of torch": Named("torch", "load", "x"),
    "of ours": Named("spp_jax.models.torch_file", "state_dict", b""),
    "a storage that is called": Named("torch", "FloatStorage", 3),
    "dotted": Named("collections", "OrderedDict.fromkeys", "ab"),
}


@pytest.mark.parametrize("write", [legacy, zipped])
@pytest.mark.parametrize("harm", HOSTILE.values(), ids=HOSTILE)
def test_whatever_else_it_names_is_refused(harm, write):
    for state in ({"a": tensor(), "b": harm}, {"a": [harm]}, harm):
        with pytest.raises(ValueError, match=r"is refused|is damaged"):
            state_dict(write(state))


def test_what_it_may_call_cannot_be_changed():
    target = Class("torch._utils._rebuild_tensor_v2")
    for state in ({"__defaults__": ()}, (None, {"_function": print})):
        change = dumped(target)[:-1] + dumped(state)[2:-1] + pickle.BUILD + pickle.STOP
        content = legacy({}, {})
        head = b"".join(dumped(part) for part in (MAGIC, PROTOCOL, {"little_endian": True}))
        assert content.startswith(head[:10])
        with pytest.raises(ValueError, match=r"is refused|is damaged"):
            state_dict(head + change + dumped([]))
    assert state_dict(legacy({"a": tensor()}))["a"].shape == (2, 3)


DAMAGED = {
    "beyond its storage": {"a": tensor((2, 4), (3, 1))},
    "behind an offset": {"a": tensor((2, 3), (3, 1), 1)},
    "a cell a million times": {"a": tensor((1000, 1000), (0, 0))},
    "of negative steps": {"a": tensor((2, 3), (-3, 1))},
    "of negative size": {"a": tensor((-2, 3), (3, 1))},
    "of sizes that are no numbers": {"a": tensor(("2", 3), (3, 1))},
    "of too few steps": {"a": tensor((2, 3), (1,))},
    "of a storage that is not there": {"a": tensor(), "b": tensor(key="1")},
    "of another size": {"a": tensor(count=7)},
    "of no size": {"a": tensor(count=-1)},
    "of no storage": {"a": Named("torch._utils", "_rebuild_tensor_v2", 1, 0, (), (), False, None)},
    "a view": {"a": tensor(place=("0", 1, 2))},
    "no tensor": {"a": 3},
    "no name": {3: tensor()},
    "a list": [tensor()],
    "a module with a state dict in it": {"state_dict": {"a": tensor()}, "epoch": 3},
}


@pytest.mark.parametrize("write", [legacy, zipped])
@pytest.mark.parametrize("state", DAMAGED.values(), ids=DAMAGED)
def test_what_makes_no_sense_is_refused(state, write):
    with pytest.raises(ValueError, match=r"damaged|no tensor|not a dictionary"):
        state_dict(write(state))


def test_cut_short_anywhere_it_is_refused():
    for content in (legacy({"a": tensor()}), zipped({"a": tensor()})):
        for length in range(0, len(content), 7):
            with pytest.raises(ValueError, match="it"):
                state_dict(content[:length])


def test_a_memo_place_of_billions_takes_no_memory():
    memo = b"\x80\x02}" + pickle.LONG_BINPUT + struct.pack("<I", 2**32 - 1) + pickle.STOP
    head = b"".join(dumped(part) for part in (MAGIC, PROTOCOL, {"little_endian": True}))
    assert state_dict(head + memo + dumped([])) == {}


def test_big_endian_compressed_and_foreign_files_are_refused():
    with pytest.raises(ValueError, match="big-endian"):
        state_dict(legacy({"a": tensor()}, about={"little_endian": False}))
    with pytest.raises(ValueError, match="big-endian"):
        state_dict(zipped({"a": tensor()}, order=b"big"))
    with pytest.raises(ValueError, match="compressed"):
        state_dict(zipped({"a": tensor()}, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(ValueError, match="no file of torch"):
        state_dict(dumped({"a": 1}) * 3)
    with pytest.raises(ValueError, match="no file of torch"):
        state_dict(b"text")
