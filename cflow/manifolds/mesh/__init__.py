"""Triangle meshes: surfaces given by tables, with spectral distances."""

from cflow.manifolds.mesh.distances import Biharmonic, CommuteTime, Diffusion
from cflow.manifolds.mesh.mesh import Mesh

__all__ = ["Biharmonic", "CommuteTime", "Diffusion", "Mesh"]
