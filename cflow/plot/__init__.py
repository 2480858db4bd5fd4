"""Pictures of samples, maps, angles, tokens, trajectories, densities, calibration and training curves.

Every function returns a matplotlib figure, and writes it if a path is given (its suffix sets the format). Where it
makes sense, functions accept flows, training runs and dicts. Figures are made without pyplot, so they need no display
and do not affect the figures of a notebook. Functions with a single panel can draw into your own axis with ``ax=``.
"""

from cflow.plot.calibration_plots import calibration
from cflow.plot.corner_plots import corner
from cflow.plot.curves import training
from cflow.plot.density_plots import Grid, densities, density, grid
from cflow.plot.figure import BLUE, GREY, ORANGE, finish, new_figure
from cflow.plot.image_grids import image_trajectories, images
from cflow.plot.maps import sphere
from cflow.plot.on_surfaces import surfaces
from cflow.plot.plane import scatter, scatters, trajectories
from cflow.plot.token_grids import tokens
from cflow.plot.tori import torus

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
    "sphere",
    "surfaces",
    "tokens",
    "torus",
    "training",
    "trajectories",
]
