//! INV-1: what was acknowledged is in the log. INV-3: what is missing at the end is missing as a whole,
//! not in between.

use crate::{
    history::Stream,
    judge::{Facts, Findings, Invariant, facts::revisions},
};
use std::collections::{BTreeMap, HashSet};

pub fn check(facts: &Facts<'_>, findings: &mut Findings) {
    // What nobody read again may be there all the same; that it could not be read is told elsewhere.
    if facts.audited {
        missing(facts, findings);
    }
    // A library that gives up says that the broker broke its word: it forgot batches, or has another log.
    for (_, who, error) in &facts.history.client_ends {
        if who.starts_with("publisher") || who.starts_with("subscription") {
            findings.violated(Invariant::NothingLost, format!("{who} gave up: {error}"));
        }
    }
}

fn missing(facts: &Facts<'_>, findings: &mut Findings) {
    let mut logged: BTreeMap<(u32, Stream), HashSet<u64>> = BTreeMap::new();
    for record in facts.log.values() {
        let of = logged.entry((record.issuer, record.stream)).or_default();
        of.extend(revisions(record));
    }
    let nothing = HashSet::new();
    for ((issuer, stream), ops) in &facts.history.ops {
        let logged = logged.get(&(*issuer, *stream)).unwrap_or(&nothing);
        let last = logged.iter().max().copied().unwrap_or(0);
        let who = format!("{issuer} ({})", stream.name());
        for op in ops {
            for revision in op.revisions().filter(|r| !op.is_refused(*r)) {
                let there = logged.contains(&revision);
                if op.is_ok() {
                    findings.checked(Invariant::NothingLost, 1);
                    if !there {
                        let text =
                            format!("{who}: revision {revision} was acknowledged and is not there");
                        findings.violated(Invariant::NothingLost, text);
                    }
                }
                findings.checked(Invariant::PrefixWithoutHole, 1);
                if !there && revision < last {
                    let text = format!(
                        "{who}: revision {revision} is not there, but later ones up to {last} are"
                    );
                    findings.violated(Invariant::PrefixWithoutHole, text);
                }
            }
        }
    }
}
