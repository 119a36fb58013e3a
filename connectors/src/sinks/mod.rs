//! Where rows go.

pub mod json_lines;
pub mod postgres;
mod value;
