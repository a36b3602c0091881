"""Any honest folder: a case for each layout, what is said of it, and what is refused."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from pseudolabel_nb.core import UserError
from pseudolabel_nb.data.sources import open_images, open_unlabeled

RNG = np.random.default_rng(0)
CIRCLE = ((np.indices((24, 32)) - [[[12]], [[16]]]) ** 2).sum(0) < 40


def save(path: Path, array=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (24, 32)).astype("u1") if array is None else array).save(path)
    return path


def images(folder: Path, n: int, first: int = 0, suffix: str = ".png") -> None:
    for k in range(first, first + n): save(folder / f"{k:02}{suffix}")


def masks(folder: Path, n: int, first: int = 0, suffix: str = ".png") -> None:
    for k in range(first, first + n): save(folder / f"{k:02}{suffix}", CIRCLE.astype("u1") * 255)


def coco(folder: Path, n: int, annotated: int, file: str = "_annotations.coco.json", below: str = "") -> None:
    images(folder / below, n)
    boxes = [dict(id=k, image_id=k, category_id=1, bbox=[4, 4, 8, 8], segmentation=[]) for k in range(annotated)]
    listed = [dict(id=k, file_name=f"{k:02}.png", width=32, height=24) for k in range(n)]
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(json.dumps(dict(images=listed, annotations=boxes, categories=[dict(id=1, name="c")])))


def sizes(data) -> dict[str, int]: return {s: len(found) for s, found in data.splits.items()}


def complaint(call, *parts: str) -> None:
    with pytest.raises(UserError) as e: call()
    assert "\n" not in str(e.value)
    for p in parts: assert p in str(e.value), f"{p!r} not in {e.value}"


# ---- layouts

@pytest.mark.parametrize("spelling", ["unlabeled", "unlabeled"])
def test_images_masks_and_unlabeled(tmp_path, spelling):
    images(tmp_path / "images", 12), masks(tmp_path / "masks", 12), images(tmp_path / spelling, 28)
    data = open_images(tmp_path)
    assert sizes(data) == dict(train=12, unlabeled=28)
    assert all(data.train.has_mask(i) for i in range(12)) and not any(data.unlabeled.has_mask(i) for i in range(28))
    assert (data.train.mask(3) == CIRCLE).all()
    assert data.val is None and "no split is named" in data.notes[-1] and "no validation images" in data.notes[-1]


def test_train_folder_and_unlabeled(tmp_path):
    images(tmp_path / "train/images", 4), masks(tmp_path / "train/masks", 4), images(tmp_path / "unlabeled/images", 5)
    data = open_images(tmp_path)
    assert sizes(data) == dict(train=4, unlabeled=5)
    assert data.notes[-1] == "no validation images are given (val/), and none were set aside"


def test_root_is_train_beside_named_splits(tmp_path):
    images(tmp_path / "images", 4), masks(tmp_path / "masks", 4)
    for s in ("val", "test"): images(tmp_path / s / "images", 2), masks(tmp_path / s / "masks", 2)
    data = open_images(tmp_path)
    assert sizes(data) == dict(train=4, val=2, test=2) and "left out" not in " ".join(data.notes)


def test_flat(tmp_path):
    images(tmp_path / "images", 3), masks(tmp_path / "masks", 3)
    assert sizes(open_images(tmp_path)) == dict(train=3)
    assert sizes(open_images(tmp_path, split="val")) == dict(val=3)


def test_some_images_have_a_mask(tmp_path):
    images(tmp_path / "images", 10), masks(tmp_path / "masks", 3)
    data = open_images(tmp_path)
    assert sizes(data) == dict(train=3, unlabeled=7) and data.unlabeled.ids[0] == "03.png"
    assert "train: 3 of 10 images have a mask; the other 7 are unlabeled" in data.notes
    images(tmp_path / "unlabeled", 4, first=2)  # two names are there already
    data = open_images(tmp_path)
    assert sizes(data) == dict(train=3, unlabeled=11) and len(set(data.unlabeled.ids)) == 11
    again = [i for i, id in enumerate(data.unlabeled.ids) if id.endswith("03.png")]
    shown = [data.unlabeled.image(i) for i in again]
    assert len(again) == 2 and not np.array_equal(*shown)
    disk = [np.asarray(Image.open(tmp_path / f / "03.png"), float) for f in ("images", "unlabeled")]
    for image, stored in zip(shown, disk):
        assert np.allclose(image[0], (stored - stored.mean()) / stored.std(), atol=1e-4)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_validation_image_without_a_mask_is_a_mistake(tmp_path, split):
    images(tmp_path / "train/images", 2), masks(tmp_path / "train/masks", 2)
    images(tmp_path / split / "images", 3), masks(tmp_path / split / "masks", 2)
    complaint(lambda: open_images(tmp_path), f"{split}/images/02.png", "no mask of that name")
    assert sizes(open_images(tmp_path, on_invalid="skip"))[split] == 2


def test_a_mask_without_an_image_is_a_mistake(tmp_path):
    images(tmp_path / "images", 2), masks(tmp_path / "masks", 3)
    complaint(lambda: open_images(tmp_path), "masks/02.png", "no image of that name")
    assert sizes(open_images(tmp_path, on_invalid="skip")) == dict(train=2)


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_side_by_side(tmp_path, suffix):
    images(tmp_path, 5, suffix=suffix), masks(tmp_path, 3), images(tmp_path / "unlabeled", 2)
    data = open_images(tmp_path)
    assert sizes(data) == dict(train=3, unlabeled=4) and data.train.ids == tuple(f"{k:02}{suffix}" for k in range(3))
    assert (data.train.mask(0) == CIRCLE).all() and "the other 2 are unlabeled" in " ".join(data.notes)
    assert len(open_unlabeled(tmp_path)) == 7  # a PNG beside its JPG is no image


def test_mask_names_beside_images_and_unlabeled(tmp_path):
    images(tmp_path, 3)
    for k in range(2): save(tmp_path / f"{k:02}_masks.png", CIRCLE.astype("u1"))
    images(tmp_path / "unlabeled", 2)
    assert sizes(open_images(tmp_path)) == dict(train=2, unlabeled=3)


def test_a_folder_a_split_side_by_side(tmp_path):
    for s in ("train", "valid", "test"): images(tmp_path / s, 2, suffix=".jpg"), masks(tmp_path / s, 2)
    data = open_images(tmp_path)
    assert sizes(data) == dict(train=2, val=2, test=2) and len(data.notes) == 1


def test_png_beside_jpg_that_is_no_mask(tmp_path):
    images(tmp_path, 3, suffix=".jpg"), images(tmp_path, 3)
    complaint(lambda: open_images(tmp_path), "hold the values", "expected 0 and 1")


def test_images_named_after_splits_below_images(tmp_path):
    for s in ("train", "val"): images(tmp_path / f"images/{s}", 2), masks(tmp_path / f"masks/{s}", 2)
    images(tmp_path / "images/unlabeled", 4)
    data = open_images(tmp_path)
    assert sizes(data) == dict(train=2, val=2, unlabeled=4)


def test_batches_without_labels(tmp_path):
    np.savez(tmp_path / "train.npz", images=RNG.normal(size=(3, 8, 9)), masks=np.ones((3, 8, 9), "u1"))
    np.savez(tmp_path / "unlabeled.npz", images=RNG.normal(size=(5, 8, 9)))
    np.savez(tmp_path / "extra.npz", images=RNG.normal(size=(5, 8, 9)))
    data = open_images(tmp_path)
    assert sizes(data) == dict(train=3, unlabeled=5) and not data.unlabeled.has_mask(0)
    assert "extra.npz: a batch that belongs to no split, left out" in data.notes


# ---- COCO images without annotations

def test_unannotated(tmp_path):
    coco(tmp_path / "train", 5, 3), coco(tmp_path / "val", 3, 2)
    data = open_images(tmp_path)
    assert sizes(data) == dict(train=5, val=3) and data.train.mask(4).sum() == 0
    assert 'train: 2 images without annotations read as empty (unannotated="unlabeled"' in " ".join(data.notes)
    data = open_images(tmp_path, unannotated="unlabeled")
    assert sizes(data) == dict(train=3, val=2, unlabeled=2) and data.unlabeled.ids == ("03.png", "04.png")
    assert not data.unlabeled.has_mask(0)
    assert "train: 2 images without annotations read as unlabeled, as asked" in data.notes
    assert "val: 1 image without annotations left out, since val needs labels" in data.notes
    complaint(lambda: open_images(tmp_path, unannotated="skip"), "unannotated", "empty, unlabeled")


def test_a_dummy_box_says_that_somebody_has_looked(tmp_path):
    coco(tmp_path, 2, 1)
    document = json.loads((tmp_path / "_annotations.coco.json").read_text())
    document["annotations"].append(dict(id=9, image_id=1, category_id=1, bbox=[0, 0, 0, 0], segmentation=[]))
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(document))
    assert sizes(open_images(tmp_path, unannotated="unlabeled")) == dict(train=2)


def test_unannotated_is_a_flag(tmp_path):
    from pseudolabel_nb.arguments import train_parser
    from pseudolabel_nb.inputs import open_data, source_of
    coco(tmp_path / "train", 4, 3), coco(tmp_path / "val", 2, 2)
    given = train_parser().parse_args(["--data-dir", str(tmp_path), "--unannotated", "unlabeled"])
    assert sizes(open_data(given)) == dict(train=3, val=2, unlabeled=1)
    assert source_of(given)["unannotated"] == "unlabeled"


def test_images_without_masks_come_with_the_folder_of_training_images(tmp_path):
    from pseudolabel_nb.arguments import train_parser
    from pseudolabel_nb.inputs import open_data
    images(tmp_path / "a/images", 4), masks(tmp_path / "a/masks", 3), images(tmp_path / "v/images", 2)
    masks(tmp_path / "v/masks", 2), images(tmp_path / "u", 5)
    named = ["--train-data-dir", str(tmp_path / "a"), "--val-data-dir", str(tmp_path / "v")]
    assert sizes(open_data(train_parser().parse_args(named))) == dict(train=3, val=2, unlabeled=1)
    data = open_data(train_parser().parse_args([*named, "--unlabeled-data-dir", str(tmp_path / "u")]))
    assert sizes(data) == dict(train=3, val=2, unlabeled=5) and "1 unlabeled images" in data.notes[-1]


# ---- nothing is passed over

def test_what_belongs_to_no_split_is_said(tmp_path):
    images(tmp_path / "train/images", 2), masks(tmp_path / "train/masks", 2), images(tmp_path / "train/preview", 2)
    images(tmp_path / "val/images", 2), masks(tmp_path / "val/masks", 2)
    images(tmp_path / "more/grid1", 3), images(tmp_path, 1)
    notes = open_images(tmp_path).notes
    for name, n in {tmp_path.name: 1, "more/grid1": 3, "train/preview": 2}.items():
        assert f"{name}: {n} images without annotations or masks, left out" in notes
    assert len(notes) == 4


def test_images_that_no_annotation_file_lists_are_said(tmp_path):
    coco(tmp_path / "train", 3, 3), coco(tmp_path / "val", 2, 2)
    images(tmp_path / "train", 2, first=7)
    assert open_images(tmp_path).notes[-1] == "train: 2 images without annotations or masks, left out"


def test_masks_beside_annotations_are_said(tmp_path):
    coco(tmp_path, 3, 3, below="images"), masks(tmp_path / "masks", 3)
    assert "masks: 3 images without annotations or masks, left out" in open_images(tmp_path).notes


# ---- nothing is recognized

@pytest.mark.parametrize(("make", "near"), [
    (lambda p: images(p / "images", 2), "images/ is there, and masks/ beside it is missing"),
    (lambda p: masks(p / "masks", 2), "masks/ is there, and images/ beside it is missing"),
    (lambda p: images(p, 2), "images without masks"),
    (lambda p: (images(p, 2, suffix=".jpg"), masks(p, 3)), "other PNGs have no image"),
    (lambda p: (images(p / "images", 2), (p / "labels").mkdir(), (p / "labels/00.txt").touch()),
     "labels/ holds no images"),
])
def test_the_nearest_layout_is_named(tmp_path, make, near):
    make(tmp_path)
    complaint(lambda: open_images(tmp_path), "no data set recognized", "Nearest is images/ + masks/", near)


def test_no_layout_is_near_an_empty_folder(tmp_path):
    with pytest.raises(UserError) as e: open_images(tmp_path)
    assert "Nearest" not in str(e.value) and "found nothing" in str(e.value)


# ---- readers are found by walking the package

READER = '''
import numpy as np
from pseudolabel_nb.data.images import Item
from pseudolabel_nb.data.readers import Part, Reader, Reading, register_reader

@register_reader
class Columns(Reader):
    "Images as columns of numbers."
    name, looks_for, suffixes = "columns", ("*.columns",), (".columns",)

    def find(self, path):
        found = [path] if path.suffix == ".columns" else sorted(path.glob("*.columns"))
        return Part(self.name, tuple(found)) if found else None

    def read(self, parts, options):
        item = lambda f: Item(f.stem, (4, 4), lambda: np.loadtxt(f), lambda: (np.loadtxt(f) > 1).astype("u1"))
        return Reading({s: [item(f) for f in p.files] for s, p in parts.items()}, notes=["columns read"])
'''


def test_a_format_is_one_file(tmp_path):
    "A reader in a file of the package's path is found without any other edit, and torch is not imported for it."
    (tmp_path / "more").mkdir()
    (tmp_path / "more/columns.py").write_text(READER)
    (tmp_path / "set/train").mkdir(parents=True)
    np.savetxt(tmp_path / "set/train/a.columns", np.arange(16).reshape(4, 4) / 8)
    (tmp_path / "empty").mkdir()
    code = f"""
import sys, pseudolabel_nb as pnb, pseudolabel_nb.data as package
assert "numpy" not in sys.modules and "torch" not in sys.modules
package.__path__.append({str(tmp_path / "more")!r})
data = pnb.open_images({str(tmp_path / "set")!r})
assert data.train.mask(0).sum() == 7 and data.notes[0] == "columns read", data
assert "torch" not in sys.modules
try: pnb.open_images({str(tmp_path / "empty")!r})
except pnb.UserError as e: assert "*.columns" in str(e)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_readers_are_asked_in_their_order():
    from pseudolabel_nb.data.readers import readers
    known = readers()
    assert list(known)[:2] == ["coco", "masks"] and list(known)[-1] == "images"
    assert [r.rank for r in known.values()] == sorted(r.rank for r in known.values())
