"""Named arrays and attributes in one HDF5 file: a plain writer, and a reader that trusts nothing."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, chain
from numbers import Integral, Real
from pathlib import Path

import numpy as np

# HDF5 reads this once, when h5py loads it; without it a file system without locks refuses every open.
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "BEST_EFFORT")

import h5py
from h5py import h5a, h5d, h5g, h5l, h5o, h5p, h5s, h5t, h5z

from hpcrl.errors import CheckpointError
from hpcrl.storage.image import Image

Attribute = str | int | float

CHUNK_BYTES = 4 << 20
MAX_ATTRIBUTES = 256
MAX_ATTRIBUTE_BYTES = 1 << 20
MAX_DEPTH = 16
MAX_OBJECTS = 100_000

_FLETCHER32_BYTES = 4
_KNOWN_LAYOUTS = {h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED}


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Attribute]) -> None:
    """Writes arrays and attributes to a new HDF5 file, checksummed and uncompressed.

    A chunk at a time, so that another thread is never held up for more than some milliseconds.

    Args:
        path: The file to write; one that exists is overwritten in place. It is gone after an error.
        arrays: Bool, integer or float arrays of any shape; slashes in the names make groups.
        attributes: Attributes of the root group.

    Raises:
        OSError: The file can't be written.
        TypeError: A name is both an array and a group.
        ValueError: A name, dtype or attribute that `read_arrays` would refuse.
    """
    _require(len(_objects(arrays)) <= MAX_OBJECTS, f"it holds more than {MAX_OBJECTS} objects")
    _require(len(attributes) <= MAX_ATTRIBUTES, f"it has more than {MAX_ATTRIBUTES} attributes")
    image = Image(path)
    try:
        # From version 1.10 of the format on, HDF5 checksums its own structures too.
        with h5py.File(image, "w", libver=("v110", "v110")) as file:
            for name, array in arrays.items():
                write_array(file, name, np.asarray(array))
            for name, value in attributes.items():
                write_attribute(file, name, value)
        image.check()
    except BaseException:
        path.unlink(missing_ok=True)
        image.check()
        raise
    finally:
        image.close()


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Attribute]]:
    """Reads a file written by `write_arrays`, or one by an enemy.

    Follows no link out of the file, loads no plugin, unpickles nothing and allocates no more than the
    file's own size can account for.

    Returns:
        The arrays by slash-separated name, and the attributes of the root group.

    Raises:
        CheckpointError: The file is missing, damaged, or holds anything but plain arrays.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        budget = regular_size(path)
        with h5py.File(path, "r") as file:
            root = h5g.open(file.id, b"/")
            for name, dataset in walk(root):
                budget -= stored_bytes(name, dataset)
                _require(budget >= 0, f"{name} declares more data than the file can hold")
                arrays[name] = read_array(name, dataset)
            return arrays, read_attributes(root)
    except Exception as error:  # a damaged file makes h5py raise nearly every built-in exception
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} can't be read as a checkpoint: {reason}.") from error


def _objects(names: Iterable[str]) -> set[str]:
    """Returns the names of the arrays and of all groups above them, the root's included."""
    ends = (accumulate(name.split("/"), "{}/{}".format) for name in names)
    return {"", *chain.from_iterable(ends)}


def write_array(file: h5py.File, name: str, array: np.ndarray) -> None:
    """Writes one array as `write_arrays` does; raises as that."""
    _require(all(map(_is_plain_name, name.split("/"))), f"{name!r} is no name for an array")
    _require(name.count("/") <= MAX_DEPTH, f"{name} is nested deeper than {MAX_DEPTH} groups")
    _require(_is_plain(array.dtype), f"{name} has dtype {array.dtype}, expected bool, integer or float")
    if array.ndim and array.size:
        chunk = _chunk_shape(array)
        dataset = file.create_dataset(name, array.shape, array.dtype, chunks=chunk, fletcher32=True)
        for first in range(0, len(array), chunk[0]):
            dataset[first : first + chunk[0]] = array[first : first + chunk[0]]
    else:
        _write_compact(file, name, array)


def _write_compact(file: h5py.File, name: str, array: np.ndarray) -> None:
    # Only chunks can carry a Fletcher32; a compact value lies in the object header, which has its own.
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_layout(h5d.COMPACT)
    group = file.require_group(name.rpartition("/")[0] or "/")
    leaf = name.rpartition("/")[2].encode()
    space = h5s.create_simple(array.shape) if array.ndim else h5s.create(h5s.SCALAR)
    dataset = h5d.create(group.id, leaf, h5t.py_create(array.dtype, logical=True), space, plist)
    if array.size:
        dataset.write(h5s.ALL, h5s.ALL, np.ascontiguousarray(array).reshape(array.shape))


def _chunk_shape(array: np.ndarray) -> tuple[int, ...]:
    """Returns a chunk of whole trailing axes within `CHUNK_BYTES`; chunks are as few and as even as they can be."""
    chunk = list(array.shape)
    for axis, size in enumerate(array.shape):
        row_bytes = math.prod(chunk[axis + 1 :]) * array.itemsize
        num_chunks = -(-size // max(1, CHUNK_BYTES // row_bytes))
        chunk[axis] = -(-size // num_chunks)
    return tuple(chunk)


def write_attribute(file: h5py.File, name: str, value: Attribute) -> None:
    """Writes one attribute of the root as `write_arrays` does; raises as that."""
    if isinstance(value, str):
        data = value.encode()
        _require(b"\0" not in data, f"attribute {name!r} holds a NUL character")
        _require(len(data) <= MAX_ATTRIBUTE_BYTES, f"attribute {name!r} is over {MAX_ATTRIBUTE_BYTES} bytes")
        # Of a fixed length: h5py's own strings lie in a heap, which the reader refuses.
        fixed = h5py.string_dtype("utf-8", max(1, len(data)))
        file.attrs.create(name, np.array(data, dtype=fixed), dtype=fixed)
    elif isinstance(value, Integral):
        _require(-(1 << 63) <= value < 1 << 63, f"attribute {name!r} does not fit 64 bits")
        file.attrs.create(name, np.int64(value))
    else:
        _require(isinstance(value, Real), f"attribute {name!r} is a {type(value).__name__}")
        file.attrs.create(name, np.float64(value))


def regular_size(path: Path) -> int:
    """Returns the size of a file in bytes; ValueError where there is none."""
    _require(path.is_file(), "there is no such file")
    return path.stat().st_size


def walk(root: h5g.GroupID) -> Iterator[tuple[str, h5d.DatasetID]]:
    """Yields every dataset of a file by its name; ValueError for what is not reached by one hard link alone."""
    return _walk(root, "", 0, {_address(root)})


def _walk(group: h5g.GroupID, prefix: str, depth: int, seen: set[int]) -> Iterator[tuple[str, h5d.DatasetID]]:
    """Yields every dataset below a group."""
    _require(depth <= MAX_DEPTH, f"{prefix} is nested deeper than {MAX_DEPTH} groups")
    for link in _link_names(group):
        name = prefix + link.decode()
        _require(_is_plain_name(link.decode()), f"{name!r} is no name for an array")
        _require(group.links.get_info(link).type == h5l.TYPE_HARD, f"{name} is no hard link")
        node = h5o.open(group, link)
        _require(_address(node) not in seen, f"{name} is linked twice")
        seen.add(_address(node))
        _require(len(seen) <= MAX_OBJECTS, f"it holds more than {MAX_OBJECTS} objects")
        if isinstance(node, h5g.GroupID):
            yield from _walk(node, f"{name}/", depth + 1, seen)
        else:
            _require(isinstance(node, h5d.DatasetID), f"{name} is neither a group nor a dataset")
            yield name, node


def _link_names(group: h5g.GroupID) -> list[bytes]:
    names: list[bytes] = []

    def collect(name: bytes) -> bool | None:
        names.append(name)
        return True if len(names) > MAX_OBJECTS else None

    group.links.iterate(collect)
    return names


def _address(node: h5g.GroupID | h5d.DatasetID) -> int:
    return int(h5o.get_info(node).addr)


def stored_bytes(name: str, dataset: h5d.DatasetID) -> int:
    """Returns what a dataset must take in the file, in bytes; refuses all but plain storage inside it."""
    plist = dataset.get_create_plist()
    # Before the shape is asked for: that alone opens the sources of a virtual dataset.
    _require(plist.get_layout() in _KNOWN_LAYOUTS, f"{name} is a virtual dataset")
    _require(plist.get_external_count() == 0, f"{name} is stored outside the file")
    # Compression is refused too: HDF5 trusts a chunk to unpack to the size that it should have.
    _require(set(_filters(plist)) <= {h5z.FILTER_FLETCHER32}, f"{name} uses a filter other than Fletcher32")
    plain_dtype(name, dataset)
    if plist.get_layout() != h5d.CHUNKED:
        return math.prod(dataset.shape) * dataset.dtype.itemsize
    count, chunk_bytes = _chunking(dataset)
    return count * chunk_bytes


def plain_dtype(name: str, dataset: h5d.DatasetID) -> np.dtype:
    """Returns the dtype of a dataset; ValueError for any but bool, integer or float."""
    _require(dataset.get_space().get_simple_extent_type() != h5s.NULL, f"{name} has no shape")
    _require(_is_plain(dataset.dtype), f"{name} has dtype {dataset.dtype}, expected bool, integer or float")
    return dataset.dtype


def read_array(name: str, dataset: h5d.DatasetID) -> np.ndarray:
    """Returns all of a dataset whose `stored_bytes` the file can hold; ValueError where it is damaged."""
    if dataset.get_create_plist().get_layout() == h5d.CHUNKED:
        _check_chunks(name, dataset)
    array = np.empty(dataset.shape, dataset.dtype)
    if array.size:
        dataset.read(h5s.ALL, h5s.ALL, array)
    if array.dtype == np.bool_ and array.size:
        _require(array.view(np.uint8).max() <= 1, f"{name} holds a bool that is neither true nor false")
    return array


def _check_chunks(name: str, dataset: h5d.DatasetID) -> None:
    """Refuses chunks that are missing or of a wrong size, at which HDF5 reads beyond its memory."""
    expected, chunk_bytes = _chunking(dataset)
    sizes: list[int] = []

    def collect(chunk: h5d.StoreInfo) -> bool | None:
        sizes.append(chunk.size if chunk.filter_mask == 0 else -1)
        return True if len(sizes) > expected else None

    dataset.chunk_iter(collect)
    _require(len(sizes) == expected, f"{name} is not stored whole")
    _require(set(sizes) <= {chunk_bytes}, f"{name} has a chunk of a wrong size")


def _chunking(dataset: h5d.DatasetID) -> tuple[int, int]:
    """Returns how many chunks a dataset has, and the bytes that each takes in the file with its checksum."""
    plist = dataset.get_create_plist()
    chunk = plist.get_chunk()
    # Chunks are stored whole, also where they stand out over the edge of the array.
    count = math.prod(-(-size // step) for size, step in zip(dataset.shape, chunk, strict=True))
    return count, math.prod(chunk) * dataset.dtype.itemsize + _FLETCHER32_BYTES * len(_filters(plist))


def _filters(plist: h5p.PropDCID) -> list[int]:
    return [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]


def read_attributes(root: h5g.GroupID) -> dict[str, Attribute]:
    """Returns the attributes of a group; ValueError for any that is no plain text or number."""
    count = h5a.get_num_attrs(root)
    _require(count <= MAX_ATTRIBUTES, f"it has more than {MAX_ATTRIBUTES} attributes")
    attributes = (h5a.open(root, index=index) for index in range(count))
    return {attribute.name.decode(): _attribute_value(attribute) for attribute in attributes}


def _attribute_value(attribute: h5a.AttrID) -> Attribute:
    name, dtype = attribute.name.decode(), attribute.dtype
    _require(attribute.get_space().get_simple_extent_type() == h5s.SCALAR, f"attribute {name!r} is no scalar")
    _require(dtype.itemsize <= MAX_ATTRIBUTE_BYTES, f"attribute {name!r} is over {MAX_ATTRIBUTE_BYTES} bytes")
    _require(dtype.kind == "S" or _is_plain(dtype), f"attribute {name!r} is neither a text nor a number")
    value = np.empty((), dtype)
    attribute.read(value)
    plain = value.item()
    return plain.decode() if isinstance(plain, bytes) else plain


def _is_plain(dtype: np.dtype) -> bool:
    return dtype.kind in "biuf" and dtype.itemsize <= 8 and h5py.check_enum_dtype(dtype) is None


def _is_plain_name(link: str) -> bool:
    return link not in ("", ".", "..") and "/" not in link and link.isprintable()


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)
