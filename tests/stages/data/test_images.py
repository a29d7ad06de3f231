from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError
from stages.data.images import (
    DecodedImages,
    ImageFormat,
    UnreadableImage,
    decode,
    decode_all,
    unreadable_files,
)
from tests.stages.data.conftest import MakeFolder, some_images

RGB8 = ImageFormat(8, 3, "bilinear")
GREY8 = ImageFormat(8, 1, "bilinear")


def test_a_transparent_image_is_laid_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    decoded = decode(tmp_path / "a.png", RGB8)
    assert decoded[0, 0].tolist() == [10, 20, 30]
    assert decoded[7, 7].tolist() == [255, 255, 255]


def test_a_palette_is_resolved_with_its_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / "p.png")
    assert decode(tmp_path / "p.png", RGB8)[3, 3].tolist() == [200, 100, 50]
    image.save(tmp_path / "t.png", transparency=1)
    assert decode(tmp_path / "t.png", RGB8)[3, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bit_grey_keeps_its_range(tmp_path: Path, suffix: str) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / f"w{suffix}")
    decoded = decode(tmp_path / f"w{suffix}", GREY8)[..., 0]
    assert np.array_equal(decoded, np.rint(ramp / 257.0).astype(np.uint8))


def test_thirty_two_bit_pixels_are_refused_with_the_reason(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(UnreadableImage, match="32-bit"):
        decode(tmp_path / "f.tif", GREY8)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=95)
    red, green, blue = decode(tmp_path / "c.jpg", RGB8)[4, 4].tolist()
    assert red > 180
    assert green < 80
    assert blue < 80


def test_exif_orientation_turns_the_image_upright(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:, :4] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    Image.fromarray(pixels).save(tmp_path / "e.png", exif=exif)
    decoded = decode(tmp_path / "e.png", GREY8)[..., 0]
    assert (decoded[:4] == 255).all()
    assert (decoded[4:] == 0).all()


def test_grey_is_repeated_and_colour_is_weighed() -> None:
    grey = some_images(1, (8, 8))[0]
    assert np.array_equal(decode(grey, RGB8), np.repeat(grey[..., None], 3, axis=2))
    colour = some_images(1, (8, 8, 3))[0]
    luma = np.asarray(Image.fromarray(colour).convert("L"))
    assert np.array_equal(decode(colour, GREY8)[..., 0], luma)


def test_reducing_is_antialiased_except_for_nearest() -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    smooth = decode(stripes, GREY8)
    assert 100 < smooth.min() <= smooth.max() < 155
    hard = decode(stripes, ImageFormat(8, 1, "nearest"))
    assert set(np.unique(hard).tolist()) <= {0, 255}


def test_bad_files_are_named_ten_at_most_with_the_command_that_removes_them(
    tmp_path: Path, make_folder: MakeFolder
) -> None:
    make_folder(tmp_path, {"a": 12}, suffix=".jpg")
    paths = sorted((tmp_path / "a").iterdir())
    for path in paths[:11]:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError) as caught:
        decode_all(paths, RGB8, workers=2)
    error = caught.value
    assert "11 images" in error.what
    assert str(paths[0]) in error.why
    assert str(paths[9]) in error.why
    assert str(paths[10]) not in error.why
    assert "1 more" in error.why
    assert error.hint.startswith("replace them")
    assert f"rm {paths[0]}" in error.hint


def test_every_kind_of_damage_is_a_finding_and_no_traceback(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, {"a": 1})
    whole = (tmp_path / "a" / "image000.png").read_bytes()
    bad = {
        "empty.png": b"",
        "text.png": b"this is no image",
        "cut.png": whole[: len(whole) // 2],
        "flipped.png": whole[:60] + bytes(255 - byte for byte in whole[60:]),
        "cut.webp": b"RIFF\x00\x10\x00\x00WEBPVP8 ",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    paths = [tmp_path / name for name in [*bad, "link.png"]]
    reasons = dict(unreadable_files([*paths, tmp_path / "a" / "image000.png"], RGB8, workers=2))
    assert set(reasons) == set(paths)
    assert all(reasons.values())


def test_caching_does_not_change_the_pixels(tmp_path: Path, make_folder: MakeFolder) -> None:
    make_folder(tmp_path, {"a": 9})
    paths = sorted((tmp_path / "a").iterdir())
    cached = DecodedImages(paths, RGB8, workers=2, cached=True)
    uncached = DecodedImages(paths, RGB8, workers=1, cached=False)
    for indices in ([3, 1, 3], [0, 8], list(range(9))):
        batch = cached.batch(np.array(indices))
        assert batch.flags.c_contiguous
        assert batch.dtype == np.uint8
        assert np.array_equal(batch, uncached.batch(np.array(indices)))
        batch[:] = 0  # a new array: the change must not appear in the next batch
