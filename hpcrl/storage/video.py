"""Films as GIF or MP4, written frame by frame."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from hpcrl.errors import ConfigError
from hpcrl.storage.durable import make_durable

SUFFIXES = (".mp4", ".gif")
#: Viewers slow a GIF down whose frames stand for less than two hundredths of a second.
_SHORTEST = 2


def require_video(path: Path) -> None:
    """Whether a film can be written here, before there is any frame of it.

    Raises:
        ConfigError: another ending than those of `SUFFIXES`, a package that is missing, or a folder that refuses.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--video expected a file that ends in {' or '.join(SUFFIXES)}, got {path}")
    try:
        import imageio.v3  # noqa: F401

        if path.suffix.lower() == ".mp4":
            importlib.import_module("imageio_ffmpeg").get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        package = (getattr(error, "name", None) or "ffmpeg").partition(".")[0].replace("_", "-")
        raise ConfigError(f"--video {path} needs {package}: pip install 'hpcrl[video]'") from error
    try:
        _temporary(path).touch()
        _temporary(path).unlink()
    except OSError as error:
        raise _refused(path, error) from error


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.stem}.tmp-{os.getpid()}{path.suffix.lower()}")


def _refused(path: Path, error: OSError) -> ConfigError:
    # Which file is the user's, not the temporary one that stands for it.
    reason = error.strerror or " ".join(str(error).split()).replace(_temporary(path).name, path.name)
    return ConfigError(f"--video: {path} can't be written: {reason}")


class Video:
    """A film that gets its name when it is whole; no frame is kept in memory.

    Use it as a context: where that ends by an exception nothing of the film stays.

    Args:
        path: one that `require_video` allows.
        fps: frames a second. Of a GIF more than 50 can't be seen, and some are left out.

    Attributes:
        frames: that were added.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.frames = 0
        self._path, self._temporary = path, _temporary(path)
        self._shape: tuple[int, ...] | None = None
        self._writer: _Writer = (_Gif if path.suffix.lower() == ".gif" else _Mp4)(self._temporary, fps)

    def add(self, frame: NDArray[np.uint8]) -> None:
        """The next frame: uint8 [height, width, 3], all of the same size.

        Raises:
            ConfigError: another size, or the disk is full.
        """
        self._shape = self._shape or frame.shape
        if frame.shape != self._shape:
            sizes = f"{list(self._shape)}, then {list(frame.shape)}"
            raise ConfigError(f"--video expected frames of one size, got {sizes}")
        try:
            self._writer.add(frame)
        except OSError as error:
            raise _refused(self._path, error) from error
        self.frames += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _where: TracebackType | None
    ) -> None:
        try:
            self._writer.close()
            if error is None:
                make_durable(self._temporary, self._path)
        except OSError as refused:
            if error is None:
                raise _refused(self._path, refused) from refused
        finally:
            self._temporary.unlink(missing_ok=True)


class _Writer(Protocol):
    def add(self, frame: NDArray[np.uint8]) -> None: ...

    def close(self) -> None: ...


class _Mp4:
    """H.264 through ffmpeg, which gets every frame at once. Odd sizes get a row or a column more, as H.264 wants."""

    def __init__(self, path: Path, fps: float) -> None:
        import imageio.v2

        options: dict[str, Any] = {"codec": "libx264", "macro_block_size": 1, "ffmpeg_log_level": "error"}
        self._writer = imageio.v2.get_writer(path, format="FFMPEG", mode="I", fps=fps, **options)

    def add(self, frame: NDArray[np.uint8]) -> None:
        height, width, _ = frame.shape
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        self._writer.append_data(frame)

    def close(self) -> None:
        self._writer.close()


class _Gif:
    """A GIF89a that repeats for ever, put together from GIFs of single frames, each with colours of its own.

    Pillow writes whole animations only, of frames that it keeps until then.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._file: BinaryIO = path.open("wb")
        self._fps = fps
        self._number = self._next = 0

    def add(self, frame: NDArray[np.uint8]) -> None:
        number, self._number = self._number, self._number + 1
        if number < self._next:
            return
        if not number:
            height, width, _ = frame.shape
            self._file.write(b"GIF89a" + _word(width) + _word(height) + b"\x00\x00\x00")
            self._file.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")
        while self._time(self._next) - self._time(number) < _SHORTEST:
            self._next += 1
        self._file.write(b"\x21\xf9\x04\x04" + _word(self._time(self._next) - self._time(number)) + b"\x00\x00")
        self._file.write(_image_block(frame))

    def _time(self, number: int) -> int:
        """When a frame is shown, in hundredths of a second."""
        return round(100 * number / self._fps)

    def close(self) -> None:
        if self._number:
            self._file.write(b"\x3b")
        self._file.close()


def _word(number: int) -> bytes:
    return number.to_bytes(2, "little")


def _image_block(frame: NDArray[np.uint8]) -> bytes:
    """One frame as an image of a GIF with its own table of colours: descriptor, table, compressed numbers."""
    import imageio.v3

    whole = imageio.v3.imwrite("<bytes>", frame, extension=".gif")
    # After the signature (6 bytes) and the screen's descriptor (7), whose fifth byte tells the size of the table.
    table_end = 13 + 3 * (2 << (whole[10] & 0x07))
    place = table_end
    while whole[place] == 0x21:
        place = _after_sub_blocks(whole, place + 2)
    position, numbers = whole[place : place + 9], whole[place + 10 : _after_sub_blocks(whole, place + 11)]
    # Its own table, of that size; whether rows are interlaced stays.
    flags = 0x80 | (whole[place + 9] & 0x40) | (whole[10] & 0x07)
    return position + bytes([flags]) + whole[13:table_end] + numbers


def _after_sub_blocks(whole: bytes, place: int) -> int:
    """The place after blocks that begin with their length, the last of which is empty."""
    while whole[place]:
        place += 1 + whole[place]
    return place + 1
