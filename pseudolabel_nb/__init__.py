"""Semi-supervised segmentation with pseudo-labels: the public names, each loaded when it is first used.

`import pseudolabel_nb as pnb` imports neither torch nor anything else that is slow; `pnb.run` does.
"""

__version__ = "0.1.0"

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["core", "data", "models", "measures", "runs", "inference", "strategies", "diagnostics", "training"],
    submod_attrs={
        "core": ["UserError"],
        "data.sources": ["Data", "ImageSet", "from_arrays", "open_images", "open_unlabelled"],
        "strategies.recipes": ["recipe", "recipes"],
        "training.rounds": ["rounds", "run"],
        "diagnostics.class_ratio": ["diagnose_pseudo_labels"],
        "runs.run": ["Run", "open_run"],
    },
)
