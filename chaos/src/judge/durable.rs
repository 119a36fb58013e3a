//! INV-1: what was acknowledged is in the log. INV-3: what is missing at the end is missing as a whole,
//! not in between.

use crate::{
    history::Stream,
    judge::{Facts, Findings, Invariant, Violation, facts::revisions},
    text::Text,
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
            let (who, error) = (who.clone(), Text::quoted(error));
            findings.violated(
                Invariant::NothingLost,
                &Violation::ClientGaveUp { who, error },
            );
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
        let (issuer, stream) = (*issuer, *stream);
        for op in ops {
            for revision in op.revisions().filter(|r| !op.is_refused(*r)) {
                let there = logged.contains(&revision);
                if op.is_ok() {
                    findings.checked(Invariant::NothingLost, 1);
                    if !there {
                        let found = Violation::AcknowledgedIsMissing {
                            issuer,
                            stream,
                            revision,
                        };
                        findings.violated(Invariant::NothingLost, &found);
                    }
                }
                findings.checked(Invariant::PrefixWithoutHole, 1);
                if !there && revision < last {
                    let found = Violation::Hole {
                        issuer,
                        stream,
                        revision,
                        last,
                    };
                    findings.violated(Invariant::PrefixWithoutHole, &found);
                }
            }
        }
    }
}
