"""Diagnostics: what is wrong with pseudo-labels, and what to try. Names load when they are first used."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["class_ratio"], submod_attrs={"class_ratio": ["ClassRatio", "diagnose_pseudo_labels"]})
