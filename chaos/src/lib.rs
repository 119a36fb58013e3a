//! Drills, injectors and checkers; deterministic simulation and crash sweeps.
//!
//! A drill ([`drill`]) is played ([`play`]) on a stage of real processes ([`stage`]), where clients
//! ([`clients`]) behind a proxy ([`proxy`]) write down what they see ([`history`]) while faults
//! ([`faults`]) come and go. A judge ([`judge`]) reads the history, and a report ([`report`]) shows it.
//!
//! A simulation ([`sim`]) runs broker and clients in one thread, and a sweep ([`sweep`]) cuts the power at
//! every write of a real store. Both compare with a [`model`], and [`plants`] shows that they notice.

pub mod clients;
pub mod clock;
pub mod commands;
pub mod drill;
pub mod error;
pub mod faults;
pub mod history;
pub mod interrupt;
pub mod judge;
pub mod model;
pub mod out;
pub mod plants;
pub mod play;
pub mod proxy;
pub mod random;
pub mod report;
pub mod sim;
pub mod stage;
pub mod sweep;
pub mod text;
