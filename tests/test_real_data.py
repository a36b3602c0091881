"""Real sets as users bring them.

They are not in the repository: PSEUDOLABEL_DATA names the folder that holds them, and without it these tests are
skipped."""
import os
from pathlib import Path

import numpy as np
import pytest

from pseudolabel_nb.data.sources import open_images
from pseudolabel_nb.data.splits import check_separate, divide_by_group, labeled_ids

ROOT = os.environ.get("PSEUDOLABEL_DATA")

def opened(name: str, **options):
    if not ROOT:
        pytest.skip("PSEUDOLABEL_DATA is not set; set it to the folder that holds "
                    "vnc_mito, ldc_cells, dsb2018 and empiar_10017")
    if not (Path(ROOT) / name).is_dir(): pytest.skip(f"{name} is not in the folder PSEUDOLABEL_DATA names")
    return open_images(Path(ROOT) / name, **options)

def foreground(*sets) -> float:
    masks = [s.mask(i) for s in sets for i in range(len(s))]
    return sum((m == 1).sum() for m in masks) / sum((m != 255).sum() for m in masks)

def test_vnc_mito():
    data = opened("vnc_mito", group_regex=r"(r\d+_c\d+)")
    assert [len(s) for s in data.splits.values()] == [180, 60, 80]
    assert foreground(*data.splits.values()) == pytest.approx(0.054, abs=5e-4)
    empty = [not s.mask(i).any() for s in data.splits.values() for i in range(len(s))]
    assert np.mean(empty) == pytest.approx(0.14, abs=0.01)
    check_separate(data)
    picked = labeled_ids(data.train.ids, data.train.groups, 0.05)
    # one of each tissue column
    assert len(picked) == 9 == len({data.train.groups[data.train.index(i)] for i in picked})
    a, b = divide_by_group(data.val.ids, data.val.groups)
    assert not {i[4:] for i in a} & {i[4:] for i in b}

def test_ldc_cells():
    data = opened("ldc_cells")
    assert [len(s) for s in data.splits.values()] == [1236, 141, 220]
    assert foreground(data.train) == pytest.approx(0.027, abs=5e-4)
    assert foreground(opened("ldc_cells", boxes="filled").train) == pytest.approx(0.027 * 4 / np.pi, rel=0.02)
    check_separate(data)

def test_ldc_cells_by_class():
    data = opened("ldc_cells", multiclass=True)
    assert data.classes == ("background", "Living Cell", "Dead Cell") and data.train.n_classes == 3

def test_dsb2018():
    data = opened("dsb2018")
    assert [len(s) for s in data.splits.values()] == [214, 40, 80]
    assert foreground(*data.splits.values()) == pytest.approx(0.077, abs=5e-4)
    check_separate(data)

def test_empiar_10017():
    data = opened("empiar_10017", cache_bytes=2**26)
    assert len(data.train) == 12 and data.train.shape(0) == (4096, 4096)
    assert 0.2 < foreground(data.train) < 0.45
    assert data.train.crop(3, 100, 200, 128, 128).shape == (1, 128, 128)
    assert data.train.cache.size <= 2**26
