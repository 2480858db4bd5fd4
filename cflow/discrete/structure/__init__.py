"""Which features depend on which: couplings, autoregressive and elementwise layers, and their networks."""

from cflow.discrete.structure.autoregressive import Autoregressive
from cflow.discrete.structure.conditioner import Conditioner
from cflow.discrete.structure.coupling import Coupling
from cflow.discrete.structure.elementwise import Elementwise
from cflow.discrete.structure.inverses import Incremental, Jacobi

__all__ = ["Autoregressive", "Conditioner", "Coupling", "Elementwise", "Incremental", "Jacobi"]
