//! Which scenario was measured at which commit: figures of different ones do not belong together unsaid.

use serde_json::Value;
use std::fmt;

/// Names of scenarios by the commit of their reports, in the order in which they came.
#[derive(Debug, Default)]
pub struct Commits(Vec<(String, Vec<String>)>);

impl Commits {
    pub fn add(&mut self, scenario: &str, report: &Value) {
        let commit = report["environment"]["commit"].as_str();
        let commit = commit.filter(|commit| !commit.is_empty());
        let commit = commit.unwrap_or("unknown");
        let scenario = scenario.to_owned();
        match self.0.iter_mut().find(|(known, _)| known == commit) {
            Some((_, scenarios)) => scenarios.push(scenario),
            None => self.0.push((commit.to_owned(), vec![scenario])),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn differ(&self) -> bool {
        self.0.len() > 1
    }
}

/// As `commit a`, or `commits a (fanout, surge), b (scale)`.
impl fmt::Display for Commits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [(commit, _)] = self.0.as_slice() {
            return write!(f, "commit {commit}");
        }
        let each = self.0.iter();
        let each = each.map(|(commit, scenarios)| format!("{commit} ({})", scenarios.join(", ")));
        write!(f, "commits {}", each.collect::<Vec<_>>().join(", "))
    }
}
