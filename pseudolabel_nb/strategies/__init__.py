"""Strategies: recipes, their parts, and functions for a training loop of your own. Names load when they are first used."""
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["parts", "threshold", "limited", "class_balanced", "curriculum", "pseudo_images", "recipes", "functions"],
    submod_attrs={
        "functions": ["generate_class_balanced_pseudo_labels", "generate_limited_pseudo_labels", "generate_curriculum_pseudo_labels"],
        "recipes": ["recipe", "register_recipe", "with_threshold"],
        "parts": ["Constant", "Context", "Linear", "Recipe", "Rule", "Schedule", "Selection", "Selector", "Student", "Teacher", "apply"],
    },
)
