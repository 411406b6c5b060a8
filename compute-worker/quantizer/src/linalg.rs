//! Factorisations and least squares over large symmetric matrices.
