//! The operator's command: questions to a broker, publishing and reading by hand, and the demo that
//! runs 32 platforms through an embedded broker.

pub mod cli;
pub mod commands;
pub mod demo;
pub mod errors;
pub mod output;
pub mod shapes;
pub mod times;
