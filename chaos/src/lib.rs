//! Drills, injectors and checkers
