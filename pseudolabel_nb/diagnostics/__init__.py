"""Diagnostics: what is wrong with pseudo-labels, and what to try. Names load when they are first used."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "advice", "expectations", "rules", "class_ratio", "findings", "known", "quantity", "confidence_filter",
        "calibration", "expected_quality", "drift", "prior_shift", "where", "ceiling", "gather", "diagnosis", "cases"],
    submod_attrs={"advice": ["Advice", "advise"], "class_ratio": ["ClassRatio", "diagnose_pseudo_labels"],
                  "findings": ["Diagnosis", "Finding", "Remedy"], "diagnosis": ["diagnose", "examine"]})
