//! placeholder.

fn main() {}
