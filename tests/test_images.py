"""Pictures in, heatmaps back: against closed forms, a slow re-implementation, and Pillow."""

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage import data

from pellucid.adapters.base import Port
from pellucid.errors import ImageError, InputError
from pellucid.images import (
    CallablePreprocess,
    Preprocess,
    prepare,
    read_image,
    resize_map,
)

TORCH = Port("input", (None, 3, 32, 48))
KERAS = Port("input", (None, 3, 32, 48), "image", (0, 2, 3, 1))
GREY = Port("input", (None, 1, 28, 28))
OPEN = Port("input", (None, 3, None, None))
VECTOR = Port("input", (None, 5))
VOLUME = Port("input", (None, 1, 4, 5, 6))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ---- reading ---------------------------------------------------------------------------------


def png16(path, pixels):
    """Write (H, W, C) uint16 as a PNG the slow way: no filters, one chunk."""
    height, width, channels = pixels.shape
    rows = pixels.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_rgb_file_comes_back_bit_for_bit(tmp_path):
    Image.fromarray(data.astronaut()).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.open(tmp_path / "a.png")):
        picture = read_image(source)
        assert picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, data.astronaut())


def test_open_file_is_read():
    file = io.BytesIO()
    Image.fromarray(data.camera()).save(file, "PNG")
    np.testing.assert_array_equal(read_image(file)[..., 0], data.camera())


def test_grey_file_has_one_channel(tmp_path):
    Image.fromarray(data.camera()).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), data.camera()[..., None])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_composited_on_white(tmp_path, mode):
    image = Image.new("RGBA", (2, 1))
    image.putpixel((0, 0), (100, 100, 100, 255))
    image.putpixel((1, 0), (100, 100, 100, 0))
    image.convert(mode).save(tmp_path / "a.png")
    picture = read_image(tmp_path / "a.png")
    assert picture[0, 0, 0] == 100
    assert picture[0, 1, 0] == 255
    assert picture.shape[-1] == (1 if mode == "LA" else 3)


def test_half_transparency_mixes_with_white():
    pixel = np.array([[[100, 0, 200, 51]]], np.uint8)  # alpha is exactly 1/5
    np.testing.assert_array_equal(read_image(pixel), [[[224, 204, 244]]])


def test_transparent_colour_of_an_rgb_png_becomes_white(tmp_path):
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    image.putpixel((1, 0), (1, 2, 3))
    image.save(tmp_path / "a.png", transparency=(10, 20, 30))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[255] * 3, [1, 2, 3]]])


def test_palette_file_gives_its_colours(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[10, 20, 30], [40, 50, 60]]])


def test_one_bit_file_is_black_and_white(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[255], [0]]])


def test_cmyk_is_converted_to_rgb(tmp_path):
    Image.new("CMYK", (1, 1), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), [[[255, 0, 0]]])


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(tmp_path / "a.gif"), np.full((2, 3, 3), [255, 0, 0]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path, orientation):
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    # what a camera stores, for each of EXIF's eight definitions of row 0 and column 0
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    for source in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        np.testing.assert_array_equal(read_image(source)[..., 0], upright)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_png_keeps_its_precision(tmp_path, rng, channels):
    pixels = rng.integers(0, 65536, (5, 7, channels)).astype(np.uint16)
    picture = read_image(png16(tmp_path / "a.png", pixels))
    assert picture.dtype == np.float32
    np.testing.assert_array_equal(np.rint(picture.astype(np.float64) * 257), pixels)


def test_sixteen_bit_rgba_png_is_composited_with_its_precision(tmp_path):
    pixels = np.array([[[1000, 2001, 65535, 65535], [0, 0, 0, 13107]]], np.uint16)
    picture = read_image(png16(tmp_path / "a.png", pixels))
    expected = np.array([[[1000, 2001, 65535], [52428] * 3]]) / 257
    np.testing.assert_allclose(picture, expected, atol=1e-4)


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_sixteen_bit_rgb_tiff_keeps_its_precision(tmp_path, rng, byteorder):
    pixels = rng.integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, byteorder=byteorder, photometric="rgb", rowsperstrip=2
    )
    picture = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(np.rint(picture.astype(np.float64) * 257), pixels)


def test_compressed_sixteen_bit_rgb_tiff_keeps_its_precision(tmp_path, rng):
    pixels = rng.integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", compression="zlib")
    picture = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(np.rint(picture.astype(np.float64) * 257), pixels)


def test_rotated_sixteen_bit_rgb_tiff_keeps_its_precision(tmp_path, rng):
    pixels = rng.integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    turned = np.ascontiguousarray(pixels.transpose(1, 0, 2)[::-1])  # EXIF orientation 6
    orientation = (274, "H", 1, 6, True)
    tifffile.imwrite(tmp_path / "a.tif", turned, photometric="rgb", extratags=[orientation])
    picture = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(np.rint(picture.astype(np.float64) * 257), pixels)


@pytest.mark.parametrize("mode", ["I", "I;16"])
def test_sixteen_bit_pil_image_keeps_its_precision(mode):
    values = np.array([[0, 257, 300, 65535]], np.int32 if mode == "I" else np.uint16)
    image = Image.fromarray(values)
    assert image.mode == mode
    np.testing.assert_allclose(read_image(image)[..., 0], values / 257, rtol=1e-6)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[True, False]]), [255, 0]),
        (np.array([[0, 255]], np.uint8), [0, 255]),
        (np.array([[0, 255]], np.int64), [0, 255]),
        (np.array([[0, 65535]], np.uint16), [0, 255]),
        (np.array([[0.0, 127.5]]), [0, 127.5]),
    ],
)
def test_element_type_says_what_values_mean(array, expected):
    picture = read_image(array)
    assert picture.shape == (1, 2, 1)
    np.testing.assert_array_equal(picture.ravel(), expected)


def test_uint16_arrays_keep_their_precision():
    np.testing.assert_allclose(read_image(np.array([[300]], np.uint16)), 300 / 257, rtol=1e-6)


def test_reading_twice_changes_nothing(tmp_path, rng):
    pixels = rng.integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    once = read_image(png16(tmp_path / "a.png", pixels))
    np.testing.assert_array_equal(read_image(once), once)


def test_multispectral_arrays_come_back_as_they_are(rng):
    pixels = rng.integers(0, 10000, (4, 5, 7)).astype(np.uint16)
    assert read_image(pixels) is pixels


def test_torch_tensor_is_a_picture():
    np.testing.assert_array_equal(read_image(torch.from_numpy(data.chelsea())), data.chelsea())


def png_bytes():
    file = io.BytesIO()
    Image.fromarray(data.chelsea()).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.png", b"hello", r"text\.png is no image: expected PNG, JPEG"),
        ("empty.png", b"", r"empty\.png is no image"),
        ("cut.png", png_bytes()[:5000], r"cut\.png cannot be decoded, it may be .* cut short"),
        ("bent.png", png_bytes()[:90] + b"x" * 50 + png_bytes()[140:], r"bent\.png cannot be dec"),
        ("model.h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 99, r"model\.h5 cannot be decoded"),
        (
            "a.eps",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
            "PostScript",
        ),
    ],
)
def test_files_that_are_no_image_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(ImageError, match=r"There is no file .*nothing\.png\."):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(ImageError, match="is a folder, not an image"):
        read_image(tmp_path)


def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(ImageError, match=r"a\.png .* more than 8,000 pixels.*bomb"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((0, 4, 3), np.uint8), r"empty: its shape is \(0, 4, 3\)"),
        (np.zeros(4, np.uint8), r"this array has \(4,\)"),
        (np.zeros((2, 2), complex), "holds complex128"),
        (np.array([[-1, 3]]), "values -1 to 3: expected 0 to 255"),
        (np.array([[0, 256]]), "values 0 to 256"),
        (np.array([[0, np.nan]]), "values nan to nan"),
        (np.array([[0, 0.5]]), "0..1, multiply it by 255"),
        (Image.fromarray(np.zeros((2, 2), np.float32)), "floats, which have no fixed range"),
        (Image.fromarray(np.array([[70000]], np.int32)), "values 70000 to 70000"),
        (None, "this is None"),
        (3, "of type int"),
    ],
)
def test_what_is_no_picture_is_refused(source, message):
    with pytest.raises(ImageError, match=message):
        read_image(source)


# ---- resampling ------------------------------------------------------------------------------


def slow_bilinear(image, size):
    """Half-pixel bilinear of (h, w) without antialiasing, pixel by pixel, edges clamped."""
    out = np.zeros(size)
    for i in range(size[0]):
        for j in range(size[1]):
            y = min(max((i + 0.5) * image.shape[0] / size[0] - 0.5, 0), image.shape[0] - 1)
            x = min(max((j + 0.5) * image.shape[1] / size[1] - 0.5, 0), image.shape[1] - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, image.shape[0] - 1), min(x0 + 1, image.shape[1] - 1)
            v, u = y - y0, x - x0
            out[i, j] = (1 - v) * ((1 - u) * image[y0, x0] + u * image[y0, x1]) + v * (
                (1 - u) * image[y1, x0] + u * image[y1, x1]
            )
    return out


@pytest.mark.parametrize("size", [(7, 7), (14, 21), (30, 17), (8, 9)])
def test_enlarging_is_half_pixel_bilinear(rng, size):
    heatmap = rng.random((7, 7))
    np.testing.assert_allclose(resize_map(heatmap, size), slow_bilinear(heatmap, size), atol=1e-6)


@pytest.mark.parametrize("size", [(20, 30), (150, 100), (400, 40), (300, 451)])
def test_resampling_agrees_with_pillow_and_torch(size):
    image = data.chelsea()[..., 0].astype(np.float32)
    ours = resize_map(image, size)
    pillow = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_allclose(ours, np.asarray(pillow), atol=1e-3)
    native = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None, None], size, mode="bilinear", antialias=True
    )
    np.testing.assert_allclose(ours, native[0, 0].numpy(), atol=1e-3)


@pytest.mark.parametrize("size", [(3, 4), (40, 50), (9, 11)])
def test_constant_stays_constant(size):
    np.testing.assert_allclose(resize_map(np.full((9, 11), 3.25), size), 3.25, rtol=1e-6)


@pytest.mark.parametrize("size", [8, 16, 64, 128])
def test_ramp_stays_a_ramp_away_from_the_edges(size):
    ramp = np.tile((np.arange(32) + 0.5) / 32, (4, 1))
    resized = resize_map(ramp, (4, size))
    expected = (np.arange(size) + 0.5) / size
    inside = slice(size // 8, -size // 8)
    np.testing.assert_allclose(resized[0, inside], expected[inside], atol=1e-6)


@pytest.mark.parametrize("heatmap", [np.zeros(3), np.zeros((0, 2)), np.zeros((1, 2, 2))])
def test_map_of_other_axes_than_the_grid_is_refused(heatmap):
    with pytest.raises(InputError, match="cannot be drawn on"):
        resize_map(heatmap, (4, 4))


def test_every_axis_of_a_volume_is_resized_like_a_line():
    volume = np.random.default_rng(0).random((3, 4, 5))
    by_axis = volume
    for axis, size in enumerate((6, 2, 9)):
        lines = np.apply_along_axis(lambda line, n=size: resize_map(line, (n,)), axis, by_axis)
        by_axis = lines
    np.testing.assert_allclose(resize_map(volume, (6, 2, 9)), by_axis, atol=1e-6)


# ---- Preprocess: numbers ---------------------------------------------------------------------

PIXEL = np.array([[[255, 51, 0]]], np.uint8)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("imagenet", [(1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, -0.406 / 0.225]),
        ("caffe", [-103.939, 51 - 116.779, 255 - 123.68]),
        ("tf", [1, -0.6, -1]),
        ("0-1", [1, 0.2, 0]),
        ("0-255", [255, 51, 0]),
        ("raw", [255, 51, 0]),
    ],
)
def test_presets_give_their_definitions(preset, expected):
    preprocess = Preprocess.of(preset, OPEN)
    batch = preprocess(PIXEL)
    assert batch.shape == (3, 224, 224)
    assert batch.dtype == np.float32
    assert (preprocess.name, preprocess.assumed) == (preset, False)
    np.testing.assert_allclose(batch[:, 100, 100], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(preprocess.picture(batch)[7, 7], PIXEL[0, 0])


def test_grey_network_sees_the_luma_of_colour():
    batch = Preprocess.of("0-255", GREY)(PIXEL)
    np.testing.assert_allclose(batch, 0.299 * 255 + 0.587 * 51, rtol=1e-6)


def test_grey_picture_is_repeated_for_a_colour_network():
    batch = Preprocess.of("0-255", TORCH)(data.camera())
    np.testing.assert_array_equal(batch[0], batch[2])
    np.testing.assert_allclose(batch[1], resize_map(data.camera(), (32, 48)), atol=1e-4)


def test_sixteen_bit_precision_reaches_the_network():
    picture = np.full((32, 48), 301, np.uint16)
    np.testing.assert_allclose(Preprocess.of("0-1", TORCH)(picture), 301 / 65535, rtol=1e-5)


def test_multispectral_channels_are_not_mixed(rng):
    pixels = rng.integers(0, 255, (6, 4, 7)).astype(np.uint8)
    port = Port("input", (None, 7, 6, 4))
    mean = tuple(range(7))
    batch = Preprocess.of({"mean": mean, "scale": 1}, port)(pixels)
    np.testing.assert_allclose(batch, pixels.transpose(2, 0, 1) - np.arange(7)[:, None, None])


def test_alpha_is_kept_for_a_network_with_four_channels(rng):
    pixels = rng.integers(0, 255, (6, 4, 4)).astype(np.uint8)
    port = Port("input", (None, 4, 6, 4))
    prepared = prepare(pixels, [port])
    from_image = Preprocess.of(None, port)(Image.fromarray(pixels))
    np.testing.assert_array_equal(prepared.batch[0][0], from_image)
    np.testing.assert_allclose(prepared.batch[0][0] * 255, pixels.transpose(2, 0, 1), rtol=1e-5)
    assert prepared.pictures[0].shape == (6, 4, 3)


def test_crop_is_torchvisions_evaluation_transform():
    port = Port("input", (None, 3, 224, 224))
    ours = Preprocess.of({"name": "0-255", "fit": "crop"}, port)(data.chelsea())
    # Resize(256) makes the shorter side 256 and truncates the other, CenterCrop(224) follows
    width, height = int(256 * 451 / 300), 256
    resized = Image.fromarray(data.chelsea()).resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)))
    # Pillow rounds to whole levels after each of its two passes
    np.testing.assert_allclose(ours.transpose(1, 2, 0), expected, atol=1.01)


def test_pad_keeps_proportions_and_fills_with_the_mean_colour():
    port = Port("input", (None, 3, 64, 64))
    batch = Preprocess.of({"name": "imagenet", "fit": "pad"}, port)(
        np.full((20, 40, 3), 255, np.uint8)
    )
    np.testing.assert_array_equal(batch[:, :16], 0)
    np.testing.assert_array_equal(batch[:, 48:], 0)
    np.testing.assert_allclose(batch[0, 16:48], (1 - 0.485) / 0.229, rtol=1e-5)


# ---- Preprocess: and back --------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("size", [(90, 60), (60, 90), (64, 64)])
def test_to_image_undoes_the_placement_of_a_ramp(fit, size):
    # a picture whose pixels are their own coordinates must come back as those coordinates
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    preprocess = Preprocess("0-255", channels="grey", size=(48, 48), fit=fit)
    for coordinates in (rows, columns):
        there = preprocess(coordinates[..., None])[0]
        back = preprocess.to_image(there, size)
        known = preprocess.to_image(np.ones((48, 48)), size) > 0
        inside = np.zeros(size, bool)
        inside[4:-4, 4:-4] = known[4:-4, 4:-4]
        if fit == "crop":  # the antialiasing of one way and the other ends at the crop's edge
            inner = np.argwhere(known)
            (top, left), (bottom, right) = inner.min(0) + 4, inner.max(0) - 4
            inside[:top], inside[bottom:], inside[:, :left], inside[:, right:] = 0, 0, 0, 0
        assert inside.sum() > 1000
        np.testing.assert_allclose(back[inside], coordinates[inside], atol=0.1)


def test_to_image_is_zero_outside_the_crop():
    preprocess = Preprocess(size=(56, 56), fit="crop")
    mask = preprocess.to_image(np.ones((7, 7)), (100, 200)) > 0
    # resized to 64 x 128; the crop's 56 x 56 begin at row 4 and column 36 of that
    expected = np.zeros((100, 200), bool)
    expected[round(4 / 0.64) : round(60 / 0.64), round(36 / 0.64) : round(92 / 0.64)] = True
    np.testing.assert_array_equal(mask, expected)


def test_to_image_cuts_padding_off():
    preprocess = Preprocess(size=(64, 64), fit="pad")
    heatmap = np.zeros((64, 64))
    heatmap[16:48] = 1  # where a 2:1 picture lies
    back = preprocess.to_image(heatmap, (200, 400))
    assert back.shape == (200, 400)
    np.testing.assert_allclose(back[4:-4], 1, rtol=1e-6)


@pytest.mark.parametrize("resolution", [(7, 7), (32, 48), (3, 100)])
def test_to_image_of_a_stretched_picture_is_plain_resizing(rng, resolution):
    heatmap = rng.random(resolution)
    back = Preprocess.of("0-1", TORCH).to_image(heatmap, (90, 110))
    np.testing.assert_allclose(back, resize_map(heatmap, (90, 110)), atol=1e-6)


def test_kept_size_gives_the_heatmap_of_each_picture():
    preprocess = Preprocess.of({"size": None}, OPEN)
    assert preprocess(data.chelsea()).shape == (3, 300, 451)
    assert preprocess.to_image(np.ones((10, 15)), (300, 451)).shape == (300, 451)


# ---- Preprocess: choosing --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "options", "name", "channels", "assumed"),
    [
        (TORCH, {"framework": "torch"}, "imagenet", "rgb", True),
        (TORCH, {"framework": "keras"}, "0-1", "rgb", True),
        (TORCH, {"framework": "torch", "scales_input": True}, "0-255", "rgb", False),
        (GREY, {"framework": "torch"}, "0-1", "grey", True),
        (Port("input", (None, 7, 8, 8)), {"framework": "torch"}, "0-1", "any", True),
        (VECTOR, {}, "raw", "any", False),
    ],
)
def test_guess_follows_the_model_and_says_so(port, options, name, channels, assumed):
    guess = Preprocess.of(None, port, **options)
    assert (guess.name, guess.channels, guess.assumed) == (name, channels, assumed)
    assert guess.reason.startswith("assumed:") == assumed
    assert ("pass preprocess=" in guess.reason) == assumed


@pytest.mark.parametrize(
    ("spec", "scale"),
    [
        (((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1 / 255),
        ({"mean": 0.5}, 1 / 255),
        ({"mean": 127.5, "std": 127.5}, 1),
        ({"std": 255}, 1),
        ({"mean": 0.5, "scale": 1}, 1),
        ({"name": "tf", "mean": 0}, 1 / 127.5),
    ],
)
def test_scale_follows_the_habit_of_mean_and_std(spec, scale):
    chosen = Preprocess.of(spec, TORCH)
    assert chosen.scale == scale
    assert (chosen.name, chosen.assumed) == ("custom", False)


def test_mean_and_deviation_pair_is_the_imagenet_preset():
    pair = Preprocess.of(((0.485, 0.456, 0.406), [0.229, 0.224, 0.225]), TORCH)
    np.testing.assert_array_equal(
        pair(data.chelsea()), Preprocess.of("imagenet", TORCH)(data.chelsea())
    )


def test_geometry_alone_leaves_the_values_a_guess():
    chosen = Preprocess.of({"fit": "crop", "size": 64}, OPEN, framework="torch")
    assert (chosen.name, chosen.fit, chosen.size) == ("imagenet", "crop", (64, 64))
    assert chosen.assumed


def test_size_comes_from_the_input_and_else_is_224():
    assert Preprocess.of("0-1", TORCH).size == (32, 48)
    assert Preprocess.of(Preprocess("0-1"), TORCH).size == (32, 48)
    assert Preprocess.of("0-1", OPEN).size == (224, 224)
    assert Preprocess.of("0-1", Port("input", (None, 3, None, 48))).size == (224, 48)
    assert Preprocess.of({"name": "0-1", "size": 96}, OPEN).size == (96, 96)
    assert Preprocess.of({"name": "0-1", "size": None}, OPEN).size is None


@pytest.mark.parametrize(
    ("spec", "port", "message"),
    [
        ("imagnet", TORCH, "'imagnet' is no preset. Did you mean 'imagenet'"),
        ({"means": 0}, TORCH, "'means' is unknown. Did you mean 'mean'"),
        ({"fit": "squash"}, TORCH, "fit='squash' is unknown"),
        ({"channels": "RGB"}, TORCH, "channels='RGB' is unknown. Did you mean 'rgb'"),
        ({"mean": "a"}, TORCH, "mean='a' must be a number"),
        ({"mean": (1, 2)}, TORCH, "mean has 2 values, 'rgb' has 3 channels"),
        ({"std": 0}, TORCH, "must be above 0"),
        ({"scale": 0}, TORCH, "scale=0 must be one number other than 0"),
        ({"scale": None}, TORCH, "scale=None must be a number"),
        ({"size": (1, 2, 3)}, OPEN, r"size=\(1, 2, 3\) must be \(height, width\)"),
        ({"size": -4}, OPEN, "size=-4 must be"),
        ({"size": 3.5}, OPEN, "size=3.5 must be"),
        ({"size": "big"}, OPEN, "size='big' must be"),
        ({"size": 64}, TORCH, r"size=\(64, 64\), but the model's input takes shape \(3, 32, 48\)"),
        ("imagenet", GREY, r"gives 3 channels \(rgb\), but the model's input takes shape \(1, 28"),
        ({"channels": "any", "mean": (1, 2)}, TORCH, "mean has 2 values, but the model's input"),
        ("0-1", VECTOR, "preprocess= is for pictures"),
        (3, TORCH, "preprocess=3 is not understood"),
    ],
)
def test_unsuitable_preprocessing_is_explained(spec, port, message):
    with pytest.raises(InputError, match=message):
        Preprocess.of(spec, port)


# ---- a function as preprocessing -------------------------------------------------------------


def halved(picture):
    return np.asarray(Image.fromarray(picture).resize((48, 32)), np.float32) / 2


def test_function_gives_the_models_own_layout():
    preprocess = Preprocess.of(halved, KERAS)
    assert isinstance(preprocess, CallablePreprocess)
    batch = preprocess(data.camera())
    np.testing.assert_array_equal(batch.transpose(1, 2, 0), halved(np.dstack([data.camera()] * 3)))
    assert (preprocess.name, preprocess.assumed) == ("custom", False)
    assert preprocess.reason == "given by the caller: the function halved"
    assert preprocess.to_image(np.ones((2, 2)), (9, 8)).shape == (9, 8)


def test_function_may_return_a_tensor_with_a_batch_axis():
    preprocess = Preprocess.of(lambda p: torch.ones(1, 3, 32, 48) * p[0, 0, 0], TORCH)
    np.testing.assert_array_equal(preprocess(np.full((2, 2), 9, np.uint8)), np.full((3, 32, 48), 9))


def test_function_whose_result_does_not_fit_is_explained():
    preprocess = Preprocess.of(lambda p: p.astype(np.float32), KERAS)
    with pytest.raises(
        InputError,
        match=r"returned shape \(300, 451, 3\); one picture .* shape \(32, 48, 3\) in the model's",
    ):
        preprocess(data.chelsea())


def test_function_that_fails_is_named():
    with pytest.raises(InputError, match=r"function .*lambda.* failed on .* ZeroDivisionError"):
        Preprocess.of(lambda _: 1 / 0, TORCH)(data.chelsea())


# ---- prepare ---------------------------------------------------------------------------------


def test_path_image_and_array_give_the_same_batch(tmp_path):
    Image.fromarray(data.chelsea()).save(tmp_path / "a.png")
    preprocess = Preprocess.of("imagenet", TORCH)
    expected = preprocess(data.chelsea())
    for source in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.open(tmp_path / "a.png"),
        data.chelsea(),
        torch.from_numpy(data.chelsea()),
    ):
        prepared = prepare(source, [TORCH], preprocess)
        assert prepared.single
        assert prepared.preprocess == preprocess
        np.testing.assert_array_equal(prepared.batch[0], expected[None])
        np.testing.assert_array_equal(prepared.pictures[0], data.chelsea())


def test_list_of_pictures_is_a_batch_in_their_order(tmp_path):
    Image.fromarray(data.camera()).save(tmp_path / "a.png")
    preprocess = Preprocess.of("0-1", TORCH)
    prepared = prepare([data.chelsea(), tmp_path / "a.png"], [TORCH], preprocess)
    assert not prepared.single
    assert len(prepared) == 2
    np.testing.assert_array_equal(prepared.batch[0][0], preprocess(data.chelsea()))
    np.testing.assert_array_equal(prepared.batch[0][1], preprocess(data.camera()))
    assert [p.shape for p in prepared.pictures] == [(300, 451, 3), (512, 512, 3)]
    assert prepared.to_image(np.ones((3, 3)), 1).shape == (512, 512)


def test_integer_array_with_one_more_axis_is_a_list(rng):
    pixels = rng.integers(0, 255, (2, 9, 8, 3)).astype(np.uint8)
    one, two = prepare(pixels, [TORCH]), prepare(list(pixels), [TORCH])
    np.testing.assert_array_equal(one.batch[0], two.batch[0])
    assert not one.single


def test_stack_of_grey_pictures_is_a_list_for_a_grey_network(rng):
    pixels = rng.integers(0, 255, (5, 28, 28)).astype(np.uint8)
    prepared = prepare(pixels, [GREY])
    np.testing.assert_allclose(prepared.batch[0][:, 0] * 255, pixels, rtol=1e-5)


def test_float_batch_in_own_layout_is_taken_as_it_is(rng):
    batch = rng.random((2, 32, 48, 3))
    prepared = prepare(batch, [KERAS])
    np.testing.assert_array_equal(prepared.batch[0], batch.transpose(0, 3, 1, 2).astype(np.float32))
    assert prepared.batch[0].dtype == np.float32
    assert (prepared.single, prepared.preprocess) == (False, None)
    alone = prepare(batch[0], [KERAS])
    np.testing.assert_array_equal(alone.batch[0], prepared.batch[0][:1])
    assert alone.single
    several = prepare([batch[0], batch[1]], [KERAS])
    np.testing.assert_array_equal(several.batch[0], prepared.batch[0])
    assert not several.single


def test_torch_tensors_that_require_grad_or_are_bfloat16_are_arrays():
    tensor = torch.ones(1, 3, 32, 48, requires_grad=True)
    np.testing.assert_array_equal(prepare(tensor, [TORCH]).batch[0], 1)
    np.testing.assert_array_equal(prepare(tensor.bfloat16(), [TORCH]).batch[0], 1)


def test_picture_of_a_ready_batch_undoes_known_preprocessing():
    preprocess = Preprocess.of("caffe", TORCH)
    small = np.asarray(Image.fromarray(data.chelsea()).resize((48, 32)))
    prepared = prepare(preprocess(small)[None], [TORCH], preprocess)
    np.testing.assert_array_equal(prepared.pictures[0], small)


def test_picture_of_a_ready_batch_is_stretched_to_its_range_when_only_guessed():
    batch = np.zeros((1, 1, 28, 28), np.float32)
    batch[0, 0, 0, :2] = [-3, 5]
    picture = prepare(batch, [GREY]).pictures[0]
    np.testing.assert_array_equal(picture[0, :3, 0], [0, 255, 96])  # 0 lies at 3/8 of the range
    assert picture.shape == (28, 28, 3)


def test_inputs_that_are_no_pictures_take_numbers():
    prepared = prepare(np.arange(5), [VECTOR])
    np.testing.assert_array_equal(prepared.batch[0], [[0, 1, 2, 3, 4]])
    assert prepared.batch[0].dtype == np.float32
    assert (prepared.pictures, prepared.single) == ([None], True)
    np.testing.assert_array_equal(prepare([1.0, 2, 3, 4, 5], [VECTOR]).batch[0], [[1, 2, 3, 4, 5]])
    volume = prepare(np.ones((2, 1, 4, 5, 6), np.uint8), [VOLUME])
    assert volume.batch[0].shape == (2, 1, 4, 5, 6)
    np.testing.assert_array_equal(volume.to_image(np.ones((5, 6)), 1), np.ones((5, 6)))


IMAGE_AND_VECTOR = (KERAS, Port("input:1", (None, 5), "meta"))


@pytest.mark.parametrize(
    "images",
    [
        (data.chelsea(), np.arange(5.0)),
        {"image": data.chelsea(), "meta": np.arange(5.0)},
        {"input:1": np.arange(5), "input": data.chelsea()},
    ],
)
def test_several_inputs_by_position_and_name(images):
    prepared = prepare(images, IMAGE_AND_VECTOR)
    assert [a.shape for a in prepared.batch] == [(1, 3, 32, 48), (1, 5)]
    np.testing.assert_array_equal(prepared.batch[1], [np.arange(5)])
    assert prepared.single
    assert prepared.pictures[0].shape == (300, 451, 3)


def test_list_of_samples_for_several_inputs():
    tuples = [(data.chelsea(), np.arange(5.0)), (data.camera(), np.ones(5))]
    mappings = [{"image": image, "meta": meta} for image, meta in tuples]
    for samples in (tuples, mappings):
        prepared = prepare(samples, IMAGE_AND_VECTOR)
        assert [a.shape for a in prepared.batch] == [(2, 3, 32, 48), (2, 5)]
        assert [p.shape for p in prepared.pictures] == [(300, 451, 3), (512, 512, 3)]
        assert not prepared.single


def test_each_input_gets_its_own_size_and_channels():
    ports = (TORCH, Port("input:1", (None, 1, 9, 7)))
    preprocess = Preprocess.of("0-1", TORCH)
    prepared = prepare((data.chelsea(), data.chelsea()), ports, preprocess)
    assert [a.shape for a in prepared.batch] == [(1, 3, 32, 48), (1, 1, 9, 7)]
    assert prepared.preprocess == preprocess


def test_ready_second_input_may_have_other_channels_than_the_preprocessing():
    ports = (TORCH, Port("input:1", (None, 1, 9, 7)))
    preprocess = Preprocess.of("imagenet", TORCH)
    prepared = prepare((data.chelsea(), np.ones((1, 9, 7))), ports, preprocess)
    np.testing.assert_array_equal(prepared.batch[1], 1)
    with pytest.raises(InputError, match="mean has 3 values, 'grey' has 1"):
        prepare((data.chelsea(), data.camera()), ports, preprocess)


@pytest.mark.parametrize(
    ("images", "ports", "error", "message"),
    [
        ([], [TORCH], InputError, "list of images is empty"),
        (None, [TORCH], InputError, "Expected a picture .* this is None"),
        (3, [TORCH], InputError, r"floats of shape \(N, 3, 32, 48\) .* of type int"),
        (
            np.zeros((1, 3, 32, 48)),
            [KERAS],
            InputError,
            r"takes floats of shape \(N, 32, 48, 3\) in the model's own layout; this array has "
            r"shape \(1, 3, 32, 48\)",
        ),
        (data.chelsea() / 255.0, [KERAS], InputError, "give them as uint8"),
        (np.zeros((0, 3, 32, 48)), [TORCH], InputError, "is empty"),
        (np.zeros((1, 2, 3, 32, 48), np.uint8), [TORCH], InputError, "An integer array holds a"),
        (np.array(["a"]), [TORCH], InputError, "takes numbers; this array holds <U1"),
        (data.chelsea().transpose(2, 0, 1), [TORCH], ImageError, "channels first: pictures are H"),
        (np.zeros((9, 9, 7), np.uint8), [TORCH], ImageError, "has 7 channels; the model takes 3"),
        (np.zeros((9, 9, 7), np.uint8), [Port("input", (None, 5, 9, 9))], ImageError, "takes 5"),
        ("a.png", [VECTOR], InputError, r"takes no picture but numbers of shape \(N, 5\)"),
        (np.zeros((2, 6)), [VECTOR], InputError, r"shape \(N, 5\) .* has shape \(2, 6\)\.$"),
        (data.chelsea(), IMAGE_AND_VECTOR, InputError, r"takes 2 inputs \(image, meta\)"),
        ({"image": 1}, IMAGE_AND_VECTOR, InputError, "The input 'meta' is missing"),
        ({"imag": 1}, IMAGE_AND_VECTOR, InputError, "no input 'imag'. Did you mean 'image'"),
        (
            ([data.chelsea()] * 2, np.zeros((3, 5))),
            IMAGE_AND_VECTOR,
            InputError,
            "input has 2, input:1 has 3",
        ),
    ],
)
def test_what_does_not_fit_is_explained(images, ports, error, message):
    with pytest.raises(error, match=message):
        prepare(images, ports)


def test_pictures_of_different_kept_sizes_cannot_share_a_batch():
    preprocess = Preprocess.of({"name": "0-1", "size": None}, OPEN)
    with pytest.raises(InputError, match=r"\(3, 300, 451\), \(3, 512, 512\). Give one size"):
        prepare([data.chelsea(), data.camera()], [OPEN], preprocess)


def test_no_framework_is_imported():
    import subprocess

    code = (
        "import sys, pellucid.images, pellucid.labels;"
        "print([m for m in ('torch', 'tensorflow', 'keras', 'matplotlib', 'skimage') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.strip() == "[]"
