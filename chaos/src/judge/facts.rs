//! A history, arranged for the checkers: the log as it was read again at the end, what each place of it
//! must say, and what the registers are after it.

use crate::{
    clients::{Deltas, Register},
    history::{Cursor, History, Item, Record, Role, Row, Stream, Subscription},
    text::{Said, Text},
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
};

/// The newest revision of each register.
pub type View = BTreeMap<Register, u64>;

type Content = (u32, Stream, Vec<(u64, u32)>);

#[derive(Debug)]
pub struct Facts<'h> {
    pub history: &'h History,
    pub deltas: Deltas,
    /// By offset.
    pub log: BTreeMap<u64, &'h Record>,
    /// It was read again as a whole; otherwise it is what anybody got of it.
    pub audited: bool,
    /// So was the state.
    pub snapshot_audited: bool,
    pub load_begin: u64,
    /// Every subscriber gets the same bytes; their digest is made once.
    digests: RefCell<HashMap<Content, Option<u32>>>,
}

/// Records of a subscription, with the time of each.
pub fn records(subscription: &Subscription) -> impl Iterator<Item = (u64, &Record)> {
    subscription
        .items
        .iter()
        .filter_map(|(t, item)| match item {
            Item::Record(record) => Some((*t, record)),
            _ => None,
        })
}

pub fn deltas_of(subscription: &Subscription) -> u64 {
    records(subscription)
        .flat_map(|(_, record)| &record.runs)
        .map(|(_, count)| u64::from(*count))
        .sum()
}

/// Of a record, in order.
pub fn revisions(record: &Record) -> impl Iterator<Item = u64> + use<'_> {
    let runs = record.runs.iter();
    runs.flat_map(|(first, count)| *first..*first + u64::from(*count))
}

pub fn is_urgent(stream: Stream) -> bool {
    stream == Stream::Urgent
}

/// Is this place below the cursor?
pub fn is_below(record: &Record, cursor: Cursor) -> bool {
    let lane = match is_urgent(record.stream) {
        true => cursor.urgent,
        false => cursor.bulk,
    };
    record.offset < lane
}

impl<'h> Facts<'h> {
    pub fn of(history: &'h History) -> Facts<'h> {
        let audit = history.with_role(Role::Log).filter(|s| s.audited).last();
        let mut log = BTreeMap::new();
        let all: Vec<&Subscription> = match audit {
            Some(audit) => vec![audit],
            None => history.subscriptions.iter().collect(),
        };
        for subscription in all {
            for (_, record) in records(subscription) {
                log.entry(record.offset).or_insert(record);
            }
        }
        let begins = history.ops.values().flatten().map(|op| op.at);
        Facts {
            deltas: Deltas::of(&history.header, &history.drill.workload),
            audited: audit.is_some(),
            snapshot_audited: history.with_role(Role::Snapshot).any(|s| s.audited),
            load_begin: begins.min().unwrap_or(0),
            history,
            log,
            digests: RefCell::default(),
        }
    }

    pub fn due(&self, issuer: u32, stream: Stream, revision: u64) -> Option<u64> {
        let op = self.history.op_of(issuer, stream, revision)?;
        Some(op.due)
    }

    /// What the content of a record must have for its digest; nothing when it was never published.
    pub fn digest(&self, record: &Record) -> Option<u32> {
        let content = (record.issuer, record.stream, record.runs.clone());
        if let Some(known) = self.digests.borrow().get(&content) {
            return *known;
        }
        let due = |revision| self.due(record.issuer, record.stream, revision);
        let digest = self.deltas.digest(record, due);
        self.digests.borrow_mut().insert(content, digest);
        digest
    }

    pub fn register(&self, record: &Record, revision: u64) -> Register {
        self.deltas.register(record.issuer, record.stream, revision)
    }

    /// What the log makes of the registers, up to a cursor, without what `own` issued.
    pub fn fold(&self, below: Option<Cursor>, own: Option<u32>) -> View {
        let mut view = View::new();
        for record in self.log.values() {
            let within = below.is_none_or(|cursor| is_below(record, cursor));
            if within && own != Some(record.issuer) {
                self.apply(&mut view, record);
            }
        }
        view
    }

    pub fn apply(&self, view: &mut View, record: &Record) {
        for revision in revisions(record) {
            let newest = view.entry(self.register(record, revision)).or_default();
            *newest = revision.max(*newest);
        }
    }

    /// Rows of a snapshot or a table as a view. A register that stands twice is the error.
    pub fn view<'r>(&self, rows: impl IntoIterator<Item = &'r Row>) -> Result<View, Register> {
        let mut view = View::new();
        for (issuer, stream, revision) in rows {
            let register = self.deltas.register(*issuer, *stream, *revision);
            if view.insert(register, *revision).is_some() {
                return Err(register);
            }
        }
        Ok(view)
    }
}

/// The first registers in which two views differ, in words, and how many there are.
pub fn difference(expected: &View, found: &View) -> Option<(usize, Text)> {
    let text = |value: Option<&u64>| match value {
        None => Text::new("nothing", "无"),
        Some(revision) => Text::new(format!("revision {revision}"), format!("修订号 {revision}")),
    };
    let missing = found.keys().filter(|r| !expected.contains_key(*r));
    let differ: Vec<_> = expected
        .keys()
        .chain(missing)
        .filter(|r| expected.get(*r) != found.get(*r))
        .collect();
    let first = **differ.first()?;
    let (found, must) = (text(found.get(&first)), text(expected.get(&first)));
    let told = Text::new(
        format!("{} has {}, and must have {}", first.en(), found.en, must.en),
        format!("{} 为{}，应为{}", first.zh(), found.zh, must.zh),
    );
    Some((differ.len(), told))
}
