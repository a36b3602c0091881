"""Strategies: selectors, methods, and functions for a training loop of your own.

Names load when they are first used."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["best", "cards", "class_balanced", "class_quantiles", "copy_paste", "cps", "curriculum", "ensemble",
                "fixmatch", "functions", "limited", "low_threshold", "mean_teacher", "methods", "mixing",
                "positive_unlabeled", "pseudo_images", "pu", "reliable", "schedules", "selection", "self_training",
                "strategy", "strategy_files", "threshold", "unimatch", "weighted"],
    submod_attrs={"functions": ["generate_class_balanced_pseudo_labels", "generate_curriculum_pseudo_labels",
                                "generate_limited_pseudo_labels"],
                  "methods": ["Method", "Supervised"],
                  "schedules": ["Constant", "Moving", "Schedule"],
                  "selection": ["Context", "Rule", "Selection", "Selector", "apply"],
                  "self_training": ["SelfTraining"],
                  "strategy": ["Strategy", "Teacher", "changed", "register_strategy", "strategies"],
                  "strategy_files": ["read_strategy", "with_threshold"]})
