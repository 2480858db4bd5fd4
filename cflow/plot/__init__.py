"""Pictures that people look at: samples, trajectories, densities and training curves.

Every function writes one file (the format follows its suffix); most return its path. Figures are made without pyplot,
so nothing depends on a display or touches the figures of a notebook.
"""

from cflow.plot.calibration_plots import calibration
from cflow.plot.corner_plots import corner
from cflow.plot.curves import training
from cflow.plot.density_plots import densities, density
from cflow.plot.figure import BLUE, GREY, ORANGE, new_figure, save
from cflow.plot.image_grids import image_trajectories, images
from cflow.plot.plane import scatter, scatters, trajectories

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
