"""Pictures that people look at: samples, trajectories, densities and training curves.

Every function writes one file (the format follows its suffix); most return its path. Figures are made without pyplot,
so nothing depends on a display or touches the figures of a notebook.
"""

from .calibration_plots import calibration
from .corner_plots import corner
from .curves import training
from .density_plots import densities, density
from .figure import BLUE, GREY, ORANGE, new_figure, save
from .image_grids import image_trajectories, images
from .plane import scatter, scatters, trajectories

__all__ = [
    "BLUE",
    "GREY",
    "ORANGE",
    "calibration",
    "corner",
    "densities",
    "density",
    "image_trajectories",
    "images",
    "new_figure",
    "save",
    "scatter",
    "scatters",
    "training",
    "trajectories",
]
