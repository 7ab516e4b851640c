"""Every kind of file that people have, and the pixels that must come out."""

import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from csham.data.decode import BadFile, Encoded, channel_sums, decode, decode_chunk, image_suffixes, reason

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quarters(side=16, colours=(RED, GREEN, BLUE, WHITE)):
    """Top left, top right, bottom left, bottom right."""
    pixels = np.zeros((side, side, 3), np.uint8)
    half = side // 2
    for colour, (y, x) in zip(colours, [(0, 0), (0, half), (half, 0), (half, half)], strict=True):
        pixels[y : y + half, x : x + half] = colour
    return pixels


def pixels_of(path, side=16):
    pixels, _ = decode(path, side)
    assert pixels.shape == (side, side, 3)
    assert pixels.dtype == np.uint8
    return pixels.astype(int)


def corners(pixels):
    """Centres of the four quarters."""
    q = len(pixels) // 4
    return [tuple(pixels[y, x].tolist()) for y in (q, 3 * q) for x in (q, 3 * q)]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp", ".ppm", ".gif", ".tga"])
def test_lossless_formats_come_out_exact(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(quarters()).save(path, **options)
    np.testing.assert_array_equal(pixels_of(path), quarters())


def test_a_wrong_suffix_does_not_matter(tmp_path):
    path = tmp_path / "really_a_png.jpg"
    Image.fromarray(quarters()).save(path, "PNG")
    np.testing.assert_array_equal(pixels_of(path), quarters())


# What a viewer shows: the stored picture, turned by what undoes each orientation (EXIF 2.3, tag 0x0112).
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x{suffix}"
    Image.fromarray(quarters(64)).save(path, exif=exif, **({"quality": 95} if suffix == ".jpg" else {}))
    expected = corners(UPRIGHT[orientation](quarters(64)))
    np.testing.assert_allclose(corners(pixels_of(path, 64)), expected, atol=12)  # JPEG and WebP are lossy


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_garbled_exif_is_passed_over(tmp_path):
    path = tmp_path / "x.jpg"
    Image.fromarray(quarters(64)).save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12garbage")
    np.testing.assert_allclose(corners(pixels_of(path, 64)), corners(quarters(64)), atol=12)


def test_cmyk_jpeg(tmp_path):
    path = tmp_path / "x.jpg"
    Image.fromarray(quarters(64)).convert("CMYK").save(path, quality=95)
    assert Image.open(path).mode == "CMYK"
    np.testing.assert_allclose(corners(pixels_of(path, 64)), corners(quarters(64)), atol=12)


def test_palette(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(quarters()).quantize(4).save(path)
    assert Image.open(path).mode == "P"
    np.testing.assert_array_equal(pixels_of(path), quarters())


def test_palette_with_transparency_lies_over_white(tmp_path):
    path = tmp_path / "x.png"
    image = Image.fromarray(quarters()).quantize(4)
    index = image.getpixel((0, 0))
    image.save(path, transparency=index)
    np.testing.assert_array_equal(pixels_of(path), quarters(colours=(WHITE, GREEN, BLUE, WHITE)))


def test_alpha_lies_over_white(tmp_path):
    path = tmp_path / "x.png"
    rgba = np.dstack([quarters(), np.full((16, 16), 255, np.uint8)])
    rgba[:8, :8, 3] = 0  # red quarter invisible
    rgba[:8, 8:, 3] = 128  # green quarter half seen
    Image.fromarray(rgba).save(path)
    expected = quarters(colours=(WHITE, (127, 255, 127), BLUE, WHITE))
    np.testing.assert_allclose(pixels_of(path), expected, atol=1)  # rounding of the blend


def test_grey_with_alpha_lies_over_white(tmp_path):
    path = tmp_path / "x.png"
    la = np.zeros((16, 16, 2), np.uint8)
    la[:8] = (40, 255)
    la[8:] = (40, 0)
    Image.fromarray(la, "LA").save(path)
    assert corners(pixels_of(path)) == [(40, 40, 40), (40, 40, 40), WHITE, WHITE]


def test_colour_key_lies_over_white(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(quarters()).save(path, transparency=RED)
    np.testing.assert_array_equal(pixels_of(path), quarters(colours=(WHITE, GREEN, BLUE, WHITE)))


def test_one_bit(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(np.tri(16).astype(bool)).save(path)
    np.testing.assert_array_equal(pixels_of(path), np.tri(16)[:, :, None].repeat(3, 2) * 255)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    grey = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    path = tmp_path / f"x{suffix}"
    if suffix == ".pgm":
        path.write_bytes(b"P5 16 16 65535\n" + grey.astype(">u2").tobytes())
    else:
        Image.fromarray(grey).save(path)
    expected = np.round(grey / 257)[:, :, None].repeat(3, 2)
    np.testing.assert_array_equal(pixels_of(path), expected)


def test_big_endian_16_bit_tiff(tmp_path):
    grey = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    path = tmp_path / "x.tif"
    image = Image.frombytes("I;16B", (16, 16), grey.astype(">u2").tobytes())
    image.save(path)
    np.testing.assert_array_equal(pixels_of(path)[:, :, 0], np.round(grey / 257))


def test_32_bit_grey(tmp_path):
    path = tmp_path / "x.tif"
    values = np.linspace(0, 2**31 - 1, 256).astype(np.int32).reshape(16, 16)
    Image.fromarray(values).save(path)
    np.testing.assert_allclose(pixels_of(path)[:, :, 0].ravel(), np.arange(256), atol=1)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (0, 65535), (-3, 5)])
def test_float_grey_by_the_range_it_fills(tmp_path, low, high):
    values = np.linspace(low, high, 256, dtype=np.float32).reshape(16, 16)
    path = tmp_path / "x.tif"
    Image.fromarray(values).save(path)
    np.testing.assert_allclose(pixels_of(path)[:, :, 1].ravel(), np.arange(256), atol=1)


@pytest.mark.parametrize("value", [-1.0, 70_000.0])
def test_float_of_one_value_outside_every_range(tmp_path, value):
    Image.new("F", (16, 16), value).save(tmp_path / "x.tif")
    assert pixels_of(tmp_path / "x.tif").max() == 0


def test_float_with_nan_and_infinity(tmp_path):
    values = np.full((16, 16), 0.5, np.float32)
    values[0, :2] = np.nan, np.inf
    path = tmp_path / "x.tif"
    Image.fromarray(values).save(path)
    assert set(np.unique(pixels_of(path))) == {0, 128}


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_of_an_animation_the_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    path = tmp_path / f"x{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    pixels, animated = decode(path, 16)
    assert animated
    assert (pixels == RED).all()


def test_a_camera_file_with_two_views_is_no_animation(tmp_path):
    path = tmp_path / "x.jpg"
    views = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN)]
    views[0].save(path, "MPO", save_all=True, append_images=views[1:])
    pixels, animated = decode(path, 16)
    assert not animated
    np.testing.assert_allclose(pixels[8, 8], RED, atol=12)


# wide, tall, a square; the side is kept, halved, doubled; a width that leaves half a pixel on either side
@pytest.mark.parametrize(("width", "height"), [(96, 32), (32, 96), (64, 64), (16, 16), (33, 32)])
def test_the_centre_square_is_taken(tmp_path, width, height):
    pixels = np.zeros((height, width, 3), np.uint8)
    short = min(width, height)
    top, left = (height - short) // 2, (width - short) // 2
    pixels[top : top + short, left : left + short] = 200
    path = tmp_path / "x.png"
    Image.fromarray(pixels).save(path)
    assert (pixels_of(path, 32) == 200).all()


def test_a_strip_does_not_become_a_strip_of_millions_of_pixels(tmp_path):
    Image.new("RGB", (30_000, 1), RED).save(tmp_path / "x.png")
    assert (pixels_of(tmp_path / "x.png", 1024) == RED).all()


def test_what_fits_is_not_touched(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.png", 32), pixels[4:36])


def test_shrinking_averages_where_picking_pixels_would_alias(tmp_path):
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "x.png")
    np.testing.assert_allclose(pixels_of(tmp_path / "x.png", 32), 127.5, atol=3)


def test_a_large_jpeg_shrunk_while_decoding_looks_the_same(tmp_path):
    y, x = np.mgrid[0:1024, 0:1024] / 1024
    smooth = np.stack([255 * x, 255 * y, 127 + 127 * np.sin(9 * x)], -1).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "x.jpg", quality=95)
    expected = Image.fromarray(smooth).resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(pixels_of(tmp_path / "x.jpg", 32), np.asarray(expected), atol=4)


def bomb():
    """A PNG whose header promises 60,000 x 60,000 pixels."""

    def block(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + block(b"IDAT", b"") + block(b"IEND", b"")


# 90 million pixels, which a few bytes hold.
LARGE = (9500, 9500)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path):
    Image.new("1", LARGE).save(tmp_path / "x.png")
    Image.new("1", (LARGE[0] - 100, LARGE[1])).save(tmp_path / "just.png")
    for content in (tmp_path / "x.png", Encoded("x.png", (tmp_path / "x.png").read_bytes())):
        tracemalloc.start()
        with pytest.raises(Exception, match=r"90\.2 million") as caught:
            decode(content, 16)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**20
        assert reason("", caught.value) == "too many pixels (90.2 million, and at most 89.5 are decoded)"
    assert pixels_of(tmp_path / "just.png").max() == 0


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_a_jpeg_is_decoded_to_counts_unless_all_of_it_is_held(tmp_path):
    grey = Image.new("L", LARGE, 77)
    grey.save(tmp_path / "x.jpg")
    grey.save(tmp_path / "progressive.jpg", progressive=True)
    assert pixels_of(tmp_path / "x.jpg").min() == 77
    with pytest.raises(Exception, match=r"90\.2 million"):
        decode(tmp_path / "progressive.jpg", 16)


def test_deep_grey_takes_little_more_memory_than_its_pixels(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 65536, (3000, 4000), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    tracemalloc.start()
    decode(tmp_path / "x.png", 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * values.size  # numpy's part, bytes: two of the file and one of the result, and a band of floats


def test_transparency_is_laid_over_white_alike_in_every_band(tmp_path, monkeypatch):
    monkeypatch.setattr("csham.data.decode._BAND", 100)
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    Image.fromarray(values, "RGBA").save(tmp_path / "x.png")
    image = Image.open(tmp_path / "x.png")
    expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.png", 64), np.asarray(expected))


def truncated(tmp_path, suffix):
    whole = tmp_path / f"whole{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    return whole.read_bytes()[: whole.stat().st_size // 2]


def test_bad_files_are_reported_and_the_others_decoded(tmp_path):
    content = {
        "a_empty.png": (b"", "empty file"),
        "b_text.jpg": (b"this is no picture at all", "not an image"),
        "c_bomb.png": (bomb(), "too many pixels"),
        "d_cut.jpg": (truncated(tmp_path, ".jpg"), "truncated"),
        "e_cut.png": (truncated(tmp_path, ".png"), "truncated"),
        "f_cut.webp": (truncated(tmp_path, ".webp"), ""),  # Pillow has no word for what is wrong
        "g_postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n", "not an image"),
        "h_missing.png": (None, "no such file"),
    }
    paths = []
    for name, (body, _) in content.items():
        paths.append(tmp_path / name)
        if body is not None:
            paths[-1].write_bytes(body)
    good = tmp_path / "z_good.png"
    Image.fromarray(quarters()).save(good)
    order = [*paths[:3], good, *paths[3:]]
    target = tmp_path / "target"
    target.write_bytes(b"\xff" * (100 + len(order) * 768))

    chunk = decode_chunk([str(path) for path in order], 16, str(target), 100)

    assert [position for position, _ in chunk.bad] == [0, 1, 2, 4, 5, 6, 7, 8]
    for (_, file), (name, (_, why)) in zip(chunk.bad, content.items(), strict=True):
        assert isinstance(file, BadFile)
        assert file.path.endswith(name)
        assert why in file.reason
        assert len(file.reason) < 160
        assert "\n" not in file.reason
    rows = np.frombuffer(target.read_bytes()[100:], np.uint8).reshape(-1, 16, 16, 3)
    np.testing.assert_array_equal(rows[3], quarters())
    assert not rows[[0, 1, 2, 4, 5, 6, 7, 8]].any()
    assert target.read_bytes()[:100] == b"\xff" * 100
    np.testing.assert_array_equal(chunk.sums, channel_sums(rows))


def test_channel_sums_count_in_64_bits():
    pixels = np.full((2, 300, 300, 3), 255, np.uint8)
    pixels[1, 0, 0] = (1, 2, 3)
    wide = pixels.astype(np.int64)
    expected = np.stack([wide.sum((1, 2)), (wide**2).sum((1, 2))], -1)
    np.testing.assert_array_equal(channel_sums(pixels), expected)


def test_suffixes_leave_out_what_pillow_cannot_decode():
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp", ".gif"} <= image_suffixes()
    assert not {".pdf", ".eps", ".ps", ".h5", ".mpg", ".txt"} & image_suffixes()


def test_a_worker_imports_no_torch():
    code = "import sys, csham.data.decode as d; assert not {'torch', 'sklearn', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
