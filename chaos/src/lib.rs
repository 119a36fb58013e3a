//! Drills, injectors and checkers.
//!
//! A drill ([`drill`]) is played ([`play`]) on a stage of real processes ([`stage`]), where clients
//! ([`clients`]) behind a proxy ([`proxy`]) write down what they see ([`history`]) while faults
//! ([`faults`]) come and go. A judge ([`judge`]) reads the history, and a report ([`report`]) shows it.

pub mod clients;
pub mod clock;
pub mod commands;
pub mod drill;
pub mod error;
pub mod faults;
pub mod history;
pub mod judge;
pub mod play;
pub mod proxy;
pub mod report;
pub mod stage;
