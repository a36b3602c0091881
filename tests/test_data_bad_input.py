"""Bad input in data: every complaint is one line that names the file and says how to mend it; and layouts as real tools
write them."""
import json, os, pickle, warnings
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from pseudolabel_nb.core import UserError, read_json
from pseudolabel_nb.data.files import read_header
from pseudolabel_nb.data.images import Cache, HiddenLabels, from_arrays
from pseudolabel_nb.data.sources import open_images, open_unlabeled
from pseudolabel_nb.data.splits import divide_by_group, label_order, labeled_ids

RNG = np.random.default_rng(0)

def save(path: Path, array=None, mode=None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = RNG.integers(0, 255, (24, 32)).astype("u1") if array is None else array
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path

def coco_folder(root: Path, n=2, split="train", **changes) -> Path:
    "A COCO folder with one box an image; `changes` replace parts of the document."
    folder = root / split
    for k in range(n): save(folder / f"{k}.png")
    document = dict(info=["a list"], images=[dict(id=k, file_name=f"{k}.png", width=32, height=24) for k in range(n)],
                    annotations=[dict(id=k, image_id=k, category_id=1, iscrowd=0, segmentation=[], bbox=[4, 4, 8, 8])
                                 for k in range(n)],
                    categories=[dict(id=1, name="particle")])
    (folder / "_annotations.coco.json").write_text(json.dumps({**document, **changes}))
    return root

def mask_folder(root: Path, values=(0, 255), n=3, suffix=".png", **options) -> Path:
    for k in range(n):
        save(root / f"images/{k}.png")
        save(root / f"masks/{k}{suffix}", RNG.choice(np.array(values, "u1"), (24, 32)), **options)
    return root

def complaint(call, *parts: str) -> str:
    "The one line that `call` raises, which holds all `parts`."
    with pytest.raises(UserError) as e: call()
    text = str(e.value)
    assert "\n" not in text and "\r" not in text
    assert len(text) < 600
    for p in parts: assert p in text, f"{p!r} not in {text!r}"
    return text

def annotation(**changes):
    return {**dict(id=17, image_id=0, category_id=1, iscrowd=0, segmentation=[], bbox=[4, 4, 8, 8]), **changes}

# ---- the file

def test_missing_folder(tmp_path): complaint(lambda: open_images(tmp_path / "gone"), "gone", "check the path")

def test_nothing_recognized(tmp_path):
    (tmp_path / "paper.pdf").touch()
    complaint(lambda: open_images(tmp_path), "paper.pdf", "_annotations.coco.json", "images/ + masks/", "arrange")

@pytest.mark.parametrize("text, found",
                         [("{not json", "not JSON"), ("[1, 2]", "a list"), ('{"annotations": []}', "annotations"),
                          ('{"images": [], "annotations": []}', "empty"),
                          ('{"images": [1], "annotations": []}', "images holds"), ("\xff\xfe", "not JSON")])
def test_not_a_coco_document(tmp_path, text, found):
    coco_folder(tmp_path)
    (tmp_path / "train/_annotations.coco.json").write_bytes(text.encode("latin-1"))
    complaint(lambda: open_images(tmp_path), "train/_annotations.coco.json", found, "export")

@pytest.mark.parametrize("name",
                         ["../../etc/passwd", "/etc/passwd", "C:\\secret.png", "..\\secret.png", "a/../../secret.png",
                          "", "nul\0.png", None, 7])
def test_name_that_leaves_the_folder(tmp_path, name):
    save(tmp_path / "secret.png")
    coco_folder(tmp_path, images=[dict(id=0, file_name=name, width=32, height=24)])
    complaint(lambda: open_images(tmp_path), "_annotations.coco.json", "file name")

def test_name_of_a_link_that_leaves_the_folder(tmp_path):
    save(tmp_path / "secret.png")
    root = tmp_path / "data"
    link = coco_folder(root) / "train/0.png"
    link.unlink()
    link.symlink_to(tmp_path / "secret.png")
    complaint(lambda: open_images(root), "0.png", "leads out of", "copy the file")

def test_name_that_is_not_utf8(tmp_path):
    mask_folder(tmp_path)
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/images/caf\xe9.png")).write_bytes(
            (tmp_path / "images/0.png").read_bytes())
    except OSError: pytest.skip("this file system takes names in UTF-8 alone")
    complaint(lambda: open_unlabeled(tmp_path / "images"), "caf", "is not UTF-8", "rename the file").encode()
    complaint(lambda: open_images(
                  coco_folder(tmp_path / "c", images=[dict(id=0, file_name="\ud800.png", width=32, height=24)])),
              "is not UTF-8").encode()

def test_folder_that_is_a_link_is_fine(tmp_path):
    coco_folder(tmp_path / "disk")
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    assert len(open_images(tmp_path / "data").train) == 2

def test_listed_image_missing(tmp_path):
    images = [dict(id=k, file_name=f"{k}.png", width=32, height=24) for k in range(5)]
    coco_folder(tmp_path, n=2, images=images)
    complaint(
        lambda: open_images(tmp_path), "image 2.png is listed but missing (and 2 more of 5)", "put the images there")

@pytest.mark.parametrize("ids, names, found",
                         [((0, 0), ("0.png", "1.png"), "id 0"), ((0, 1), ("0.png", "0.png"), "0.png is listed 2 times"),
                          ((0, 1), ("0.png", "./0.png"), "0.png is listed 2 times")])
def test_listed_twice(tmp_path, ids, names, found):
    coco_folder(tmp_path, images=[dict(id=i, file_name=n, width=32, height=24) for i, n in zip(ids, names)])
    complaint(lambda: open_images(tmp_path), "_annotations.coco.json", found)

def test_size_in_document_disagrees(tmp_path):
    coco_folder(tmp_path, images=[dict(id=k, file_name=f"{k}.png", width=24, height=32) for k in range(2)])
    complaint(lambda: open_images(tmp_path), "0.png", "32 × 24", "24 × 32", "scale the boxes")

# ---- annotations

SHORT = coco.encode(np.asfortranarray(np.ones((23, 32), "u1")))["counts"].decode()
BAD = [(dict(bbox=[10, 20, -3, 8]), "width and height must be > 0"), (dict(bbox=[10, 20, 3, 0]), "must be > 0"),
       (dict(bbox=[32, 0, 5, 5]), "wholly outside"), (dict(bbox=[-9, 0, 9, 5]), "wholly outside"),
       (dict(bbox=[1, 2, float("nan"), 4]), "four finite numbers"), (dict(bbox="1,2,3,4"), "four finite numbers"),
       (dict(bbox=None), "four finite numbers"), (dict(image_id=99), "image_id 99"),
       (dict(segmentation=[[1, 1, 9, 9]]), "three points"), (dict(segmentation=[[1, 1, 9, 1, 1e8, 9]]), "far outside"),
       (dict(segmentation=["x"]), "polygon"), (dict(segmentation=dict(size=[32, 24], counts=[768])), "size [32, 24]"),
       (dict(segmentation=dict(size=[24, 32], counts=[700])), "add up to 700"),
       (dict(segmentation=dict(size=[24, 32], counts=SHORT)), "add up to 736"),
       (dict(segmentation=dict(size=[24, 32], counts=[-5, 773])), "none below 0"),
       (dict(segmentation=dict(counts={})), "run-length")]

@pytest.mark.parametrize("changes, found", BAD)
def test_bad_annotation(tmp_path, changes, found):
    coco_folder(tmp_path, annotations=[annotation(**changes), annotation(id=18)])
    complaint(
        lambda: open_images(tmp_path), "train/_annotations.coco.json: annotation 17 has", found, 'on_invalid="skip"')
    data = open_images(tmp_path, on_invalid="skip")
    assert data.train.mask(0).sum() == 52 and "1 unusable annotations left out" in data.notes[0]

def test_cryotransformer_export(tmp_path):
    particles = [annotation(id=0, iscrowd=1), annotation(id=1, iscrowd=1, bbox=[-4, -4, 8, 8]),
                 annotation(id=2, image_id=1, bbox=[0, 0, 0, 0])]
    data = open_images(coco_folder(tmp_path, annotations=particles))
    assert data.train.mask(0)[8, 8] == 1 and data.train.mask(0)[0, 0] == 1 and data.train.mask(1).sum() == 0
    assert len(data.notes) == 2
    for part in ("2 boxes drawn as ellipses", "1 boxes clipped", "1 dummy boxes",
                 "2 boxes with iscrowd: 1 read as objects", "1 images without objects"):
        assert part in data.notes[0]

def test_crowd_region_is_ignored_unless_told(tmp_path):
    region = np.zeros((24, 32), "u1"); region[:, 16:] = 1
    rle = coco.encode(np.asfortranarray(region))
    runs = dict(size=[24, 32], counts=[24 * 16, 24 * 16])
    for code in (dict(size=[24, 32], counts=rle["counts"].decode()), runs):
        coco_folder(
            tmp_path, annotations=[annotation(iscrowd=1, segmentation=code), annotation(id=18, bbox=[14, 4, 8, 8])])
        mask = open_images(tmp_path, boxes="filled").train.mask(0)
        assert (mask[4:12, 14:22] == 1).all() and mask[0, 31] == 255 and mask[0, 0] == 0
        assert open_images(tmp_path, crowds="object").train.mask(0)[0, 31] == 1

def test_polygons_and_classes(tmp_path):
    square = [[2, 2, 10, 2, 10, 10, 2, 10]]
    coco_folder(tmp_path,
                annotations=[annotation(segmentation=square, category_id=3),
                             annotation(id=18, category_id=1, bbox=[20, 10, 6, 6])],
                categories=[dict(id=3, name="ice"), dict(id=1, name="particle")])
    data = open_images(tmp_path, multiclass=True, boxes="filled")
    assert data.classes == ("background", "particle", "ice") and data.train.n_classes == 3
    assert (data.train.mask(0)[2:10, 2:10] == 2).all() and (data.train.mask(0)[10:16, 20:26] == 1).all()
    assert set(np.unique(open_images(tmp_path).train.mask(0))) == {0, 1}
    coco_folder(tmp_path, annotations=[annotation(category_id=9)])
    complaint(lambda: open_images(tmp_path, multiclass=True), "annotation 17", "category_id 9")

# ---- image files

def test_file_without_read_permission(tmp_path, monkeypatch):
    def forbidden(path, *_): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr("pseudolabel_nb.data.files.open", forbidden, raising=False) # the one who tests may be root
    complaint(lambda: read_header(tmp_path / "a.png"), "a.png", "permission", "chmod")

def test_brackets_without_end(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    complaint(lambda: read_json(tmp_path / "a.json"), "a.json", "brackets", "again")

def test_truncated_image(tmp_path):
    for suffix in (".png", ".jpg", ".tif"):
        root = mask_folder(tmp_path / suffix[1:], n=1)
        (root / "images/0.png").unlink()
        big = save(root / f"images/0{suffix}", RNG.integers(0, 255, (240, 320)).astype("u1"))
        save(root / "masks/0.png", np.eye(240, 320, dtype="u1") * 255)
        if suffix != ".tif": big.write_bytes(big.read_bytes()[:big.stat().st_size // 2])
        else: big.write_bytes(big.read_bytes()[:8 + 240 * 160])
        complaint(partial(open_images(root).train.image, 0), f"0{suffix}", "truncated", "again")

def test_not_an_image(tmp_path):
    root = mask_folder(tmp_path)
    for content, found in ((b"", "an empty file"), (b"GIF89a..", "begins with")):
        (root / "images/1.png").write_bytes(content)
        complaint(lambda: open_images(root), "images/1.png", found, "convert it")

def test_mask_of_another_size(tmp_path):
    root = mask_folder(tmp_path)
    save(root / "masks/1.png", np.zeros((32, 24), "u1"))
    complaint(lambda: open_images(root), "masks/1.png", "32 × 24", "24 × 32", "export the mask again")

def test_mask_missing_and_mask_alone(tmp_path):
    root = mask_folder(tmp_path)
    (root / "masks/1.png").unlink()
    assert "train: 2 of 3 images have a mask; the other 1 is unlabeled" in open_images(root).notes
    complaint(lambda: open_images(root, split="val"), "images/1.png", "no mask of that name", "unlabeled/")
    assert "1 file without" in open_images(root, split="val", on_invalid="skip").notes[1]
    (root / "images/1.png").unlink(); (root / "images/2.png").unlink()
    complaint(lambda: open_images(root), "masks/2.png", "no image of that name")

def test_two_files_of_one_name(tmp_path):
    root = mask_folder(tmp_path)
    save(root / "images/1.jpg")
    complaint(lambda: open_images(root), "1.jpg", "1.png", "rename or remove")

def test_nan_pixels(tmp_path):
    root = mask_folder(tmp_path, n=1)
    (root / "images/0.png").unlink()
    bad = np.ones((24, 32), "f4"); bad[3, 3] = np.nan
    save(root / "images/0.tif", bad)
    complaint(lambda: open_images(root).train.image(0), "0.tif", "1 pixels are NaN", "replace them")

def test_image_beyond_the_limit(tmp_path, monkeypatch):
    from pseudolabel_nb.data import files
    monkeypatch.setattr(files, "MAX_PIXELS", 500)
    complaint(lambda: open_images(mask_folder(tmp_path)), ".png", "at most 500 pixels", "tiles")

def test_large_micrograph_passes_without_warning(tmp_path):
    image = Image.new("L", (8192, 12288), 3)
    image.putpixel((5, 5), 200)
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        image.point(lambda v: 255 * (v > 100)).save(tmp_path / f"{kind}/0.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_images(tmp_path).train.mask_crop(0, 0, 0, 10, 10).sum() == 1

def test_stack_is_refused(tmp_path):
    root = mask_folder(tmp_path, n=1)
    (root / "images/0.png").unlink()
    pages = [Image.new("L", (32, 24), k) for k in range(3)]
    pages[0].save(root / "images/0.tif", save_all=True, append_images=pages[1:])
    complaint(lambda: open_images(root), "0.png", "1 masks", "0.tif has 3 images", "a mask for each")
    complaint(lambda: read_header(root / "images/0.tif"), "0.tif", "3 pages", "save each page")

# ---- what white means

@pytest.mark.parametrize("values, expected", [((0, 1), {0, 1}), ((0, 255), {0, 1}), ((0, 1, 255), {0, 1, 255})])
def test_mask_values(tmp_path, values, expected):
    data = open_images(mask_folder(tmp_path, values))
    assert (set(np.unique(data.train.mask(0))) == expected and len(data.notes) == 2
            and "/".join(map(str, values)) in data.notes[0])

@pytest.mark.parametrize("values", ["auto", "threshold", "nonzero", "0/1"])
def test_masks_of_one_bit(tmp_path, values):
    mask_folder(tmp_path, (0, 255), mode="1")
    data, [mask] = open_images(tmp_path, mask_values=values), {*(tmp_path / "masks").glob("0.*")}
    assert np.array_equal(
        data.train.mask(0), np.asarray(Image.open(mask).convert("L")) // 255) and data.train.mask(0).any()

def test_jpg_masks_are_thresholded(tmp_path):
    mask = np.zeros((24, 32), "u1"); mask[7:18, 5:26] = 255  # across JPG's blocks, so that values spread
    save(tmp_path / "images/0.png")
    save(tmp_path / "masks/0.jpg", mask, quality=60)
    data = open_images(tmp_path)
    assert not set(np.unique(Image.open(tmp_path / "masks/0.jpg"))) <= {0, 255}
    assert (data.train.mask(0) == mask // 255).all() and "127" in data.notes[0]
    complaint(lambda: open_images(tmp_path, multiclass=True), "0.jpg", "PNG")
    save(tmp_path / "masks/0.jpg", mask // 255, quality=95)
    complaint(lambda: open_images(tmp_path), "0.jpg", "brightest value is", "save masks as PNG")

def test_odd_values(tmp_path):
    root = mask_folder(tmp_path, (0, 1, 2, 3))
    complaint(lambda: open_images(root), "masks/", "0, 1, 2, 3", "mask_values", "multiclass")
    assert set(np.unique(open_images(root, mask_values="nonzero").train.mask(0))) == {0, 1}
    data = open_images(root, multiclass=True)
    assert data.train.n_classes == 4 and set(np.unique(data.train.mask(0))) == {0, 1, 2, 3}

def test_later_mask_contradicts(tmp_path):
    root = mask_folder(tmp_path, n=40)
    for k in (7, 8):  # one of two neighbors is not among those looked at
        save(root / f"masks/{k}.png", np.full((24, 32), 1, "u1"))
    def read_all():
        data = open_images(root)
        assert "0/255" in data.notes[0] or "0/1/255" in data.notes[0]
        for i in range(40): data.train.mask(i)
    order = sorted(str(k) for k in range(40))
    looked = {order[i] for i in range(0, 40, 3)}
    for k in ("7", "8"):
        if k in looked: save(root / f"masks/{k}.png", np.zeros((24, 32), "u1"))
    complaint(read_all, "masks/", "mask holds the value 1", "pass mask_values")

def test_empty_masks_first(tmp_path):
    root = mask_folder(tmp_path, (0,), n=40)
    full = np.zeros((24, 32), "u1"); full[2:9, 2:9] = 1
    save(root / "masks/8.png", full)
    assert open_images(root).train.mask(open_images(root).train.index("8.png")).sum() == 49

def test_colored_mask(tmp_path):
    root = mask_folder(tmp_path, n=1)
    save(root / "masks/0.png", RNG.integers(0, 2, (24, 32, 3)).astype("u1"))
    complaint(lambda: open_images(root), "masks/0.png", "colors", "single channel")

# ---- layouts

def instances(root: Path, image_folder: str, file: str, n=2) -> None:
    coco_folder(root / "tmp", n=n)
    target = root / image_folder
    target.parent.mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    (root / "tmp/train/_annotations.coco.json").rename(root / "annotations" / file)
    (root / "tmp/train").rename(target)
    (root / "tmp").rmdir()

@pytest.mark.parametrize(
    "folder, file",
    [("images/{}", "instances_{}.json"), ("{}", "instances_{}.json"), ("{}2017", "instances_{}2017.json"),
     ("images/{}2017", "instances_{}2017.json"), ("images/{}", "{}.json")])
def test_instances_layouts(tmp_path, folder, file):
    for s in ("train", "val"): instances(tmp_path, folder.format(s), file.format(s), n=2 + (s == "val"))
    data = open_images(tmp_path)
    assert (len(data.train), len(data.val), data.test) == (2, 3, None)
    save(tmp_path / "test2017/0.png")
    assert open_images(tmp_path).notes[-1] == "test2017: 1 images without annotations or masks, left out"
    assert len(open_images(tmp_path / "annotations" / file.format("val"), split="val").val) == 3
    complaint(lambda: open_images(tmp_path, split="test"), "no split test", "train, val")

def test_roboflow_names_and_nested_masks(tmp_path):
    for s in ("train", "valid", "test"): coco_folder(tmp_path / "a", split=s)
    assert list(open_images(tmp_path / "a").splits) == ["train", "val", "test"]
    for s in ("train", "val"):
        for k in range(2):
            save(tmp_path / f"b/images/{s}/deep/{k}.png")
            save(tmp_path / f"b/masks/{s}/deep/{k}_mask.png", np.eye(24, 32, dtype="u1"))
    assert open_images(tmp_path / "b").val.ids == ("deep/0.png", "deep/1.png")
    for k in range(2): save(tmp_path / f"c/{k}.jpg"); save(tmp_path / f"c/{k}_mask.png", np.eye(24, 32, dtype="u1"))
    assert open_images(tmp_path / "c").train.ids == ("0.jpg", "1.jpg")

def test_split_twice_and_mixed(tmp_path):
    coco_folder(tmp_path, split="val"); coco_folder(tmp_path, split="valid")
    complaint(lambda: open_images(tmp_path), "split val is there twice", "move one away")
    mask_folder(tmp_path / "m/train"); coco_folder(tmp_path / "m", split="val")
    complaint(lambda: open_images(tmp_path / "m"), "different kinds", "split=")

def test_unlabeled(tmp_path):
    mask_folder(tmp_path / "train"); save(tmp_path / "unlabeled/u.png")
    data = open_images(tmp_path)
    assert data.unlabeled.ids == ("u.png",) and not data.unlabeled.has_mask(0)
    assert len(open_unlabeled(tmp_path / "train")) == 3
    with pytest.raises(HiddenLabels): data.train.hide_masks().mask(0)
    (tmp_path / "none").mkdir()
    complaint(lambda: open_unlabeled(tmp_path / "none"), "none", "check the folder")

def test_mixed_depths_and_channels(tmp_path):
    root = mask_folder(tmp_path, n=1)
    arrays = {
        "g16.png": RNG.integers(0, 65536, (24, 32)).astype("u2"),
        "rgb.png": RNG.integers(0, 256, (24, 32, 3)).astype("u1"),
        "rgba.png": RNG.integers(0, 256, (24, 32, 4)).astype("u1"),
        "g16.tif": RNG.integers(0, 65536, (24, 32)).astype("u2"), "f32.tiff": RNG.normal(size=(24, 32)).astype("f4"),
        "rgb.jpg": RNG.integers(0, 256, (24, 32, 3)).astype("u1"),
        "rgb16.tif": RNG.integers(0, 65536, (24, 32, 3)).astype("u2")}
    for k, (name, a) in enumerate(arrays.items()):
        if name == "rgb16.tif": tifffile.imwrite(root / f"images/x{k}_{name}", a)
        else: save(root / f"images/x{k}_{name}", a)
        save(root / f"masks/x{k}_{Path(name).stem}.png", np.zeros((24, 32), "u1"))
    data = open_images(root)
    assert data.train.channels == 3
    for k, (name, a) in enumerate(arrays.items()):
        image = data.train.image(data.train.index(f"x{k}_{name}"))
        assert (image.dtype == np.float32 and image.shape == (3, 24, 32) and abs(image.mean()) < 1e-3
                and abs(image.std() - 1) < 1e-3)
        if "jpg" not in name:
            a = np.atleast_3d(a)[..., :3].astype(float)
            assert np.allclose(
                image, np.broadcast_to(((a - a.mean()) / a.std()).transpose(2, 0, 1), (3, 24, 32)), atol=1e-3)

@pytest.mark.parametrize(
    "options, found",
    [(dict(boxes="circle"), "ellipse, filled"), (dict(on_invalid="drop"), "raise, skip"),
     (dict(mask_values="white"), "nonzero"), (dict(split="holdout"), "train"),
     (dict(group_regex="("), "regular expression"), (dict(group_regex="z(9)"), "finds nothing in 0.png"),
     (dict(groups="tissue"), "group_regex"), (dict(groups="gone.csv"), "no such file")])
def test_bad_options(tmp_path, options, found): complaint(lambda: open_images(mask_folder(tmp_path), **options), found)

def test_groups(tmp_path):
    images = [dict(id=k, file_name=f"{k}.png", width=32, height=24, tissue=f"t{k}") for k in range(2)]
    root = coco_folder(tmp_path, images=images)
    assert open_images(root, groups="tissue").train.groups == ("t0", "t1")
    complaint(lambda: open_images(root, groups="slide"), "0.png", "slide", "tissue")
    table = tmp_path / "groups.csv"
    table.write_text("image,group\n0.png,a\n1.png,b\n")
    assert open_images(root, groups=table).train.groups == ("a", "b")
    table.write_text("image,group\n0.png,a\n")
    complaint(lambda: open_images(root, groups=table), "groups.csv", "1.png", "add it")
    table.write_bytes("image,group\n0.png,für\n".encode("latin-1"))
    complaint(lambda: open_images(root, groups=table), "groups.csv", "UTF-8")
    table.write_text("file;grp\na,b,c\n")
    complaint(lambda: open_images(root, groups=table), "groups.csv", "file;grp", "expected image and group")
    table.write_text('image,group\n"0.png' + "x" * 200_000)
    complaint(lambda: open_images(root, groups=table), "groups.csv", "quote that is never closed")

# ---- NPZ

def test_npz(tmp_path):
    (tmp_path / "train").mkdir()
    images, masks = RNG.normal(size=(4, 24, 32, 3)).astype("f4"), RNG.integers(-1, 2, (4, 24, 32)).astype("i1")
    np.savez_compressed(tmp_path / "train/a.npz", images=images, masks=masks)
    np.savez(tmp_path / "val.npz", images=images, masks=masks[:, None])
    data = pickle.loads(pickle.dumps(open_images(tmp_path)))  # noqa: S301 (our own bytes)
    assert data.train.channels == 3 and data.val.shape(0) == (24, 32)
    assert (data.train.mask(2) == masks[2].astype("u1")).all() and (data.val.mask(2) == data.train.mask(2)).all()

@pytest.mark.parametrize(
    "arrays, found",
    [(dict(images=np.array([None, 1], dtype=object), masks=np.zeros((2, 4, 4))), "pickles are never loaded"),
     (dict(photos=np.zeros((2, 4, 4))), "no array images"),
     (dict(images=np.zeros((2, 9, 9)), masks=np.zeros((2, 9, 8))), "masks of shape"),
     (dict(images=np.zeros((2, 9, 9)), masks=np.full((2, 9, 9), 7)), "hold the values 7"),
     (dict(images=np.zeros(9), masks=np.zeros(9)), "images of shape")])
def test_bad_npz(tmp_path, arrays, found):
    np.savez(tmp_path / "a.npz", **arrays)
    complaint(lambda: open_images(tmp_path / "a.npz"), "a.npz", found)

@pytest.mark.parametrize("values, found",
                         [(np.array(["a", "b"]), "masks of type"), (np.array([0, np.nan]), "the value nan"),
                          (np.array([0, 10**7]), "the value 1e+07"), (np.array([0, 0.5]), "the value 0.5"),
                          (np.array([0, -3]), "the value -3")])
def test_npz_masks_that_are_no_classes(tmp_path, values, found):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4)), masks=np.resize(values, (2, 4, 4)))
    complaint(lambda: open_images(tmp_path / "a.npz", multiclass=True), "a.npz", found)

def test_npz_with_a_damaged_header(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((2, 4, 4)), masks=np.zeros((2, 4, 4)))
    whole = bytearray((tmp_path / "a.npz").read_bytes())
    start = 30 + int.from_bytes(whole[26:28], "little") + int.from_bytes(whole[28:30], "little")
    whole[start:start + 8] = b"\xff" * 8
    (tmp_path / "a.npz").write_bytes(whole)
    complaint(lambda: open_images(tmp_path / "a.npz"), "a.npz", "cannot be read as NPZ")

def test_npz_of_huge_images(tmp_path, monkeypatch):
    monkeypatch.setattr("pseudolabel_nb.data.npz.MAX_PIXELS", 15)
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4)), masks=np.zeros((2, 4, 4)))
    complaint(lambda: open_images(tmp_path / "a.npz"), "a.npz", "4 × 4 px", "at most 15")

def test_npz_masks_are_looked_at_in_parts(tmp_path):
    from pseudolabel_nb.data.npz import _seen
    masks = np.arange(7)[:, None, None] * np.ones((1, 4, 4))
    np.savez(tmp_path / "a.npz", masks=masks)
    for at_once in (1, 16, 40, 1000):
        assert [*_seen(Cache(), tmp_path / "a.npz", 7, (4, 4), at_once).values()] == [{k} for k in range(7)]

def test_truncated_npz(tmp_path):
    np.savez(tmp_path / "a.npz", images=RNG.normal(size=(3, 9, 9)), masks=np.zeros((3, 9, 9)))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:700])
    complaint(lambda: open_images(tmp_path), "a.npz", "truncated", "write it again")

# ---- arrays, memory, splits

@pytest.mark.parametrize("call, found",
                         [(lambda: from_arrays([np.full((4, 4), np.inf)]), "infinite"),
                          (lambda: from_arrays(np.zeros((4, 4))), "expected (H, W)"),
                          (lambda: from_arrays([np.zeros((4, 4))], [np.zeros((4, 5))]), "same size"),
                          (lambda: from_arrays([np.zeros((4, 4))], [np.full((4, 4), 0.5)]), "mask holds 0.5"),
                          (lambda: from_arrays([np.zeros((4, 4))] * 2, ids=["a", "a"]), "occurs twice"),
                          (lambda: from_arrays([np.zeros((4, 4))] * 2, [np.zeros((4, 4))]), "2 images but 1 masks"),
                          (lambda: from_arrays([np.array(["x"])]), "numbers"),
                          (lambda: from_arrays([np.zeros((4, 4))], [np.full((4, 4), 255, "u1")]), "pass masks == 255")])
def test_bad_arrays(call, found): complaint(call, found)

def test_minus_one_is_ignore_in_every_type():
    for kind in ("i1", "i2", "i8", "f4"):
        assert (from_arrays([np.eye(3)], [np.array([[-1, 0, 1]] * 3, kind)]).mask(0) == [255, 0, 1]).all()

@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60)), max_size=60), st.integers(0, 200))
def test_cache_never_exceeds_its_limit(asked, limit):
    cache = Cache(limit)
    for key, size in asked:
        got = cache.get((key, size), partial(np.zeros, size, "u1"))
        assert got.nbytes == size
        assert cache.size == sum(v.nbytes for v in cache.entries.values()) <= limit

GROUPS = st.lists(st.integers(0, 7).map(str), min_size=1, max_size=80)

@settings(deadline=None)
@given(GROUPS, st.integers(0, 2**31), st.randoms())
@example(["a"] * 36 + ["b"] * 18 + ["c"] * 6, 0, Random(0))
def test_label_order(groups, seed, random):
    ids = [f"{k:03}.png" for k in range(len(groups))]
    order = label_order(ids, groups, seed)
    assert sorted(order) == ids
    shuffled = list(zip(ids, groups)); random.shuffle(shuffled)
    assert label_order(*map(list, zip(*shuffled)), seed) == order
    group_of, kinds = dict(zip(ids, groups)), sorted(set(groups))
    for g in kinds:
        share = groups.count(g) / len(ids)
        for k in range(len(ids) + 1):
            assert (
                abs(sum(group_of[i] == g for i in order[:k]) - k * share) <= 1 + share * max(0, len(kinds) - 2) + 1e-9)

@settings(deadline=None)
@given(GROUPS, st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 99))
def test_ratios_are_nested(groups, a, b, seed):
    ids = [f"{k}.png" for k in range(len(groups))]
    a, b = sorted((a, b))
    if round(a * len(ids)) == 0: complaint(lambda: labeled_ids(ids, groups, a, seed), f"{a:g}", "raise it"); return
    few, many = labeled_ids(ids, groups, a, seed), labeled_ids(ids, groups, b, seed)
    assert many[:len(few)] == few and len(few) == round(a * len(ids))

@settings(deadline=None)
@given(GROUPS, st.floats(0.05, 0.95), st.integers(0, 99))
def test_divided_by_group(groups, fraction, seed):
    ids = [f"{k}.png" for k in range(len(groups))]
    if len(set(groups)) < 2:
        complaint(lambda: divide_by_group(ids, groups, fraction, seed), "cannot be divided", "finer groups")
        return
    a, b = divide_by_group(ids, groups, fraction, seed)
    group_of = dict(zip(ids, groups))
    assert a and b and sorted(a + b) == sorted(ids) and not {group_of[i] for i in a} & {group_of[i] for i in b}
    assert abs(len(a) - fraction * len(ids)) <= max(map(groups.count, groups))
    assert divide_by_group(ids[::-1], groups[::-1], fraction, seed) == (a, b)
