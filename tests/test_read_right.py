"""Nothing is read wrong in silence: files as other programs write them, each against a reader that knows nothing of
this package."""

import json
import unicodedata
from pathlib import Path

import imageio.v3 as imageio
import mrcfile
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from pseudolabel_nb.cli import read_masks
from pseudolabel_nb.core import UserError
from pseudolabel_nb.data.files import image_files, mask_numbers, read_header, read_pixels
from pseudolabel_nb.data.images import from_arrays
from pseudolabel_nb.data.mrc import read_mrc
from pseudolabel_nb.data.preparation import ignore_regions
from pseudolabel_nb.data.sources import open_images, open_unlabeled
from pseudolabel_nb.data.tiff import turn

SHAPE = (24, 40)
DISC = (np.hypot(*np.mgrid[-9:15, -12:28]) < 7).astype("u1")  # to the upper left, so that every turn shows


def folder(root: Path, masks, suffix=".png", images=None) -> Path:
    "Images, and masks that `masks[k](path)` writes or that are arrays."
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for k, m in enumerate(masks):
        Image.fromarray(
            (images[k] if images else np.random.default_rng(k).integers(0, 255, SHAPE)).astype("u1")
        ).save(root / f"images/{k}.png")
        path = root / f"masks/{k}{suffix}"
        m(path) if callable(m) else Image.fromarray(m).save(path)
    return root


def refused(call, *parts: str) -> None:
    "`call` raises one line that holds all `parts`."
    with pytest.raises(UserError) as e:
        call()
    for part in parts:
        assert part in str(e.value), f"{part!r} not in {e.value}"
    assert "\n" not in str(e.value)


# ---- 1: TIFF

TIFFS = {
    "bool": dict(photometric=None),
    "inverting": dict(photometric="miniswhite"),
    "plain": dict(photometric="minisblack"),
    "deflated": dict(photometric="miniswhite", compression="zlib", predictor=True),
    "tiles": dict(photometric="miniswhite", tile=(16, 16)),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_tiff_masks_are_the_stored_numbers(tmp_path, kind):
    stored = DISC.astype(bool) if kind == "bool" else DISC * 255
    root = folder(tmp_path, [lambda p: tifffile.imwrite(p, stored, **TIFFS[kind])] * 2, ".tif")
    np.testing.assert_array_equal(tifffile.imread(root / "masks/0.tif"), stored)
    data = open_images(root)
    np.testing.assert_array_equal(data.train.mask(0), DISC)
    asks = TIFFS[kind]["photometric"] != "minisblack"
    assert any("2 × mask asks to be shown inverted" in n for n in data.notes) == asks
    np.testing.assert_array_equal([*read_masks(root / "masks")][1], DISC)  # pseudolabel-diagnose
    whole = from_arrays(np.zeros((2, *SHAPE)), [np.ones(SHAPE, int)] * 2, ids=["0.png", "1.png"])
    np.testing.assert_array_equal(ignore_regions(whole, root / "masks").mask(0) == 255, DISC)


@pytest.mark.parametrize(
    "compression", ["raw", "tiff_lzw", "tiff_deflate", "packbits", "group3", "group4", "tiff_ccitt"]
)
@pytest.mark.parametrize("white", [0, 1])
def test_compressed_masks_of_one_bit(tmp_path, compression, white):
    image = Image.fromarray(DISC.astype(bool))
    image.save(
        tmp_path / "a.tif", compression=None if compression == "raw" else compression, tiffinfo={262: 1 - white}
    )
    with Image.open(tmp_path / "a.tif") as f:
        shown = np.asarray(f)
    with tifffile.TiffFile(tmp_path / "a.tif") as f:
        inverted = f.pages[0].photometric == 0
    np.testing.assert_array_equal(mask_numbers(tmp_path / "a.tif"), ~shown if inverted else shown)


@pytest.mark.parametrize(
    "kind, values",
    [
        ("i1", [-128, -1, 0, 127]),
        ("u4", [0, 7, 2**31, 2**32 - 1]),
        ("i2", [-(2**15), -1, 0, 2**15 - 1]),
        ("f4", [-1e30, 0, 0.5, 7]),
    ],
)
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_numbers_never_wrap(tmp_path, kind, values, compression):
    a = np.resize(np.array(values, kind), SHAPE)
    if compression:
        if kind not in ("f4",):
            pytest.skip("Pillow writes no such LZW")
        Image.fromarray(a).save(tmp_path / "a.tif", compression=compression)
    else:
        tifffile.imwrite(tmp_path / "a.tif", a)
    read = open_unlabeled(tmp_path).items[0].read_image()
    np.testing.assert_array_equal(read, a)
    assert read.dtype == a.dtype
    image = open_unlabeled(tmp_path).image(0)[0]
    assert (np.argsort(image[0, :4]) == np.argsort(values)).all()


def test_masks_of_signed_numbers(tmp_path):
    mask = DISC.astype("i1")
    mask[0] = -1
    root = folder(tmp_path / "a", [lambda p: tifffile.imwrite(p, mask)], ".tif")
    np.testing.assert_array_equal(open_images(root).train.mask(0), np.where(mask < 0, 255, mask.astype(int)))
    mask[0] = -2
    refused(lambda: open_images(folder(tmp_path / "b", [lambda p: tifffile.imwrite(p, mask)], ".tif")), "-2")


def test_two_channels_are_not_made_one(tmp_path):
    two = np.random.default_rng(0).integers(0, 255, (*SHAPE, 2)).astype("u1")
    tifffile.imwrite(tmp_path / "two.tif", two, photometric="minisblack", planarconfig="contig")
    refused(lambda: read_pixels(tmp_path / "two.tif"), "two.tif", "2 samples", "one channel")
    tifffile.imwrite(tmp_path / "two.tif", two)  # each row becomes a page
    refused(lambda: open_unlabeled(tmp_path), "two.tif", "2 channels")
    refused(lambda: from_arrays([np.random.default_rng(0).random((*SHAPE, 2))]), "(24, 40, 2)")
    refused(lambda: from_arrays([np.random.default_rng(0).random((*SHAPE, 4))]), "four channels")


def test_pages_are_images(tmp_path):
    pages = np.random.default_rng(0).integers(0, 255, (3, *SHAPE)).astype("u1")
    for kind, imagej in (("plain", False), ("imagej", True)):
        for part in ("images", "masks"):
            (tmp_path / kind / part).mkdir(parents=True)
        tifffile.imwrite(
            tmp_path / kind / "images/s.tif", pages, imagej=imagej, photometric="minisblack", metadata={"axes": "ZYX"}
        )
        tifffile.imwrite(
            tmp_path / kind / "masks/s.tif",
            np.stack([np.roll(DISC * 255, k) for k in range(3)]),
            photometric="minisblack",
        )
        data = open_images(tmp_path / kind)
        assert data.train.ids == ("s.tif/0", "s.tif/1", "s.tif/2")
        for k, i in enumerate(data.train.items):
            np.testing.assert_array_equal(i.read_image(), tifffile.imread(tmp_path / kind / "images/s.tif")[k])
            np.testing.assert_array_equal(data.train.mask(k), np.roll(DISC, k))
    tifffile.imwrite(tmp_path / "plain/masks/s.tif", np.zeros((2, *SHAPE), "u1"), photometric="minisblack")
    refused(lambda: open_images(tmp_path / "plain"), "2 masks", "3 images")
    tifffile.imwrite(tmp_path / "c.tif", pages, imagej=True, metadata={"axes": "CYX"})
    refused(lambda: read_header(tmp_path / "c.tif", stack=True), "c.tif", "CYX")


def test_masks_of_cellpose_are_named(tmp_path):
    root = folder(tmp_path, [DISC])
    (root / "masks/0.png").unlink()
    np.save(root / "masks/0_seg.npy", {"masks": DISC}, allow_pickle=True)
    refused(lambda: open_images(root), "0_seg.npy", "pickle", "Save masks as PNG")


# ---- 2 and 15: palettes, transparency

PALETTES = {
    "quantized": lambda: Image.fromarray(DISC * 255).convert("RGB").quantize(2),
    "web": lambda: Image.fromarray(DISC * 255).convert("RGB").convert("P"),
    "colors": lambda: with_palette(DISC, [0, 0, 0, 128, 0, 0]),
    "white first": lambda: with_palette(1 - DISC, [255] * 3 + [0] * 3),
}


def with_palette(indices, palette):
    image = Image.fromarray(indices)
    image.putpalette(palette)
    return image


@pytest.mark.parametrize("kind", PALETTES)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_palettes(tmp_path, kind, suffix):
    root = folder(tmp_path, [lambda p: PALETTES[kind]().save(p)] * 2, suffix)
    with Image.open(root / f"masks/0{suffix}") as f:
        indices, colors = np.asarray(f), np.asarray(f.convert("RGB"))
    gray = (colors == colors[..., :1]).all()
    np.testing.assert_array_equal(mask_numbers(root / f"masks/0{suffix}"), colors[..., 0] if gray else indices)
    assert gray == (kind != "colors")
    np.testing.assert_array_equal(open_images(root).train.mask(0), DISC)


def test_palette_of_class_ids_is_read_alike_in_all_files(tmp_path):
    palette, ids = [0, 0, 0, 70, 70, 70, 128, 0, 0], [DISC, DISC * 2, DISC + 2 * np.roll(DISC, 15) * (DISC == 0)]
    root = folder(tmp_path, [lambda p, m=m: with_palette(m.astype("u1"), palette).save(p) for m in ids])
    data = open_images(root, multiclass=True)
    for k, m in enumerate(ids):
        np.testing.assert_array_equal(data.train.mask(k), m)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_gray_png_of_few_bits(tmp_path, bits):
    "The numbers that the file holds, not what they are shown as."
    import zlib

    width, per = SHAPE[1], 8 // bits
    rows = DISC.reshape(SHAPE[0], width // per, per) << np.arange(per)[::-1] * bits
    chunk = lambda kind, data: len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    head = width.to_bytes(4, "big") + SHAPE[0].to_bytes(4, "big") + bytes([bits, 0, 0, 0, 0])
    lines = b"".join(b"\0" + r.astype("u1").tobytes() for r in np.bitwise_or.reduce(rows, axis=2))
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    )
    np.testing.assert_array_equal(mask_numbers(tmp_path / "a.png"), DISC)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency(tmp_path, mode):
    gray = np.stack([DISC * 255] * (len(mode) - 1), -1)
    alpha = lambda a: np.dstack([gray, a]).astype("u1")
    root = folder(tmp_path / "a", [alpha(np.full(SHAPE, 255)), alpha(DISC * 255)])
    for k in range(2):
        np.testing.assert_array_equal(
            open_images(root).train.mask(k), imageio.imread(root / f"masks/{k}.png")[..., 0] // 255
        )
    only = np.dstack([255 + 0 * gray, DISC * 255]).astype("u1")
    refused(
        lambda: open_images(folder(tmp_path / "b", [only])),
        "0.png",
        "transparency varies, and nothing else",
        "as gray",
    )
    refused(
        lambda: open_images(folder(tmp_path / "c", [alpha(np.where(DISC, 0, 255))])),
        "transparency varies",
        "black ground",
    )


# ---- 3 and 8: what the numbers mean


def test_two_conventions_in_one_folder(tmp_path):
    masks = [DISC, DISC * 255]
    root = folder(tmp_path / "files", masks)
    refused(lambda: open_images(root), "1.png holds 255", "0.png holds 1", "nonzero")
    np.testing.assert_array_equal(open_images(root, mask_values="nonzero").train.mask(1), DISC)
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz/train.npz", images=np.zeros((2, *SHAPE)), masks=np.stack(masks))
    refused(lambda: open_images(tmp_path / "npz"), "mask 1, holds 255", "mask 0, holds 1")
    refused(lambda: from_arrays(np.zeros((2, *SHAPE)), masks), "image_1 holds 255", "image_0")
    both = DISC.copy()
    both[0] = 255
    assert set(np.unique(open_images(folder(tmp_path / "both", [DISC, both, both * (both > 1)])).train.mask(2))) == {
        0,
        255,
    }
    assert from_arrays(np.zeros((2, *SHAPE)), [DISC, both]).n_classes == 2
    assert (from_arrays(np.zeros((2, *SHAPE)), [DISC, np.full(SHAPE, 255)]).mask(1) == 255).all()  # nothing labeled
    np.savez(
        tmp_path / "npz/train.npz", images=np.zeros((1, *SHAPE)), masks=np.where(both == 255, -1, DISC * 255.0)[None]
    )
    refused(lambda: open_images(tmp_path / "npz"), "255", "-1")


def test_more_than_two_classes_only_when_asked_for(tmp_path):
    from scipy.ndimage import label

    objects = label(np.pad(np.kron(np.eye(3), np.ones((6, 8))), ((0, 6), (0, 16))))[0]
    refused(lambda: from_arrays([np.zeros(SHAPE)], [objects]), "the value 3", "n_classes=4", "mask > 0")
    assert from_arrays([np.zeros(SHAPE)], [objects], n_classes=4).n_classes == 4
    refused(lambda: from_arrays([np.zeros(SHAPE)], [objects], n_classes=3), "the value 3", "n_classes=3")
    refused(lambda: open_images(folder(tmp_path, [objects.astype("u1")])), "0, 1, 2, 3", "nonzero", "multiclass=True")


# ---- 4: orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, orientation):
    stored = np.random.default_rng(0).integers(0, 255, (*SHAPE, 3)).astype("u1")
    exif = Image.Exif()
    exif[274] = orientation
    for suffix in (".jpg", ".png"):
        Image.fromarray(stored).save(tmp_path / f"a{suffix}", exif=exif)
        with Image.open(tmp_path / f"a{suffix}") as f:
            shown = np.asarray(ImageOps.exif_transpose(f))
        np.testing.assert_array_equal(read_pixels(tmp_path / f"a{suffix}"), shown)
        assert read_header(tmp_path / f"a{suffix}").shape == shown.shape[:2]
    for name, options in {"lzw.tif": dict(compression="tiff_lzw"), "raw.tif": {}}.items():
        Image.fromarray(stored).save(tmp_path / name, tiffinfo={274: orientation}, **options)
        np.testing.assert_array_equal(read_pixels(tmp_path / name), turn(stored, orientation))
        assert read_header(tmp_path / name).shape == shown.shape[:2]


@pytest.mark.parametrize("orientation", [3, 6])
def test_labels_lie_on_the_turned_image(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.fromarray(DISC * 200)
    shown = turn(DISC, orientation)
    root = folder(tmp_path / "masks", [shown])
    (root / "images/0.png").unlink()
    image.save(root / "images/0.jpg", exif=exif, quality=95)
    data = open_images(root)
    assert ((data.train.items[0].read_image() > 100) == data.train.mask(0)).all()
    assert any("1 × image is turned" in n for n in data.notes)
    y, x = (int(v.min()) for v in np.nonzero(shown))
    h, w = (int(np.ptp(v)) + 1 for v in np.nonzero(shown))
    size = dict(zip(("height", "width"), shown.shape))
    document = dict(
        images=[dict(id=0, file_name="0.jpg", **size)],
        annotations=[dict(id=0, image_id=0, category_id=1, iscrowd=0, segmentation=[], bbox=[x, y, w, h])],
        categories=[dict(id=1, name="cell")],
    )
    (tmp_path / "coco/train").mkdir(parents=True)
    image.save(tmp_path / "coco/train/0.jpg", exif=exif, quality=95)
    (tmp_path / "coco/train/_annotations.coco.json").write_text(json.dumps(document))
    data = open_images(tmp_path / "coco")
    assert (data.train.items[0].read_image() > 100)[
        data.train.mask(0) == 1
    ].mean() > 0.95 and "1 images turned" in data.notes[0]
    if orientation == 6:
        document["images"][0].update(height=SHAPE[0], width=SHAPE[1])
        (tmp_path / "coco/train/_annotations.coco.json").write_text(json.dumps(document))
        refused(lambda: open_images(tmp_path / "coco"), "0.jpg", "orientation tag", "24 × 40", "exiftool")
        Image.fromarray(DISC).save(root / "masks/0.png")
        refused(lambda: open_images(root), "0.png", "orientation tag", "exiftool")


# ---- 5: MRC


def test_bytes_without_a_sign(tmp_path):
    values = np.random.default_rng(0).integers(26, 256, SHAPE).astype("u1")
    values[0, :2] = 26, 255
    with mrcfile.new(tmp_path / "a.mrc") as f:
        f.set_data(values.view("i1"))
    assert (read_mrc(tmp_path / "a.mrc") == values.view("i1")).all()  # the header's least value is negative
    with mrcfile.open(tmp_path / "a.mrc", "r+") as f:
        f.header.dmin, f.header.dmax = 26, 255
    with mrcfile.open(tmp_path / "a.mrc", permissive=True) as f:
        np.testing.assert_array_equal(read_mrc(tmp_path / "a.mrc"), f.data.view("u1"))
    with mrcfile.open(tmp_path / "a.mrc", "r+") as f:
        f.header.dmin, f.header.dmax = 0, 127
    assert read_mrc(tmp_path / "a.mrc").dtype == np.int8


# ---- 9: pictures


def test_overlay_refuses_what_it_cannot_mean():
    import torch
    from pseudolabel_nb.widgets.overlay import show_overlay

    image = np.random.default_rng(0).random(SHAPE)
    assert "1.000" in show_overlay(image, DISC, truth=DISC).axes[0].get_title()
    refused(lambda: show_overlay(image, DISC * 255, truth=DISC), "mask holds 0 and 255 only", "mask == 255")
    refused(lambda: show_overlay(image, DISC, truth=DISC * 255), "truth holds 0 and 255 only")
    refused(lambda: show_overlay(image, DISC * 0.5), "0.5", "threshold it first")
    refused(lambda: show_overlay(image, probs=image * 8 - 4), "expected probabilities", "softmax")
    refused(lambda: show_overlay(image, probs=np.full(SHAPE, np.nan)), "expected probabilities")
    around = np.where(np.roll(DISC, 3) | DISC, 255, 0)  # only background was kept
    assert "F1" not in show_overlay(image, around * (image < 2), truth=DISC * (np.arange(SHAPE[1]) < 9)).axes[
        0
    ].get_title().replace("no F1", "")
    probs = torch.tensor(image, dtype=torch.bfloat16, requires_grad=True)
    assert show_overlay(torch.tensor(image, requires_grad=True), torch.tensor(DISC), probs=probs).axes


# ---- 17 and 20: names and links


@pytest.mark.parametrize("on_disk, in_text", [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_are_compared_in_one_form(tmp_path, on_disk, in_text):
    disk, text = (unicodedata.normalize(form, "café.png") for form in (on_disk, in_text))
    root = folder(tmp_path / "a", [DISC])
    (root / "images/0.png").rename(root / "images" / disk)
    (root / "masks/0.png").rename(root / "masks" / text)
    assert len(open_images(root).train) == 1
    (root / "groups.csv").write_text(f"image,group\n{text},g\n", encoding="utf-8")
    assert open_images(root, groups=root / "groups.csv").train.groups == ("g",)
    document = dict(
        images=[dict(id=0, file_name=text, height=SHAPE[0], width=SHAPE[1])], annotations=[], categories=[]
    )
    (tmp_path / "coco/train").mkdir(parents=True)
    (root / "images" / disk).rename(tmp_path / "coco/train" / disk)
    (tmp_path / "coco/train/_annotations.coco.json").write_text(json.dumps(document))
    assert open_images(tmp_path / "coco").train.image(0).shape == (1, *SHAPE)


def test_links_are_followed(tmp_path):
    root = folder(tmp_path / "disk", [DISC, DISC])
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind / "grid").mkdir(parents=True)
        (tmp_path / "data" / kind / "0.png").symlink_to(root / kind / "0.png")
        (tmp_path / "data" / kind / "more").symlink_to(root / kind)
        (tmp_path / "data" / kind / "grid" / "above").symlink_to(tmp_path / "data" / kind)  # a circle
    data = open_images(tmp_path / "data")
    assert data.train.ids == ("0.png", "more/0.png", "more/1.png")
    np.testing.assert_array_equal(data.train.mask(0), DISC)
    (tmp_path / "data/images/gone.png").symlink_to(tmp_path / "nowhere.png")
    refused(lambda: image_files(tmp_path / "data/images"), "gone.png", "not there", "mend the link")
