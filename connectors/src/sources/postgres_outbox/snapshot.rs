//! PostgreSQL's snapshots: which transactions had ended at a moment.
//! Text form: `xmin:xmax:xip,xip,..`, <https://www.postgresql.org/docs/15/functions-info.html>.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// All transactions below `xmax` had ended, but for those in `running`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct PgSnapshot {
    xmin: u64,
    pub xmax: u64,
    pub running: Vec<u64>,
}

impl FromStr for PgSnapshot {
    type Err = String;

    fn from_str(text: &str) -> Result<PgSnapshot, String> {
        let wrong = || format!("{text:?} is no snapshot of PostgreSQL");
        let number = |n: &str| n.parse::<u64>().map_err(|_| wrong());
        let mut parts = text.split(':');
        let mut part = || parts.next().ok_or_else(wrong);
        let (xmin, xmax, running) = (number(part()?)?, number(part()?)?, part()?);
        let running = match running {
            "" => Vec::new(),
            list => list.split(',').map(number).collect::<Result<_, _>>()?,
        };
        Ok(PgSnapshot {
            xmin,
            xmax,
            running,
        })
    }
}

impl fmt::Display for PgSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let running: Vec<String> = self.running.iter().map(u64::to_string).collect();
        write!(f, "{}:{}:{}", self.xmin, self.xmax, running.join(","))
    }
}

impl TryFrom<String> for PgSnapshot {
    type Error = String;

    fn try_from(text: String) -> Result<PgSnapshot, String> {
        text.parse()
    }
}

impl From<PgSnapshot> for String {
    fn from(snapshot: PgSnapshot) -> String {
        snapshot.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_and_written_the_same() {
        for text in ["10:10:", "10:20:10,14,15"] {
            let snapshot: PgSnapshot = text.parse().expect(text);
            assert_eq!(snapshot.to_string(), text);
        }
        for wrong in ["", "10", "10:20", "a:b:", "1:2:x", "1:2:3,"] {
            assert!(wrong.parse::<PgSnapshot>().is_err(), "{wrong}");
        }
    }
}
