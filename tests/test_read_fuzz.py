"""Seeded damage to valid files: each is read as an independent reader reads it, or refused in one line; nothing else
may happen."""

import logging
import warnings
import zlib
from pathlib import Path
from random import Random

import mrcfile
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from pseudolabel_nb.core import UserError
from pseudolabel_nb.data.sources import open_images

ROUNDS = 150  # damaged folders of each format
SHAPE = (12, 20)
rng = np.random.default_rng(0)
DISC = (np.hypot(*np.mgrid[-5:7, -8:12]) < 4).astype("u1")
GRAY = rng.integers(0, 256, SHAPE).astype("u1")
COLOR = rng.integers(0, 256, (*SHAPE, 3)).astype("u1")


def palette(path):
    Image.fromarray(DISC * 255).convert("RGB").quantize(2).save(path)


def turned(path):
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(GRAY).save(path, exif=exif)


def mrc(array):
    def write(path):
        with mrcfile.new(path) as f:
            f.set_data(array)

    return write


def saved(array, **options):
    return lambda path: Image.fromarray(array).save(path, **options)


def tiff(array, **options):
    return lambda path: tifffile.imwrite(path, array, **options)


FORMATS = {  # ways to write an image, ways to write a mask
    ".png": (
        [
            saved(GRAY),
            saved(COLOR),
            saved(rng.integers(0, 65536, SHAPE).astype("u2")),
            saved(np.dstack([COLOR, GRAY])),
            turned,
        ],
        [saved(DISC * 255), saved(DISC), saved(DISC.astype(bool)), palette, saved(np.dstack([DISC * 255] * 3))],
    ),
    ".jpg": ([saved(GRAY), saved(COLOR), turned], [saved(DISC * 255, quality=95)]),
    ".tif": (
        [
            tiff(GRAY),
            tiff(COLOR, photometric="rgb"),
            tiff(rng.normal(size=SHAPE).astype("f4")),
            tiff(GRAY, compression="zlib"),
            saved(GRAY, compression="tiff_lzw"),
            tiff(rng.integers(0, 2**32, SHAPE).astype("u4"), byteorder=">"),
        ],
        [
            tiff(DISC * 255),
            tiff(DISC.astype(bool)),
            tiff(DISC * 255, photometric="miniswhite"),
            saved(DISC.astype(bool), compression="group4"),
            palette,
            saved(DISC * 255, compression="packbits"),
        ],
    ),
    ".mrc": (
        [mrc(GRAY.astype("f4")), mrc(GRAY.astype("i2")), mrc((GRAY // 2).astype("i1")), mrc(GRAY.astype("u2"))],
        [mrc(DISC.astype("i1")), mrc(DISC.astype("u2"))],
    ),
}


def damage(data: bytes, random: Random) -> bytes:
    """One to three small changes: bits, bytes, a stretch left out, doubled or zeroed, the end cut off; half of them
    near the beginning."""
    for _ in range(random.randint(1, 3)):
        at = random.randrange(min(len(data), random.choice([64, 256, len(data)])))
        n = random.choice([1, 2, 4, 16])
        what, start, end = random.randrange(6), data[:at], data[at + n :]
        if what == 0:
            data = start + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
        else:
            data = (
                start + random.randbytes(n) + end,
                start + end,
                start + data[at : at + n] * 2 + end,
                start + bytes(n) + end,
                data[: -n * random.randint(1, 20)],
            )[what - 1]
        if not data:
            return data
    return with_sums(data) if random.random() < 0.5 else data


def with_sums(data: bytes) -> bytes:
    "The chunks of a PNG with the checksums that belong to them, so that damage reaches the pixels."
    if not data.startswith(b"\x89PNG"):
        return data
    found, at = data[:8], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunk = data[at + 4 : at + 8 + size]
        found += data[at : at + 4] + chunk + zlib.crc32(chunk).to_bytes(4, "big")
        at += 12 + size
    return found


def reference(path: Path, mask: bool, image: int = 0) -> np.ndarray:
    """What Pillow, tifffile or mrcfile reads; what Pillow inverts is turned back, and it is not asked where it changes
    numbers."""
    if path.suffix == ".mrc":
        return mrc_reference(path, mask, image)
    if path.suffix == ".tif":
        return tiff_reference(path, mask, image)
    with Image.open(path) as f:
        bits, colored = (
            path.read_bytes()[24] if path.suffix == ".png" else 8,
            f.mode not in ("1", "L", "I;16", "I", "LA"),
        )
        if path.suffix == ".png" and bits == 16 and colored:
            raise AssertionError("Pillow shortens it: not written here")
        a_tag = path.suffix == ".jpg" or "exif" in f.info
        try:
            f = ImageOps.exif_transpose(f) if a_tag else f
        except SyntaxError:
            pass  # a damaged tag turns nothing
        a = numbers(np.asarray(f), np.asarray(f.convert("RGB")), f.mode, mask)
        return a // {2: 85, 4: 17}.get(bits, 1) if path.suffix == ".png" and f.mode == "L" else a


def numbers(a: np.ndarray, colors: np.ndarray, mode: str, mask: bool) -> np.ndarray:
    "Colors of a palette where they are wanted, or gray; no transparency."
    if mode == "P":
        return colors if not mask else colors[..., 0] if (colors == colors[..., :1]).all() else a
    if mode in ("LA", "RGBA"):
        a = a[..., :-1]
    return a[..., 0] if a.ndim == 3 and (mask or a.shape[2] == 1) else a


def tiff_reference(path: Path, mask: bool, image: int) -> np.ndarray:
    with tifffile.TiffFile(path) as f:
        page = f.pages[image]
        plain, photometric, bits, way = (
            page.photometric in (0, 1, 2, 4) and page.samplesperpixel in (1, 3),
            page.photometric,
            page.bitspersample,
            page.tags.get(274),
        )
        try:
            stored = page.asarray() if plain or photometric == 3 else None
        except ValueError:
            stored = None
        mapped = (
            None
            if photometric != 3 or page.colormap is None
            else (page.colormap.T >> 8 * (page.colormap.max() > 255)).astype("u1")
        )
    try:
        with Image.open(path) as f:
            f.seek(image)
            inverted, mode = photometric == 0 and bits < 16 and f.mode in ("1", "L"), f.mode
            a, colors = np.array(f), np.asarray(f.convert("RGB"))
    except Exception:
        if stored is None:
            raise
        return numbers(stored, stored, "L", False) if mapped is None else numbers(stored, mapped[stored], "P", mask)
    a = ~a if inverted else a
    a = a // {2: 85, 4: 17}.get(bits, 1) if a.dtype == np.uint8 and mode == "L" else a
    if stored is not None and (way is None or way.value == 1):  # two readers: bits alike, types by tifffile
        if stored.dtype.itemsize == a.dtype.itemsize:
            assert (stored.view(a.dtype) == a).all()
        a = stored
    return numbers(a, colors, mode, mask)


def mrc_reference(path: Path, mask: bool, image: int) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mrcfile.open(path, permissive=True) as f:
            a = np.array(f.data).reshape(-1, *f.data.shape[-2:])[image]
            unsigned = mask or 0 <= f.header.dmin <= f.header.dmax <= 255 and f.header.dmax > 127
    return a.view("u1") if a.dtype == np.int8 and unsigned else a


def meaning(values: np.ndarray) -> np.ndarray:
    "The target that a mask's numbers stand for."
    found = set(np.unique(values).tolist())
    assert found <= {0, 1, 255} or found <= {0, 1, -1}, f"numbers {found} were accepted"
    return np.where(values == -1, 255, values) if {1, 255} <= found or -1 in found else (values > 0).astype(int)


@pytest.mark.parametrize("suffix", FORMATS)
def test_damaged_files(tmp_path, suffix):
    logging.disable(logging.ERROR)  # tifffile's
    read = 0
    try:
        for seed in range(ROUNDS):
            read += one(tmp_path / f"{seed}", suffix, Random(f"{suffix} {seed}"))
    finally:
        logging.disable(logging.NOTSET)
    assert 1 < read < ROUNDS  # some are read, some refused


def one(root: Path, suffix: str, random: Random) -> bool:  # was it read?
    for kind, ways in zip(("images", "masks"), FORMATS[suffix]):
        (root / kind).mkdir(parents=True)
        random.choice(ways)(root / kind / f"0{suffix}")
    hit = root / random.choice(["images", "masks"]) / f"0{suffix}"
    hit.write_bytes(damage(hit.read_bytes(), random))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train = open_images(root).train
            pairs = [(item.read_image(), train.mask(k)) for k, item in enumerate(train.items)]
    except UserError as e:
        assert "\n" not in str(e)
        assert len(str(e)) < 700
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k, (image, mask) in enumerate(pairs):
            np.testing.assert_array_equal(
                image, reference(root / f"images/0{suffix}", False, k), err_msg=f"{root} image"
            )
            values = reference(root / f"masks/0{suffix}", True, k)
            np.testing.assert_array_equal(
                mask, values > 127 if suffix == ".jpg" else meaning(values), err_msg=f"{root} mask"
            )
    return True


def test_damaged_npz(tmp_path):
    read, path = 0, tmp_path / "train.npz"
    for seed in range(ROUNDS):
        random = Random(seed)
        save = random.choice([np.savez, np.savez_compressed])
        kind = random.choice(["u1", "i1", "f4"])
        save(
            path,
            images=random.choice([GRAY, COLOR, GRAY.astype("f4")])[None],
            masks=(DISC.astype(kind) if kind != "u1" else DISC * 255)[None],
        )
        path.write_bytes(damage(path.read_bytes(), random))
        try:
            train = open_images(tmp_path).train
            image, mask = train.items[0].read_image(), train.mask(0)
        except UserError as e:
            assert "\n" not in str(e)
            continue
        with np.load(path, allow_pickle=False) as f:
            np.testing.assert_array_equal(image, f["images"][0])
            np.testing.assert_array_equal(mask, meaning(f["masks"][0]))
        read += 1
    assert 1 < read < ROUNDS
