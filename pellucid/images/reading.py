"""Opening pictures: whatever holds one becomes an array `(H, W, C)` of values 0..255.

Pillow decodes everything except the lower byte of 16-bit colour, which it drops. The same file
unpacked in the other byte order gives just that byte, so 16 bits survive here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pellucid.errors import ImageError

__all__ = ["as_array", "display_picture", "on_white", "read_image"]

_OTHER_BYTE = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA")
    for order, other in (
        ("B", "L"),
        ("L", "B"),
        ("N", "B" if np.little_endian else "L"),
    )
}


def read_image(source: Any, *, keep_alpha: bool = False) -> NDArray[Any]:
    """Read one picture.

    Parameters
    ----------
    source : a path, an open binary file, a PIL image, or an array or tensor `(H, W)` or
        `(H, W, C)`. The element type of an array says what its values mean: `bool` is black and
        white, `uint16` is 0..65535, every other number must lie in 0..255. Arrays with a number
        of channels other than 1, 3 and 4 are multispectral and come back as they are.
    keep_alpha : keep a fourth channel; otherwise it is composited on white.

    Returns
    -------
    picture : `(H, W, 1)` or `(H, W, 3)`, values 0..255: float32 where the source has 16 bits or
        floats, else uint8. Files turn the way their EXIF orientation says; of an animation it
        is the first frame.

    Raises
    ------
    ImageError : there is no such file, it is damaged or no image, or the array is no picture.

    Examples
    --------
    >>> read_image(np.full((4, 6), 7, np.uint8)).shape
    (4, 6, 1)
    """
    source = as_array(source)
    if isinstance(source, np.ndarray):
        return _from_array(source, keep_alpha)
    if isinstance(source, Image.Image):
        try:
            return _from_pil(source, "The picture", keep_alpha)
        except ImageError:
            raise
        except Exception as error:  # a picture that PIL has not decoded yet may be damaged
            raise ImageError(f"The picture cannot be decoded: {_said(error)}.") from error
    if isinstance(source, str | os.PathLike) or hasattr(source, "read"):
        return _from_file(source, keep_alpha)
    raise ImageError(
        f"A picture is a path, a PIL image or an array H x W x C; this is {_kind(source)}."
    )


def as_array(value: Any) -> Any:
    """Turn a tensor of any framework into an array; anything else comes back as it is.

    No framework is imported: torch tensors are known by `.detach()`, others by `__array__`.
    """
    if isinstance(value, Image.Image):
        return value
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        value = value.detach().cpu()
        try:
            value = value.numpy()
        except TypeError:  # NumPy has no bfloat16
            value = value.float().numpy()
    elif not isinstance(value, np.ndarray) and hasattr(value, "__array__"):
        value = np.asarray(value)
    if isinstance(value, np.ndarray) and value.dtype.name == "bfloat16":
        value = value.astype(np.float32)
    return value


def display_picture(picture: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Turn what `read_image` gives into `(H, W, 3)` uint8; None for multispectral pictures."""
    channels = picture.shape[-1]
    if channels not in (1, 3, 4):
        return None
    picture = on_white(picture) if channels == 4 else picture
    if picture.dtype != np.uint8:
        picture = np.rint(picture).clip(0, 255).astype(np.uint8)
    return np.array(np.broadcast_to(picture, (*picture.shape[:2], 3)), order="C")


def on_white(picture: NDArray[Any]) -> NDArray[Any]:
    """Composite `(H, W, C + alpha)` of values 0..255 on white."""
    colour, alpha = picture[..., :-1], picture[..., -1:].astype(np.float32) / 255
    mixed = colour * alpha + 255 * (1 - alpha)
    return np.rint(mixed).astype(np.uint8) if picture.dtype == np.uint8 else mixed


# ---- files -----------------------------------------------------------------------------------


def _from_file(source: Any, keep_alpha: bool) -> NDArray[Any]:
    is_path = isinstance(source, str | os.PathLike)
    name = str(source) if is_path else str(getattr(source, "name", "The file"))
    if is_path and Path(source).is_dir():
        raise ImageError(f"{name} is a folder, not an image: name a file in it.")
    try:
        with Image.open(source) as image:
            if image.format == "EPS":  # Pillow would run Ghostscript on it
                raise ImageError(f"{name} is PostScript, not pixels: convert it to PNG first.")
            return _from_pil(image, name, keep_alpha, source if is_path else None)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"There is no file {name}.") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is no image: expected PNG, JPEG, TIFF, WebP, GIF, BMP or the like."
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name} would unpack to more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, which "
            "looks like a decompression bomb: if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS."
        ) from error
    except Exception as error:  # decoders raise whatever a damaged file makes them meet
        raise ImageError(
            f"{name} cannot be decoded, it may be damaged or cut short: {_said(error)}."
        ) from error


def _from_pil(image: Image.Image, name: str, keep_alpha: bool, path: Any = None) -> NDArray[Any]:
    """Decode a PIL image; `path` is its file, where that can be read once more."""
    low = _low_bytes(image, path) if path is not None else None
    image = ImageOps.exif_transpose(image)
    if low is not None:
        high = np.asarray(image, np.float32)
        return _without_alpha((high * 256 + np.asarray(low, np.float32)) / 257, keep_alpha)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _sixteen_bits(np.asarray(image).astype(np.int64), name)
    if image.mode == "F":
        raise ImageError(
            f"{name} holds floats, which have no fixed range: convert it to 8 or 16 bits, or give "
            "the model a ready float batch."
        )
    transparent = "transparency" in image.info or image.mode.lower() in ("la", "pa", "rgba")
    if image.mode in ("1", "L", "LA", "La"):
        mode = "LA" if transparent else "L"
    else:
        mode = "RGBA" if transparent else "RGB"
    pixels = np.asarray(image.convert(mode))
    return _without_alpha(pixels if pixels.ndim == 3 else pixels[..., None], keep_alpha)


def _low_bytes(image: Any, path: Any) -> Image.Image | None:
    """Decode the lower bytes of 16-bit colour, or return None where there are none."""
    modes = {_raw_mode(tile[3]) for tile in image.tile}
    if not modes or not modes <= _OTHER_BYTE.keys():
        return None
    low: Any
    with Image.open(path) as low:
        low.tile = [_with_other_byte(tile) for tile in low.tile]
        return ImageOps.exif_transpose(low)


def _raw_mode(args: Any) -> str:
    return str(args[0] if isinstance(args, tuple | list) and args else args)


def _with_other_byte(tile: Any) -> Any:
    args = tile[3]
    other = _OTHER_BYTE[_raw_mode(args)]
    args = (other, *args[1:]) if isinstance(args, tuple | list) else other
    # a named tuple since Pillow 11
    return tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)


def _without_alpha(pixels: NDArray[Any], keep_alpha: bool) -> NDArray[Any]:
    """Composite two or four channels on white; four may be kept."""
    if pixels.shape[-1] in (1, 3) or (pixels.shape[-1] == 4 and keep_alpha):
        return pixels
    return on_white(pixels)


def _sixteen_bits(values: NDArray[np.int64], name: str) -> NDArray[Any]:
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"{name} holds values {values.min()} to {values.max()}: expected 8 or 16 bits, "
            "0 to 65535."
        )
    return (values[..., None] / 257).astype(np.float32)


# ---- arrays ----------------------------------------------------------------------------------


def _from_array(array: NDArray[Any], keep_alpha: bool) -> NDArray[Any]:
    picture = array[..., None] if array.ndim == 2 else array
    if picture.ndim != 3:
        raise ImageError(f"A picture has shape (H, W) or (H, W, C); this array has {array.shape}.")
    if not picture.size:
        raise ImageError(f"The picture is empty: its shape is {array.shape}.")
    if picture.dtype.kind not in "buif":
        raise ImageError(f"A picture holds numbers; this array holds {array.dtype}.")
    if picture.shape[-1] not in (1, 3, 4):
        return picture
    return _without_alpha(_to_255(picture), keep_alpha)


def _to_255(picture: NDArray[Any]) -> NDArray[Any]:
    if picture.dtype == np.uint8:
        return picture
    if picture.dtype == np.bool_:
        return picture.astype(np.uint8) * np.uint8(255)
    if picture.dtype == np.uint16:
        return (picture / 257).astype(np.float32)
    low, high = picture.min(), picture.max()
    if not (low >= 0 and high <= 255):  # so that NaN is refused too
        raise ImageError(
            f"The picture ({picture.dtype}) holds values {low} to {high}: expected 0 to 255, or "
            "uint16 for 0 to 65535."
        )
    if picture.dtype.kind != "f":
        return picture.astype(np.uint8)
    if 0 < high <= 1:
        raise ImageError(
            f"The picture ({picture.dtype}) holds values {low} to {high}: expected 0 to 255. "
            "If it is on the scale 0..1, multiply it by 255."
        )
    return picture.astype(np.float32)


def _kind(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")
