//! The clients of a drill: platforms that publish at a fixed rate and subscribe to all others, each on
//! a line of its own, and all writing down what they did and saw. They use the same SDK as everybody.

mod board;
mod deltas;
mod publisher;
mod subscriber;
mod table;

pub use board::{Board, Progress};
pub use deltas::{
    Deltas, Digest, OBSERVER, PLATFORMS, POISON_MARK, Register, mix, provenance, stream_of,
};
pub use publisher::{Load, Poisoner, Producer, Refusals};
pub use subscriber::{Reader, Until, open};
pub use table::Sampler;

use hutong_proto::Issuer;

/// A code of ours; they all have six digits.
pub fn issuer(code: u32) -> Issuer {
    Issuer::new(code).unwrap_or(Issuer::BROKER)
}
