"""Micrographs and coordinates as programs of the field write them: each format by hand, in bytes or text, and whatever
can be wrong with it."""
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image

import pseudolabel_nb as pnb
from pseudolabel_nb.core import UserError
from pseudolabel_nb.data.coordinates import Picks, _words, image_key, match_names, read_coordinates
from pseudolabel_nb.data.images import from_arrays
from pseudolabel_nb.data.mrc import read_mrc, read_mrc_header
from pseudolabel_nb.data.orientation import orientation, read_picks
from pseudolabel_nb.data.preparation import (
    Preparation, fourier_resize, ignore_regions, mark_picks, picks_to_mask, prepare, resized_picks)
from pseudolabel_nb.data.sources import open_images, open_unlabeled

TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}


def mrc_bytes(array, mode: int, order: str = "<", pixel: float = 1.5, extended: int = 0, word: bytes = b"MAP ",
              imod: int | None = None, shape=None) -> bytes:
    "An MRC file by the description of the format, without any library."
    nz, ny, nx = shape or (array if array.ndim == 3 else array[None]).shape
    head = bytearray(1024)
    struct.pack_into(f"{order}10i3f3f", head, 0, nx, ny, nz, mode, 0, 0, 0, nx, ny, nz, nx * pixel, ny * pixel,
                     nz * pixel, 90, 90, 90)
    struct.pack_into(f"{order}3i", head, 64, 1, 2, 3)
    struct.pack_into(f"{order}2i", head, 88, 0, extended)
    if imod is not None: struct.pack_into(f"{order}2i", head, 152, 1146047817, imod)
    head[208:212], head[212:216] = word, b"\x44\x44\0\0" if order == "<" else b"\x11\x11\0\0"
    data = array.astype(order + TYPES[mode]).tobytes() if mode in TYPES else array.tobytes()
    return bytes(head) + b"x" * extended + data


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def said(call, *words) -> str:
    "The one line of the `UserError` that a call must raise; it holds these words."
    with pytest.raises(UserError) as e: call()
    text = str(e.value)
    assert "\n" not in text and len(text) < 700 and all(w in text for w in words), text
    return text


# ---- MRC

COUNTS = np.random.default_rng(0).integers(0, 100, (12, 17))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("mode", TYPES)
@pytest.mark.parametrize("extended", [0, 80])
def test_every_mode_in_both_byte_orders(tmp_path, mode, order, extended):
    path = put(tmp_path / "a.mrc", mrc_bytes(COUNTS, mode, order, extended=extended))
    h = read_mrc_header(path)
    assert (h.shape, h.images, h.mode, h.pixel, h.offset) == ((12, 17), 1, mode, 1.5, 1024 + extended)
    found = read_mrc(path)
    np.testing.assert_array_equal(found, COUNTS)
    assert found.dtype.str[1:] == TYPES[mode]
    images = open_unlabeled(tmp_path)
    np.testing.assert_allclose(images.image(0)[0], (COUNTS - COUNTS.mean()) / COUNTS.std(), atol=1e-3)
    assert images.items[0].pixel == 1.5


def test_nibbles_and_imods_unsigned_bytes(tmp_path):
    values = np.random.default_rng(1).integers(0, 16, (5, 7)).astype("u1")
    padded = np.pad(values, ((0, 0), (0, 1)))
    path = put(tmp_path / "packed.mrc", mrc_bytes(padded[:, ::2] | padded[:, 1::2] << 4, 101, shape=(1, 5, 7)))
    np.testing.assert_array_equal(read_mrc(path), values)
    bright = np.array([[0, 127, 128, 255]], "u1")
    for imod, truth in ((0, bright), (1, bright.view("i1")), (None, bright.view("i1"))):
        np.testing.assert_array_equal(
            read_mrc(put(tmp_path / "imod.mrc", mrc_bytes(bright.view("i1"), 0, imod=imod))), truth)


def test_mrcfile_reads_what_is_read_here(tmp_path):
    import mrcfile
    for mode in TYPES:
        for order in "<>":
            path = put(tmp_path / "a.mrc", mrc_bytes(COUNTS, mode, order))
            with mrcfile.open(path, permissive=True) as f:
                np.testing.assert_array_equal(np.squeeze(f.data), read_mrc(path))
    with mrcfile.new(tmp_path / "stack.mrcs") as f: f.set_data(np.stack([COUNTS, COUNTS * 2]).astype("f4"))
    np.testing.assert_array_equal(read_mrc(tmp_path / "stack.mrcs", 1), COUNTS * 2)


def test_a_crop_reads_no_more_than_it_must(tmp_path):
    path = tmp_path / "large.mrc"
    with open(path, "wb") as f:
        f.write(mrc_bytes(np.zeros((0, 0, 0)), 2, shape=(1, 200_000, 50_000)))
        f.truncate(1024 + 200_000 * 50_000 * 4) # 40 GB that are not on the disk
    assert read_mrc_header(path).shape == (200_000, 50_000)
    assert read_mrc(path)[150_000:150_003, 40_000:40_002].sum() == 0
    large = put(tmp_path / "m" / "a.mrc", mrc_bytes(np.random.default_rng(0).normal(size=(2100, 2048)), 2))
    kept = open_unlabeled(large.parent)._decoded(0).raw
    assert isinstance(kept, np.memmap) or isinstance(kept.base, np.memmap)


def test_stacks_and_masks_side_by_side(tmp_path):
    stack = np.random.default_rng(0).normal(size=(11, 16, 20))
    masks = (stack > 1).astype("i1")
    put(tmp_path / "images" / "s.mrcs", mrc_bytes(stack, 2))
    put(tmp_path / "masks" / "s.mrcs", mrc_bytes(-masks, 0)) # 255 as a byte with a sign
    put(tmp_path / "images" / "t.mrc", mrc_bytes(stack[0], 2, ">"))
    Image.fromarray(masks[0].view("u1") * 255).save(tmp_path / "masks" / "t.png")
    data = open_images(tmp_path)
    assert data.train.ids[:2] + data.train.ids[-1:] == ("s.mrcs/00", "s.mrcs/01", "t.mrc") and len(data.train) == 12
    for k in range(11): np.testing.assert_array_equal(data.train.mask(k), masks[k])
    np.testing.assert_allclose(data.train.image(10)[0], (stack[10] - stack[10].mean()) / stack[10].std(), atol=1e-4)
    assert "pixel size 1.5 Å" in data.notes
    assert np.array_equal(pickle.loads(pickle.dumps(data)).train.image(3), data.train.image(3)) # noqa: S301
    put(tmp_path / "masks" / "s.mrcs", mrc_bytes(-masks[:5], 0))
    said(lambda: open_images(tmp_path), "s.mrcs", "5 masks", "11 images")


def test_micrographs_that_are_none(tmp_path):
    whole = mrc_bytes(COUNTS, 2)
    head = bytearray(whole); head[208:212] = b"\0\0\0\0"
    np.testing.assert_array_equal(read_mrc(put(tmp_path / "old.mrc", bytes(head))), COUNTS) # files before the word MAP
    for name, data, words in (
        ("cut", whole[:-1], ("truncated", "1,840", "1,839")), ("half", whole[:600], ("truncated",)),
        ("empty", b"", ("truncated",)), ("long", whole + b"12345678", ("header and data do not belong together",)),
        ("text", b"coordinates\n" * 200, ("no MRC file",)),
        ("zero", mrc_bytes(COUNTS, 2, shape=(1, 0, 17)), ("sizes of at least 1",)),
        ("complex", mrc_bytes(COUNTS.astype("<c8"), 4, shape=(1, 12, 17)), ("mode 4", "complex")),
        ("complex16", mrc_bytes(np.zeros((12, 34), "<i2"), 3, shape=(1, 12, 17)), ("mode 3", "complex")),
        ("color", mrc_bytes(np.zeros((12, 51), "u1"), 16, shape=(1, 12, 17)), ("mode 16", "colors"))
    ):
        path = put(tmp_path / f"{name}.mrc", data)
        said(lambda path=path: read_mrc(path), str(path), *words)
    said(lambda: read_mrc(tmp_path / "gone.mrc"), "no such file")
    head = bytearray(whole); head[92:96] = (2**31 - 2**20).to_bytes(4, "little") # an extended header of two gigabytes
    tracemalloc.start()
    said(lambda: read_mrc(put(tmp_path / "boast.mrc", bytes(head))), "boast.mrc", "truncated")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    said(lambda: read_mrc(tmp_path / "old.mrc", 1), "image 1 asked for", "0 to 0")
    for name, array, words in (("nan", np.where(COUNTS == COUNTS.max(), np.nan, COUNTS), "NaN"),
                               ("inf", np.where(COUNTS == COUNTS.max(), np.inf, COUNTS), "infinite"),
                               ("flat", np.full((12, 17), 3), "every pixel is 3")):
        folder = tmp_path / name
        put(folder / "a.mrc", mrc_bytes(array, 2))
        said(lambda folder=folder: open_unlabeled(folder).image(0), "a.mrc", words)


def test_a_stack_where_one_image_is_due(tmp_path):
    put(tmp_path / "a.mrc", mrc_bytes(np.stack([COUNTS] * 2), 2))
    (tmp_path / "_annotations.coco.json").write_text(
        '{"images": [{"id": 1, "file_name": "a.mrc", "height": 12, "width": 17}], "annotations": [], "categories": []}')
    said(lambda: open_images(tmp_path), "stack of 2 images")


# ---- coordinates

STAR2 = ("\ndata_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n"
         "_rlnAutopickFigureOfMerit #3\n   30.0   50.5   0.9\n  300.0  120.0   0.1 \n\n")
STAR31 = """
# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnMicrographOriginalPixelSize #3
1 opticsGroup1 1.770000


# version 30001

data_particles

loop_
_rlnMicrographName #1
_rlnCoordinateX #2
_rlnCoordinateY #3
_rlnOpticsGroup #4
MotionCorr/job002/b.mrc 7.0 8.0 1
MotionCorr/job002/a.mrc 30.0 50.5 1
MotionCorr/job002/a.mrc 300.0 120.0 1
"""
CENTRES = [[30, 50.5], [300, 120]]


class Sized:
    "Images of known size."
    def __init__(self, *ids, size=(200, 400)): self.ids, self.size = ids, size
    def shape(self, i): return self.size


def cs_bytes(tmp_path, **changes):
    fields = [("uid", "<u8"), ("location/micrograph_uid", "<u8"), ("location/micrograph_path", "S80"),
              ("location/micrograph_shape", "<u4", (2,)), ("location/center_x_frac", "<f4"),
              ("location/center_y_frac", "<f4"), ("pick_stats/ncc_score", "<f4")]
    table = np.zeros(2, fields)
    table["location/micrograph_path"] = b"J2/motioncorrected/001234567890123456789_a_patch_aligned_doseweighted.mrc"
    table["location/micrograph_shape"] = 200, 400 # height, width
    table["location/center_x_frac"], table["location/center_y_frac"], table["pick_stats/ncc_score"] = (
        (30 / 400, 300 / 400), (50.5 / 200, 120 / 200), (0.9, 0.1))
    with open(tmp_path / "a.cs", "wb") as f: np.save(f, table)
    return tmp_path / "a.cs"


@pytest.mark.parametrize(
    "name, text, scores",
    [("a_autopick.star", STAR2, [0.9, 0.1]), ("particles.star", STAR31, None),
     ("a.box", "10 30.5 40 40\n280 100 40 40\n", None),
     ("a.box", "10\t30.5\t40\t40\t0.9\n280\t100\t40\t40\t0.1", [0.9, 0.1]),
     ("a.box", "-10 10.5 80 80 0.9\r\n260 80 80 80 0.1\r\n", [0.9, 0.1]),
     ("a.cbox", "10 30.5 40 40 0.9 33 33\n280 100 40 40 0.1 33 33\n", [0.9, 0.1]),
     ("a.tsv", "image_name\tx_coord\ty_coord\tscore\na\t30\t50.5\t0.9\na\t300\t120\t0.1\n", [0.9, 0.1]),
     ("picks.txt", "image_name\tx_coord\ty_coord\tscore\na\t30\t50.5\t0.9\na\t300\t120\t0.1\n", [0.9, 0.1]),
     ("a.csv", "X-Coordinate,Y-Coordinate,Diameter\n30,50.5,36\n300,120,36\n", None),
     ("a.csv", "\ufeffmicrograph,x,y,score\r\nfolder/a.mrc,30,50.5,0.9\r\nfolder/a.mrc,300,120,0.1\r\n", [0.9, 0.1])])
def test_formats_by_hand(tmp_path, name, text, scores):
    found = read_coordinates(put(tmp_path / name, text), Sized("deep/a.tif"))
    assert set(found) == {"deep/a.tif"}
    picks = found["deep/a.tif"]
    np.testing.assert_allclose(picks.centers, CENTRES)
    np.testing.assert_allclose(picks.scores, [np.nan] * 2 if scores is None else scores)
    assert picks.size == (200, 400) and (np.isnan(picks.sizes).all() or "star" not in name)


def test_cryosparc(tmp_path):
    path = cs_bytes(tmp_path)
    picks = read_coordinates(path, Sized("a.mrc"))["a.mrc"]
    np.testing.assert_allclose(picks.centers, CENTRES, atol=1e-3)
    np.testing.assert_allclose(picks.scores, [0.9, 0.1], atol=1e-6)
    (alone,) = read_coordinates(path).values()
    assert alone.size == (200, 400) and image_key(alone.image) == "a"


def test_starfile_reads_the_same(tmp_path):
    starfile = pytest.importorskip("starfile")
    for text in (STAR2, STAR31):
        path = put(tmp_path / "a.star", text)
        read = starfile.read(path)
        table = read["particles"] if isinstance(read, dict) else read
        ours = read_coordinates(path)
        for name, picks in ours.items():
            theirs = table[table["rlnMicrographName"] == name] if "rlnMicrographName" in table else table
            np.testing.assert_allclose(picks.centers, theirs[["rlnCoordinateX", "rlnCoordinateY"]])
        assert sum(map(len, ours.values())) == len(table)
    import pandas as pd
    frame = pd.DataFrame(
        {"rlnMicrographName": ["with space/a.mrc"] * 2, "rlnCoordinateX": [30.0, 300.0],
         "rlnCoordinateY": [50.5, 120.0]})
    starfile.write({"optics": pd.DataFrame({"rlnOpticsGroup": [1]}), "particles": frame}, tmp_path / "b.star")
    np.testing.assert_allclose(read_coordinates(tmp_path / "b.star", ["a.png"])["a.png"].centers, CENTRES)


@pytest.mark.parametrize(
    "line, words",
    [("# don't", []), ("a.mrc 1 2 # it's here", ["a.mrc", "1", "2"]),
     ("'my grid/a.mrc' 1 '' # x", ["my grid/a.mrc", "1", ""]), ("Bob's.mrc 1 \"b c\"", ["Bob's.mrc", "1", "b c"]),
     ("'open.mrc 1 2", ["'open.mrc", "1", "2"]), ("  ", [])])
def test_words_of_a_star_file(line, words): assert _words(line) == words


def test_a_folder_scale_and_diameter(tmp_path):
    for name in "ab": put(tmp_path / f"{name}.box", "10 30.5 40 40\n")
    found = read_coordinates(tmp_path, Sized("a.mrc", "b.mrc", "c.mrc"), diameter=30, scale=2)
    assert sorted(found) == ["a.mrc", "b.mrc"]
    np.testing.assert_allclose(found["b.mrc"].centers, [[60, 101]])
    np.testing.assert_allclose(found["b.mrc"].sizes, [60])
    assert read_coordinates(put(tmp_path / "none" / "a.box", ""), Sized("a.mrc"))["a.mrc"].centers.shape == (0, 2)


def test_names(tmp_path):
    for name in ("x/20120612_a.mrc", "C:\\data\\20120612_a.tif",
                 "001234567890123456789_20120612_a_patch_aligned_doseweighted.mrc", "000004@Extract/20120612_a.mrcs",
                 "20120612_a_autopick.star", "20120612_a.mrc.star"):
        assert image_key(name) == "20120612_a"
    assert image_key("picks.star") == "picks" and image_key(".mrc") == ".mrc"
    assert match_names(["q/a.mrc"], ["a.jpg", "b.jpg"]) == {"q/a.mrc": "a.jpg"}


def test_coordinates_that_are_none(tmp_path):
    sized = Sized("a.mrc")
    lists = "data_coordinate_files\nloop_\n_rlnMicrographName #1\n_rlnMicrographCoordinates #2\na.mrc job/a.star\n"
    for name, text, words in (
        ("a.star", "data_optics\nloop_\n_rlnOpticsGroup #1\n1\n", ("no column _rlnCoordinateX", "_rlnOpticsGroup")),
        ("a.star", lists, ("only lists such files",)), ("a.star", "", ("no column",)),
        ("a.star", "1 2 3\n", ("expected a line data_ first",)),
        ("a.star", STAR2.replace("0.1", ""), ("line 9", "2 values", "expected 3")),
        ("a.star", STAR2.replace("50.5", "high"), ("'high'", "_rlnCoordinateY")),
        ("a.star", STAR2.replace("50.5", "nan"), ("finite",)), ("a.box", "10 20 30\n", ("row 1", "3 values")),
        ("a.box", "10 20 30 40\n10 20 30 40 0.5\n", ("row 2",)), ("a.box", "10 20 0 40\n", ("0 × 40", "> 0")),
        ("a.box", "10 20 x 40\n", ("'x'", "expected numbers")),
        ("a.cbox", "data_cryolo\nloop_\n_CoordinateX #1\n1\n", ("no columns",)),
        ("a.tsv", "image\tx\na\t3\n", ("columns image, x", "x_coord")), ("a.csv", "x,y\n1\n", ("line 2", "1 values")),
        ("a.csv", "", ("columns none",)), ("a.doc", "", ("unknown format of coordinates", ".star")),
        ("a.star", b"\xff\xfe\x00\x01", ("not a text file",)),
        ("a.star", "data_\n_rlnCoordinateX\n_rlnCoordinateY 2\n", ("_rlnCoordinateX has no value",)),
        ("a.csv", 'x,y\n"1,2' + "0" * 200_000, ("quote that is never closed",)), ("a.cs", b"", ("cannot be read",)),
        ("a.cs", b"\x94CSDAT123", ("compressed form",)),
        ("a.box", "380 10 60 60\n", ("outside", "x = 410", "400 × 200")),
        ("a.box", "10 180 60 60\n", ("outside", "y = 210"))
    ):
        path = put(tmp_path / name, text)
        said(lambda path=path: read_coordinates(path, sized), str(path) if name != "a.doc" else "unknown", *words)
    assert len(
        read_coordinates(put(tmp_path / "a.box", "380 10 60 60\n10 10 60 60\n"), sized, outside="skip")["a.mrc"]) == 1
    said(lambda: read_coordinates(tmp_path / "gone"), "no such file or folder")
    said(lambda: read_coordinates(put(tmp_path / "empty" / "x.md", "").parent), "no file of coordinates")
    said(lambda: read_coordinates(put(tmp_path / "b.box", "1 2 3 4"), sized), "names no image that is there")


def test_pickles_are_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self): return (open, (str(tmp_path / "exploded"), "w"))
    with open(tmp_path / "a.cs", "wb") as f: np.save(f, np.array([Bomb()], dtype=object), allow_pickle=True)
    said(lambda: read_coordinates(tmp_path / "a.cs"), "pickles are never loaded")
    put(tmp_path / "b.cs", pickle.dumps(Bomb()))
    said(lambda: read_coordinates(tmp_path / "b.cs"), "pickles are never loaded")
    assert not (tmp_path / "exploded").exists()
    with open(tmp_path / "c.cs", "wb") as f: np.save(f, np.zeros(3, [("uid", "u8")]))
    said(lambda: read_coordinates(tmp_path / "c.cs"), "no field location/micrograph_path", "uid")


@pytest.mark.parametrize("field, kind, value, words",
                         [("micrograph_shape", ("u4", 2), (0, 0), "shape holds 0"),
                          ("micrograph_shape", ("u4", 3), (1, 2, 3), "expected two numbers"),
                          ("micrograph_shape", ("S4", 2), (b"a", b"b"), "expected two numbers"),
                          ("center_x_frac", "S4", b"left", "expected a number")])
def test_a_cs_file_with_odd_fields(tmp_path, field, kind, value, words):
    kinds = (
        dict(micrograph_path="S20", micrograph_shape=("u4", 2), center_x_frac="f4", center_y_frac="f4") | {field: kind})
    row = dict(
        micrograph_path=b"a.mrc", micrograph_shape=(200, 400), center_x_frac=0.5, center_y_frac=0.5) | {field: value}
    table = np.array(
        [tuple(row.values())], [(f"location/{n}", *(k if isinstance(k, tuple) else (k,))) for n, k in kinds.items()])
    with open(tmp_path / "a.cs", "wb") as f: np.save(f, table)
    said(lambda: read_coordinates(tmp_path / "a.cs"), "a.cs", field, words)


def test_a_cs_path_in_an_old_encoding(tmp_path):
    table = np.array([(b"caf\xe9.mrc", (200, 400), 0.5, 0.5)],
                     [("location/micrograph_path", "S20"), ("location/micrograph_shape", "u4", 2),
                      ("location/center_x_frac", "f4"), ("location/center_y_frac", "f4")])
    with open(tmp_path / "a.cs", "wb") as f: np.save(f, table)
    (picks,) = read_coordinates(tmp_path / "a.cs").values()
    np.testing.assert_allclose(picks.centers, [[200, 100]])


def test_two_files_for_one_image(tmp_path):
    for name in ("a.box", "001234567890123456789_a.box"): put(tmp_path / "two" / name, "1 2 3 4\n")
    said(lambda: read_coordinates(tmp_path / "two", Sized("a.mrc")), "both match the name a")
    said(lambda: read_coordinates(tmp_path / "two"), "both match the name a")
    said(lambda: match_names(["a.box"], ["x/a.mrc", "y/a.mrc"]), "both match the name a")
    for name in ("p.star", "q.star"): put(tmp_path / "three" / name, STAR31)
    said(lambda: read_coordinates(tmp_path / "three"), "another file")
    put(tmp_path / "mixed" / "a.box", "1 2 3 4\n"), put(tmp_path / "mixed" / "a.star", STAR2)
    said(lambda: read_coordinates(tmp_path / "mixed"), "several formats", ".box, .star")
    assert len(read_coordinates(tmp_path / "mixed", format="box")) == 1


def test_picks_keep_their_arrays_together():
    p = Picks([[1, 2], [3, 4]], [5, 6], [0.1, 0.9], "a", (10, 20))
    np.testing.assert_allclose(p.flipped().centers, [[1, 7], [3, 5]])
    np.testing.assert_allclose(p.scaled(2).scaled(0.5).centers, p.centers)
    assert p.scaled(2).size == (20, 40) and len(p[p.scores > 0.5]) == 1 and len(Picks([])) == 0
    said(lambda: Picks([[1, 2, 3]]), "expected (1, 2)")
    said(lambda: Picks([[1, 2]], sizes=[1, 2]), "sizes of shape (2,)")
    said(lambda: Picks([[1, 2]]).flipped(), "size is unknown")


# ---- orientation

def spots(n: int, seed: int, size=(300, 400), dark: bool = True):
    "A noisy image with blobs, and where they are."
    from scipy.ndimage import gaussian_filter
    rng = np.random.default_rng(seed)
    at = rng.uniform((8, 8), (size[1] - 8, size[0] - 8), (n, 2))
    blobs = np.zeros(size)
    blobs[at[:, 1].astype(int), at[:, 0].astype(int)] = 1
    return (gaussian_filter(blobs, 4) * (-250 if dark else 250) + rng.normal(0, 1, size),
            Picks(at, np.full(n, 16.0), image="image", size=size))


@pytest.mark.parametrize("dark", [True, False])
def test_both_ways_are_told_apart(dark):
    for seed in range(4):
        image, picks = spots(30, seed, dark=dark)
        down, up = orientation(image, picks), orientation(image, picks.flipped())
        assert (down.y, up.y) == ("down", "up") and min(down.probability, up.probability) > 0.999
        assert np.sign(down.z_down) == (-1 if dark else 1)


def test_no_side_is_taken_without_cause():
    image, picks = spots(30, 0)
    rng = np.random.default_rng(1)
    found = [orientation(image, Picks(rng.uniform(0, 300, (25, 2)), np.full(25, 16.0), size=(300, 400)), seed=s)
             for s in range(40)]
    assert not any(o.y for o in found)
    faint = orientation(image + np.random.default_rng(0).normal(0, 24, image.shape), picks)
    # one side is better, and still not good
    assert faint.y == "" and faint.probability > 0.99 and 3 < abs(faint.z_down) < 5
    both = Picks(np.concatenate([picks.centers, picks.flipped().centers]), np.full(60, 16.0), size=(300, 400))
    assert orientation(image, both).y == "" # a symmetric arrangement
    assert orientation(image, picks[:5]).y == "" # too few
    said(lambda: orientation(image, Picks([])), "none in any image")
    said(lambda: orientation(image, Picks(picks.centers)), "no diameter")


def test_read_picks_turns_or_refuses(tmp_path):
    image, picks = spots(30, 0)
    images = from_arrays([image], ids=["m.mrc"])
    box = lambda p: "".join(f"{x - 8:.3f} {y - 8:.3f} 16 16\n" for x, y in p.centers)
    put(tmp_path / "m.box", box(picks.flipped()))
    read, found = read_picks(tmp_path, images)
    np.testing.assert_allclose(read["m.mrc"].centers, picks.centers, atol=0.01)
    assert found.y == "up" and "y points up" in str(found)
    put(tmp_path / "m.box", box(Picks(np.random.default_rng(0).uniform(20, 280, (30, 2)))))
    said(lambda: read_picks(tmp_path, images), "unclear whether y points down or up", 'y="down"')
    assert read_picks(tmp_path, images, y="up")[1].told
    said(lambda: read_picks(tmp_path, images, y="left"), "'left'")


def test_the_real_picks_point_up(real_data):
    folder = real_data / "empiar_10017"
    if not folder.is_dir(): pytest.skip("PSEUDOLABEL_DATA has no empiar_10017")
    images = open_images(folder).train.subset(["Falcon_2012_06_12-14_33_35_0.jpg"])
    for picker in ("crYOLO", "topaz", "deepPicker"):
        assert read_picks(folder / "picks" / picker, images, diameter=108)[1].y == "up"
    for end in ("csv", "star"):
        assert read_picks(folder / f"Falcon_2012_06_12-14_33_35_0.{end}", images, diameter=108)[1].y == "down"


# ---- preparation

def test_fourier_resize_against_a_sum_of_waves():
    rng = np.random.default_rng(0)
    def sampled(h, w, waves):
        return sum(
            a * np.cos(2 * np.pi * (ky * (np.arange(h)[:, None] + 0.5) / h + kx * (np.arange(w)[None] + 0.5) / w) + p)
            for a, ky, kx, p in waves)
    for (h, w), (H, W) in (((64, 96), (32, 48)), ((63, 95), (31, 47)), ((64, 95), (21, 30)), ((64, 96), (64, 96)),
                           ((101, 77), (50, 38))):
        waves = [(rng.normal(), int(rng.integers(-H // 2 + 2, H // 2 - 1)), int(rng.integers(0, W // 2 - 1)),
                  rng.uniform(0, 6))
                 for _ in range(6)]
        np.testing.assert_allclose(
            fourier_resize(3 + sampled(h, w, waves), (H, W)), 3 + sampled(H, W, waves), atol=2e-4)


def test_prepared_images_picks_and_masks_stay_together(tmp_path):
    image, picks = spots(20, 3, (300, 420))
    images = from_arrays([image], [picks_to_mask(picks, (300, 420))], ids=["image"])
    small = prepare(images, Preparation(longest=140), tmp_path / "cache")
    assert small.shape(0) == (100, 140) and not (tmp_path / "cache").exists() # nothing is made before it is asked for
    moved = resized_picks(picks, (100, 140))
    drawn = mark_picks(small, {"image": picks}).mask(0)
    assert np.mean(drawn != small.mask(0)) < 0.01 # drawn small, and drawn large then reduced
    np.testing.assert_array_equal(drawn, picks_to_mask(moved, (100, 140)))
    at = np.rint(moved.centers).astype(int)
    # the dark spots lie where the picks say
    assert small.image(0)[0][at[:, 1], at[:, 0]].mean() < small.image(0)[0].mean() - 2
    assert orientation(small.image(0)[0], moved).y == "down"


def test_picks_follow_their_image():
    moved = resized_picks(Picks([[0, 0], [9.5, 3.5]], [4, 4], size=(8, 20)), (4, 5))
    np.testing.assert_allclose(moved.centers, [[-0.375, -0.25], [2, 1.5]])
    np.testing.assert_allclose(moved.sizes, 4 * (0.5 * 0.25) ** 0.5)
    said(lambda: resized_picks(Picks([[0, 0]]), (4, 5)), "size of their image is unknown")


def test_the_cache_follows_content_and_settings(tmp_path):
    path = put(tmp_path / "images" / "a.mrc", mrc_bytes(np.random.default_rng(0).normal(size=(64, 64)), 2))
    cache = tmp_path / "cache"
    def made(**settings):
        return prepare(open_unlabeled(tmp_path / "images"), Preparation(**{"pixel": 3.0, **settings}), cache)
    first = made().image(0)
    assert first.shape == (1, 32, 32) and len(list(cache.iterdir())) == 1
    assert np.array_equal(made().image(0), first) and len(list(cache.iterdir())) == 1
    made(limit=2.0).image(0)
    assert len(list(cache.iterdir())) == 2
    put(path, mrc_bytes(np.random.default_rng(1).normal(size=(64, 64)), 2))
    assert not np.array_equal(made().image(0), first) and len(list(cache.iterdir())) == 3
    for f in cache.iterdir(): f.write_bytes(f.read_bytes()[:100])
    said(lambda: made().image(0), "damaged prepared image", "remove the file")


def test_shape_and_contrast():
    for shape, longest, expected in (((4096, 4096), 512, (512, 512)), ((3710, 3838), 1024, (990, 1024)),
                                     ((100, 300), 150, (50, 150))):
        from pseudolabel_nb.data.preparation import working_shape
        assert working_shape(shape, float("nan"), Preparation(longest=longest)) == expected
    said(lambda: prepare(from_arrays(np.zeros((1, 8, 8))), Preparation(longest=16), "x"), "enlarged")
    said(lambda: prepare(from_arrays(np.zeros((1, 8, 8))), Preparation(pixel=8.0), "x"), "no pixel size")
    said(lambda: Preparation(limit=0.0), "limit is 0.0")


def test_regions_are_ignored(tmp_path):
    images = from_arrays(
        np.random.default_rng(0).normal(size=(2, 20, 30)), np.ones((2, 20, 30), int), ids=["a.mrc", "b.mrc"])
    region = np.zeros((20, 30), "u1"); region[:5] = 9
    (tmp_path / "r").mkdir()
    Image.fromarray(region).save(tmp_path / "r" / "b.png")
    out = ignore_regions(images, tmp_path / "r")
    assert (out.mask(1)[:5] == 255).all() and (out.mask(1)[5:] == 1).all() and (out.mask(0) == 1).all()
    said(lambda: ignore_regions(images, tmp_path / "none"), "no masks of regions")
    said(lambda: ignore_regions(images, {"c.mrc": region}), "no image is called c.mrc")
    said(lambda: ignore_regions(images, {"a.mrc": region[:, :7]}).mask(0), "20 × 7")


# ---- consensus

def test_consensus_by_hand(tmp_path):
    from pseudolabel_nb.inference.consensus import as_labels, consensus
    from pseudolabel_nb.inference.ensembles import combine
    images = from_arrays(np.random.default_rng(0).normal(size=(1, 40, 40)), ids=["a"])
    places = {"one": [[10, 10], [30, 10]], "two": [[10, 10], [30, 30]], "three": [[10, 10], [30, 10]]}
    pickers = {n: {"a": Picks(c, np.full(len(c), 8.0), image="a", size=(40, 40))} for n, c in places.items()}
    together, members = consensus(images, pickers, tmp_path)
    disc = lambda x, y: picks_to_mask(Picks([[x, y]], [8.0]), (40, 40))
    np.testing.assert_array_equal(as_labels(images, together).mask(0), disc(10, 10) | disc(30, 10))
    strict = as_labels(images, combine(members, tmp_path / "all", "unanimous")).mask(0)
    np.testing.assert_array_equal(strict == 1, disc(10, 10) == 1)
    np.testing.assert_array_equal(strict == 255, (disc(30, 10) | disc(30, 30)) == 1)
    heavy = as_labels(images, combine(members, tmp_path / "heavy", "weighted", (0.2, 0.6, 0.2))).mask(0)
    np.testing.assert_array_equal(heavy, disc(10, 10) | disc(30, 30))
    said(lambda: consensus(images, {"one": pickers["one"]}, tmp_path), "two pickers or more")
    moved = {**pickers, "three": pickers["two"]}
    # other picks, as many pixels: no stale store
    np.testing.assert_array_equal(
        as_labels(images, consensus(images, moved, tmp_path)[0]).mask(0), disc(10, 10) | disc(30, 30))


def test_partly_annotated_micrographs_train(tmp_path):
    data = pnb.micrographs(n_train=8, n_val=2, n_test=2)
    from scipy.ndimage import center_of_mass, label
    picks = {}
    for i, id in enumerate(data.train.ids):
        objects, n = label(data.train.mask(i))
        centers = np.array(center_of_mass(objects > 0, objects, range(1, n + 1))).reshape(-1, 2)[:, ::-1]
        picks[id] = Picks(centers[::2], np.full(len(centers[::2]), 15.0), image=id, size=data.train.shape(i))
    from dataclasses import replace
    run = pnb.run(
        replace(data, train=mark_picks(data.train, picks)),
        pnb.strategy("pu", prior=0.04, rounds=1, annotations="partial", method__paired=False), tmp_path / "run",
        labeled_ratio=0.5, settings=pnb.Settings(steps=12, crop=64, evaluations=1), device="cpu")
    assert run.status == "finished" and abs(run.records()[0].ratio_labeled - 0.04) < 1e-9


# ---- Zarr

@pytest.mark.parametrize("version", [2, 3])
def test_zarr_batches(tmp_path, version):
    zarr = pytest.importorskip("zarr", reason="needs zarr: pip install zarr")
    import json
    rng = np.random.default_rng(0)
    images, masks = rng.normal(size=(5, 16, 20)).astype("f4"), rng.integers(-1, 2, (5, 16, 20)).astype("i1")
    def write(path, **arrays):
        group = zarr.open_group(str(path), mode="w", zarr_format=version)
        for name, a in arrays.items(): group.create_array(name, data=a, chunks=(1, *a.shape[1:]))
    write(tmp_path / "train" / "b.zarr", images=images, masks=masks)
    write(tmp_path / "val" / "c.zarr", images=images[:2], masks=masks[:2])
    data = open_images(tmp_path)
    assert len(data.train) == 5 and len(data.val) == 2
    np.testing.assert_array_equal(data.train.mask(4), masks[4].view("u1"))
    np.testing.assert_array_equal(data.train.items[4].read_image(), images[4])
    assert len(open_unlabeled(tmp_path / "train")) == 5
    described = tmp_path / "train" / "b.zarr" / "images" / (".zarray" if version == 2 else "zarr.json")
    whole = json.loads(described.read_text())
    for codec, words in (({"id": "pickle"}, "pickles are never loaded"),
                         ({"id": "astype", "encode_dtype": "<f4", "decode_dtype": "<f4"}, "stored with astype")):
        described.write_text(
            json.dumps(
                {**whole, "filters": [codec]} if version == 2
                else {**whole,
                      "codecs": [*whole["codecs"], {"name": f"numcodecs.{codec['id']}", "configuration": codec}]}))
        said(lambda: open_images(tmp_path).train.image(0), "b.zarr",
             words if version == 2 or codec["id"] == "pickle" else "")
    described.write_text("{")
    said(lambda: open_images(tmp_path), "b.zarr")
    described.write_text(json.dumps(whole | dict(shape=[5, 40_000, 40_000])))
    said(lambda: open_images(tmp_path), "b.zarr", "40000 × 40000 px")
    described.write_text(json.dumps(whole))
    chunk = max((p for p in (tmp_path / "train/b.zarr/images").rglob("*") if p.is_file() and p.name not in (
                     ".zarray", ".zattrs", "zarr.json")),
                key=str)
    chunk.write_bytes(b"damaged")
    damaged = open_images(tmp_path).train
    said(lambda: [damaged.image(k) for k in range(5)], "b.zarr", "cannot be decompressed")
    linked, elsewhere = tmp_path / "train/b.zarr/images", tmp_path / "elsewhere"
    linked.rename(elsewhere)
    linked.symlink_to(elsewhere)
    said(lambda: open_images(tmp_path), "b.zarr", "leads out of")
    linked.unlink()
    elsewhere.rename(linked)
    (tmp_path / "film").write_bytes(b"secret")
    chunk.unlink()
    chunk.symlink_to(tmp_path / "film")
    said(lambda: open_images(tmp_path), chunk.name, "leads out of")


# ---- from micrographs and picks to a run

def grid(tmp_path, n: int = 8, picked: int = 6):
    "Simulated micrographs as MRC, of 8 Å, and BOX files with y from below for some of them."
    from scipy.ndimage import center_of_mass, label
    simulated = pnb.micrographs(n_train=n, size=128, seed=2, coverage=0.12, noise=0.5).train
    for i, id in enumerate(simulated.ids):
        put(tmp_path / "grid" / f"{id}.mrc", mrc_bytes(simulated.image(i)[0], 2, pixel=8.0))
        objects, k = label(simulated.mask(i))
        if i < picked:
            put(tmp_path / "boxes" / f"{id}_picks.box",
                "".join(f"{x - 14:.1f}\t{127 - y - 14:.1f}\t28\t28\n"
                        for y, x in center_of_mass(objects > 0, objects, range(1, k + 1))))
    return simulated


def test_open_picked(tmp_path):
    grid(tmp_path)
    data = pnb.open_picked(
        tmp_path / "grid", tmp_path / "boxes", 16, preparation=Preparation(longest=64), cache=tmp_path / "c")
    assert [len(s) for s in data.splits.values()] == [4, 1, 1, 2] and data.train.shape(0) == (64, 64)
    assert any("y points up" in n for n in data.notes) and data.notes[-1].startswith("prepared: Preparation(")
    assert 0.03 < data.train.mask(0).mean() < 0.4 and not data.unlabeled.has_mask(0)
    again = pnb.open_picked(tmp_path / "grid", tmp_path / "boxes", 16)
    assert again.train.ids == data.train.ids and again.train.shape(0) == (128, 128)
    found, _ = read_picks(tmp_path / "boxes", open_unlabeled(tmp_path / "grid"))
    put(tmp_path / "half.tsv",
        "image_name\tx_coord\ty_coord\tscore\n"
        + "".join(f"{id}\t{x / 2}\t{y / 2}\t1\n" for id, p in found.items() for x, y in p.centers))
    topaz = pnb.open_picked(tmp_path / "grid", tmp_path / "half.tsv", 16, scale=2)
    assert np.mean(topaz.train.mask(0) != again.train.mask(0)) < 0.01 and "y points down" in topaz.notes[1]
    other = pnb.open_picked(tmp_path / "grid", tmp_path / "boxes", 16, seed=1, shares=(0.4, 0.0))
    assert other.test is None and other.train.ids != data.train.ids
    # a group each
    series = pnb.open_picked(
        tmp_path / "grid", tmp_path / "boxes", 16, group_regex="train_000([0-9])", shares=(0.5, 0.0))
    assert sorted(series.train.groups + series.val.groups) == list("012345")
    said(lambda: pnb.open_picked(tmp_path / "grid", tmp_path / "boxes", 16, group_regex="(train)"), "cannot be divided")
    said(lambda: pnb.open_picked(tmp_path / "grid", tmp_path / "boxes", 16, shares=(0.6, 0.4)), "shares")


def test_picks_from_the_command_line(tmp_path, capsys):
    from pseudolabel_nb import cli
    grid(tmp_path)
    named = ["--data-dir", str(tmp_path / "grid"), "--picks", str(tmp_path / "boxes"), "--output-dir",
             str(tmp_path / "out"), "--device", "cpu"]
    quick = ["--strategy", "naive", "--labeled-ratios", "0.5", "--seeds", "0", "--steps", "8", "--crop", "32",
             "--learning-rates", "0.003"]
    assert cli.train([*named, *quick]) != 0
    assert "found no --diameter" in capsys.readouterr().err
    assert cli.train([*named, *quick, "--diameter", "16", "--working-pixel", "16"]) == 0
    runs = [p.parent for p in (tmp_path / "out").rglob("result.json")]
    assert runs and all(any(n.startswith("prepared: ") for n in pnb.open_run(r).config["read"]) for r in runs)
    assert pnb.open_run(runs[0]).source["working_pixel"] == 16 and len(
        list((tmp_path / "out" / "prepared").iterdir())) == 8
