"""Semi-supervised segmentation with pseudo-labels: the public names, each loaded when it is first used.

`import pseudolabel_nb as pnb` imports neither torch nor anything else that is slow; `pnb.run` does.
"""

__version__ = "0.1.0"

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["arguments", "cards", "cli", "core", "data", "diagnostics", "experiments", "inference", "measures",
                "models", "runs", "strategies", "training", "widgets"],
    submod_attrs={
        "core": ["UserError"],
        "data.coordinates": ["Picks", "read_coordinates"],
        "data.coordinates_out": ["write_coordinates"],
        "data.images": ["Data", "ImageSet", "from_arrays"],
        "data.loading": ["batches"],
        "data.orientation": ["read_picks"],
        "data.picked": ["open_picked"],
        "data.preparation": ["Preparation", "mark_picks", "prepare"],
        "data.readers": ["Part", "Reader", "Reading", "ReadOptions", "register_reader"],
        "data.sources": ["open_images", "open_unlabeled"],
        "data.synthetic": ["micrographs"],
        "diagnostics.advice": ["advise"],
        "diagnostics.class_ratio": ["diagnose_pseudo_labels"],
        "diagnostics.diagnosis": ["diagnose"],
        "experiments.action_plan": ["action_plan"],
        "experiments.picking": ["pick_images"],
        "experiments.report": ["write_report"],
        "experiments.results": ["plot_gains", "read_results", "summarize"],
        "experiments.sweep": ["sweep"],
        "inference.consensus": ["consensus"],
        "inference.picks": ["find_picks"],
        "inference.predictions": ["Predictions", "predict"],
        "measures.particles": ["match_picks", "particle_scores", "particle_table"],
        "models.networks": ["register_network"],
        "runs.branch": ["branch"],
        "runs.run": ["Run", "open_run"],
        "runs.tracking": ["to_mlflow", "to_tensorboard"],
        "strategies.methods": ["Method"],
        "strategies.selection": ["Rule", "Selector"],
        "strategies.self_training": ["SelfTraining"],
        "strategies.strategy": ["Strategy", "Teacher", "register_strategy", "strategy"],
        "strategies.pseudo_images": ["PseudoImages"],
        "strategies.strategy_files": ["read_strategy"],
        "training.rounds": ["finish", "rounds", "run"],
        "runs.settings": ["Settings"],
        "training.task": ["begin"],
        "widgets.dashboard": ["Dashboard"],
        "widgets.explorer": ["PseudoLabelExplorer"],
        "widgets.comparer": ["RunComparer"],
        "widgets.stepper": ["CurriculumStepper"],
        "widgets.overlay": ["show_grid", "show_overlay"],
    },
)
