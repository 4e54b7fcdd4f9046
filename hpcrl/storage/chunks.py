"""Chunks of a dataset as they lie in an HDF5 file: shuffled, compressed and checksummed; and back, without trust.

They are made and taken apart here instead of by HDF5: zlib and zstd let other threads run meanwhile, a chunk never
unpacks to more than it should, and no plugin is loaded for it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
from h5py import h5p, h5z
from numpy.typing import NDArray

from hpcrl.errors import ConfigError

zstandard: Any = import_module("zstandard") if find_spec("zstandard") else None

Compression = Literal["gzip", "zstd", "none"]

#: The number that HDF5's registry of filters has given to zstd.
FILTER_ZSTD = 32015
_COMPRESSING = (h5z.FILTER_DEFLATE, FILTER_ZSTD)
_LEVEL = 1
#: A chunk is not compressed whose first bytes become less than a fifth smaller: that takes more time than all else.
_SAMPLE_BYTES, _WORTH = 1 << 14, 0.8
_CHECKSUM_BYTES = 4
#: Chunks unpack to no more than this; ours are far below.
MAX_CHUNK_BYTES = 32 << 20
_WORD = 65535


@dataclass(frozen=True)
class Pipeline:
    """What becomes of a chunk on its way into a file: shuffle (where an element has several bytes), compression, and a
    Fletcher32 of the outcome.

    Attributes:
        itemsize: bytes of an element.
        compression: "gzip" (which every HDF5 reads), "zstd" (faster and smaller, needs its plugin elsewhere) or "none".

    Raises:
        ConfigError: zstd, where the package zstandard is missing.
    """

    itemsize: int
    compression: Compression

    def __post_init__(self) -> None:
        if self.compression == "zstd" and zstandard is None:
            raise ConfigError("zstd needs the package zstandard: pip install 'hpcrl[zstd]'")

    @property
    def filters(self) -> tuple[int, ...]:
        """HDF5's numbers of the filters, in order."""
        shuffle = (h5z.FILTER_SHUFFLE,) if self.itemsize > 1 and self.compression != "none" else ()
        packing = {"gzip": (h5z.FILTER_DEFLATE,), "zstd": (FILTER_ZSTD,), "none": ()}[self.compression]
        return (*shuffle, *packing, h5z.FILTER_FLETCHER32)

    def declare(self, plist: Any) -> None:
        """Name the filters in the creation properties of a dataset."""
        for number in self.filters:
            if number == h5z.FILTER_SHUFFLE:
                plist.set_shuffle()
            elif number == h5z.FILTER_DEFLATE:
                plist.set_deflate(_LEVEL)
            elif number == FILTER_ZSTD:
                # Else HDF5 looks for the plugin now.
                plist.set_filter(number, h5z.FLAG_OPTIONAL, (_LEVEL,))
            else:
                plist.set_fletcher32()

    @property
    def skipping(self) -> int:
        """The mask by which HDF5 knows a chunk that is not compressed, where others of its dataset are."""
        return sum(1 << place for place, number in enumerate(self.filters) if number in _COMPRESSING)

    def encode(self, chunk: NDArray) -> tuple[bytes, int]:
        """A whole chunk, C-contiguous, as it is stored, and the mask of what was skipped for it."""
        flat = chunk.reshape(-1).view(np.uint8)
        if self.compression == "none":
            return _with_checksum(flat.tobytes()), 0
        sample = flat[:_SAMPLE_BYTES]
        if len(self._pack(self._shuffled(sample))) > _WORTH * len(sample):
            return _with_checksum(self._shuffled(flat).tobytes()), self.skipping
        return _with_checksum(self._pack(self._shuffled(flat))), 0

    def _shuffled(self, flat: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The first byte of all elements, then the second, and so on."""
        return np.ascontiguousarray(flat.reshape(-1, self.itemsize).T) if self.itemsize > 1 else flat

    def _pack(self, flat: NDArray[np.uint8]) -> bytes:
        if self.compression == "gzip":
            return zlib.compress(flat.data, _LEVEL)
        return zstandard.ZstdCompressor(level=_LEVEL).compress(flat.data)

    def decode(self, stored: bytes, nbytes: int, is_compressed: bool = True) -> NDArray[np.uint8]:
        """The bytes uint8 [nbytes] of a chunk.

        Raises:
            ValueError: they are not what was stored, or would be more or fewer than `nbytes`.
        """
        packed, checksum = stored[:-_CHECKSUM_BYTES], stored[-_CHECKSUM_BYTES:]
        if fletcher32(packed).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
            raise ValueError("a chunk's checksum is wrong")
        raw = self._unpack(packed, nbytes) if is_compressed else packed
        if len(raw) != nbytes:
            raise ValueError(f"a chunk has {len(raw)} bytes, expected {nbytes}")
        flat = np.frombuffer(raw, np.uint8)
        if h5z.FILTER_SHUFFLE in self.filters:
            flat = np.ascontiguousarray(flat.reshape(self.itemsize, -1).T).reshape(-1)
        return flat

    def _unpack(self, packed: bytes, nbytes: int) -> bytes:
        if self.compression == "none":
            return packed
        if self.compression == "zstd":
            try:
                # What the frame declares would be allocated.
                if zstandard.frame_content_size(packed) != nbytes:
                    raise ValueError(f"a chunk declares another size than {nbytes} bytes")
                return zstandard.ZstdDecompressor().decompress(packed)
            except zstandard.ZstdError as error:
                raise ValueError(f"a chunk can't be unpacked: {error}") from error
        unpacker = zlib.decompressobj()
        try:
            raw = unpacker.decompress(packed, nbytes + 1)
        except zlib.error as error:
            raise ValueError(f"a chunk can't be unpacked: {error}") from error
        if not unpacker.eof or unpacker.unused_data:
            raise ValueError("a chunk does not end where it should")
        return raw


def pipeline_of(plist: h5p.PropDCID, itemsize: int) -> Pipeline:
    """The pipeline that a dataset's creation properties name; ValueError for any but ours."""
    found = tuple(plist.get_filter(index)[0] for index in range(plist.get_nfilters()))
    for compression in get_args(Compression):
        if compression == "zstd" and zstandard is None:
            if FILTER_ZSTD in found:
                raise ValueError("it is compressed by zstd, which needs the package zstandard")
            continue
        pipeline = Pipeline(itemsize, compression)
        if pipeline.filters == found:
            return pipeline
    raise ValueError(f"it has the filters {list(found)}, which are not those of a trajectory")


def _with_checksum(packed: bytes) -> bytes:
    return packed + fletcher32(packed).to_bytes(_CHECKSUM_BYTES, "little")


def fletcher32(data: bytes) -> int:
    """HDF5's checksum: two sums of 16-bit words, high byte first, in one's complement arithmetic."""
    words = np.frombuffer(data + bytes(len(data) % 2), ">u2").astype(np.int64)
    low = int(words.sum())
    high = int((words * np.arange(len(words), 0, -1)).sum())
    return _fold(high) << 16 | _fold(low)


def _fold(total: int) -> int:
    """A sum in 16 bits of one's complement, where only nothing at all is 0."""
    return (total - 1) % _WORD + 1 if total else 0
