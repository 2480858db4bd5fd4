"""Pictures that people look at: samples, trajectories, densities and training curves.

Every function returns a matplotlib figure, and writes it where a path is given (the format follows its suffix). Flows,
runs and dicts are taken where one is natural. Figures are made without pyplot, so nothing depends on a display or
touches the figures of a notebook; those that are one panel draw into an axis of yours with ``ax=``.
"""

from cflow.plot.calibration_plots import calibration
from cflow.plot.corner_plots import corner
from cflow.plot.curves import training
from cflow.plot.density_plots import Grid, densities, density, grid
from cflow.plot.figure import BLUE, GREY, ORANGE, finish, new_figure
from cflow.plot.image_grids import image_trajectories, images
from cflow.plot.plane import scatter, scatters, trajectories

__all__ = [
    "BLUE",
    "GREY",
    "ORANGE",
    "Grid",
    "calibration",
    "corner",
    "densities",
    "density",
    "finish",
    "grid",
    "image_trajectories",
    "images",
    "new_figure",
    "scatter",
    "scatters",
    "training",
    "trajectories",
]
