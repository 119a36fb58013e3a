//! Drills, injectors and checkers; deterministic simulation and crash sweeps.

pub mod model;
pub mod plants;
pub mod random;
pub mod sim;
pub mod sweep;
