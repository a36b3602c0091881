"""Strategies: strategies, their parts, and functions for a training loop of your own. Names load when they are first used."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["parts", "pseudo_images", "threshold", "low_threshold", "limited", "class_balanced", "class_quantiles", "curriculum", "weighted", "ensemble", "mean_teacher", "fixmatch", "best", "unimatch", "cps", "copy_paste", "pu", "strategies", "functions"],
    submod_attrs={
        "functions": ["generate_class_balanced_pseudo_labels", "generate_limited_pseudo_labels", "generate_curriculum_pseudo_labels"],
        "strategies": ["changed", "read_strategy", "strategy", "register_strategy", "register_strategy", "with_threshold"],
        "parts": ["Constant", "Context", "Moving", "Strategy", "Rule", "Schedule", "Selection", "Selector", "Student", "Teacher", "apply"],
    },
)
