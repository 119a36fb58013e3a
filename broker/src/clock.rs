//! The one place that reads the wall clock; everything else is handed a [`Clock`]. Durability and
//! order never depend on it.

use hutong_proto::Micros;
use std::{sync::Arc, time::SystemTime};

/// Microseconds since the Unix epoch.
pub type Clock = Arc<dyn Fn() -> Micros + Send + Sync>;

pub fn system() -> Clock {
    Arc::new(|| {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Micros(since.as_micros() as u64)
    })
}
