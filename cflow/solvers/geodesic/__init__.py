"""Solvers whose steps stay on a manifold: along geodesics, by projection, and in the algebra of a Lie group."""
