//! Reading a history back, into the parts that the checkers look at.

use crate::{
    drill::{Drill, Overrides},
    error::ChaosError,
    history::{
        AreasCompared, Cursor, Event, Header, How, Life, Line, Phase, Proof, Reaction, Record,
        Role, Row, Stream, VERSION,
    },
    text::Text,
};
use hutong_plants::Failpoint;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    time::Duration,
};

/// Deltas handed over together.
#[derive(Clone, Debug)]
pub struct Op {
    pub op: u64,
    pub first: u64,
    pub count: u32,
    pub due: u64,
    pub at: u64,
    pub end: Option<End>,
}

#[derive(Clone, Debug)]
pub struct End {
    pub at: u64,
    pub how: How,
    pub accepted: u32,
    pub duplicate: bool,
    pub refused: Vec<(u32, String)>,
}

impl Op {
    /// An answer said that this revision was not taken.
    pub fn is_refused(&self, revision: u64) -> bool {
        self.end.as_ref().is_some_and(|end| {
            end.how == How::Failed
                || end
                    .refused
                    .iter()
                    .any(|(index, _)| self.first + u64::from(*index) == revision)
        })
    }

    pub fn is_ok(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end.how == How::Ok)
    }

    pub fn revisions(&self) -> std::ops::Range<u64> {
        self.first..self.first + u64::from(self.count)
    }
}

#[derive(Clone, Debug)]
pub struct Poisoned {
    pub op: u64,
    pub what: String,
    pub bad: u32,
    pub end: Option<End>,
}

/// What a subscription got, in order.
#[derive(Clone, Debug)]
pub enum Item {
    Opened(Cursor),
    SnapshotBegin,
    Rows(Vec<Row>, u32),
    SnapshotEnd(Cursor),
    Record(Record),
    Alien(u64, String),
}

#[derive(Clone, Debug)]
pub struct Subscription {
    pub platform: u32,
    pub name: String,
    pub role: Role,
    /// With the time at which it came.
    pub items: Vec<(u64, Item)>,
    pub reconnects: u64,
    /// It was read up to the end of the log.
    pub audited: bool,
}

#[derive(Clone, Debug)]
pub struct Table {
    pub at: u64,
    pub sink: String,
    pub cursor: Option<Cursor>,
    pub rows: Vec<Row>,
    pub bad: u32,
}

#[derive(Clone, Debug)]
pub struct FaultSeen {
    pub phases: Vec<(u64, Phase)>,
}

/// Of a fault that was begun; what did not come is the end of the history.
#[derive(Clone, Copy, Debug)]
pub struct FaultTimes {
    pub begin: u64,
    pub active: u64,
    pub healing: u64,
    pub ended: u64,
}

impl FaultSeen {
    pub fn times(&self, end: u64) -> Option<FaultTimes> {
        Some(FaultTimes {
            begin: self.begin()?,
            active: self.time(|p| matches!(p, Phase::Active)).unwrap_or(end),
            healing: self.healing().unwrap_or(end),
            ended: self.time(Phase::is_last).unwrap_or(end),
        })
    }

    pub fn time(&self, is: fn(&Phase) -> bool) -> Option<u64> {
        self.phases.iter().find(|(_, p)| is(p)).map(|(t, _)| *t)
    }

    /// When it was begun, if it was.
    pub fn begin(&self) -> Option<u64> {
        self.time(|p| matches!(p, Phase::Begin))
    }

    /// From when on things could get well.
    pub fn healing(&self) -> Option<u64> {
        self.time(|p| matches!(p, Phase::Healing))
            .or_else(|| self.time(Phase::is_last))
    }

    /// How one can tell that it happened, if it was undone.
    pub fn proof(&self) -> &[Proof] {
        let found = self.phases.iter().find_map(|(_, phase)| match phase {
            Phase::Undone { proof } => Some(proof.as_slice()),
            _ => None,
        });
        found.unwrap_or(&[])
    }

    /// What somebody did about it.
    pub fn reactions(&self) -> &[Reaction] {
        let found = self.phases.iter().find_map(|(_, phase)| match phase {
            Phase::Ended { reactions } => Some(reactions.as_slice()),
            _ => None,
        });
        found.unwrap_or(&[])
    }

    /// Why it could not be done, or not be undone.
    pub fn failed(&self) -> Option<&Text> {
        self.phases.iter().find_map(|(_, phase)| match phase {
            Phase::Failed { why } | Phase::Stuck { why } => Some(why),
            _ => None,
        })
    }

    /// It could not be undone.
    pub fn is_stuck(&self) -> bool {
        self.time(|p| matches!(p, Phase::Stuck { .. })).is_some()
    }

    /// Is it shown that it happened?
    pub fn is_proven(&self) -> bool {
        let proof = self.proof();
        self.failed().is_none() && !proof.is_empty() && proof.iter().all(|p| p.holds)
    }
}

#[derive(Clone, Debug)]
pub struct History {
    pub header: Header,
    pub drill: Drill,
    /// By producer, in the order of revisions.
    pub ops: BTreeMap<(u32, Stream), Vec<Op>>,
    pub poison: Vec<Poisoned>,
    pub subscriptions: Vec<Subscription>,
    pub tables: Vec<Table>,
    pub areas: Option<AreasCompared>,
    pub processes: Vec<(u64, String, Life)>,
    pub faults: Vec<FaultSeen>,
    /// Time, memory in bytes, processor time in milliseconds.
    pub samples: Vec<(u64, u64, u64)>,
    /// When the clients said that they run.
    pub beats: Vec<u64>,
    pub client_ends: Vec<(u64, String, String)>,
    pub load_ended: Option<u64>,
    pub converged: Option<u64>,
    pub stopped: Option<(u64, Text)>,
    pub done: bool,
    pub last: u64,
}

impl History {
    pub fn op_of(&self, issuer: u32, stream: Stream, revision: u64) -> Option<&Op> {
        let ops = self.ops.get(&(issuer, stream))?;
        let after = ops.partition_point(|op| op.first <= revision);
        let op = &ops[after.checked_sub(1)?];
        op.revisions().contains(&revision).then_some(op)
    }

    pub fn with_role(&self, role: Role) -> impl Iterator<Item = &Subscription> {
        self.subscriptions.iter().filter(move |s| s.role == role)
    }

    /// The longest time for which the clients themselves stood still.
    pub fn stood_still(&self) -> u64 {
        let gaps = self.beats.windows(2).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap_or(0)
    }

    /// When the load was over; of a drill that was cut short, its last line.
    pub fn load_end(&self) -> u64 {
        self.load_ended.unwrap_or(self.last)
    }
}

/// Reads a file. An error says the line.
pub fn read(path: &Path) -> Result<History, ChaosError> {
    let file = File::open(path).map_err(ChaosError::file("cannot read", path))?;
    let lines = BufReader::new(file).lines();
    let mut history: Option<Gather> = None;
    for (i, line) in lines.enumerate() {
        let wrong = |why: String| ChaosError::Usage(format!("{}:{}: {why}", path.display(), i + 1));
        let line = line.map_err(|e| wrong(e.to_string()))?;
        let line: Line = serde_json::from_str(&line)
            .map_err(|e| wrong(format!("this is no line of a history: {e}")))?;
        match &mut history {
            None => history = Some(Gather::begin(line).map_err(wrong)?),
            Some(gather) => gather.take(line).map_err(wrong)?,
        }
    }
    match history {
        Some(gather) => Ok(gather.finish()),
        None => Err(ChaosError::Usage(format!(
            "{}: an empty file is no history",
            path.display()
        ))),
    }
}

struct Gather {
    history: History,
    /// Where an operation that is not ended stands.
    open: BTreeMap<u64, Where>,
    /// Where a subscription stands: two that open at one time may come in any order.
    subs: BTreeMap<u32, usize>,
}

enum Where {
    Op((u32, Stream), usize),
    Poison(usize),
}

impl Gather {
    fn begin(line: Line) -> Result<Gather, String> {
        let Event::Header(header) = line.e else {
            return Err("a history begins with its header".to_owned());
        };
        if header.version != VERSION {
            return Err(format!(
                "a history of version {}; this program reads version {VERSION}",
                header.version
            ));
        }
        let drill = Drill::parse(&header.drill_file, &header.drill)
            .map_err(|e| format!("the drill in the header has mistakes: {e}"))?;
        let edge = match &header.edge {
            None => None,
            Some(name) => Some(
                Failpoint::from_name(name)
                    .ok_or_else(|| format!("no edge of a commit is called {name:?}"))?,
            ),
        };
        let drill = drill.with(&Overrides {
            duration: header.duration_us.map(Duration::from_micros),
            rate: header.rate,
            load: header.load,
            edge,
            nth: header.nth,
        });
        let faults = vec![FaultSeen { phases: Vec::new() }; drill.faults.len()];
        Ok(Gather {
            history: History {
                header: *header,
                drill,
                ops: BTreeMap::new(),
                poison: Vec::new(),
                subscriptions: Vec::new(),
                tables: Vec::new(),
                areas: None,
                processes: Vec::new(),
                faults,
                samples: Vec::new(),
                beats: Vec::new(),
                client_ends: Vec::new(),
                load_ended: None,
                converged: None,
                stopped: None,
                done: false,
                last: line.t,
            },
            open: BTreeMap::new(),
            subs: BTreeMap::new(),
        })
    }

    fn take(&mut self, line: Line) -> Result<(), String> {
        let (t, h) = (line.t, &mut self.history);
        // How the stage was taken down is no part of the drill.
        if h.done {
            return Ok(());
        }
        h.last = t;
        match line.e {
            Event::Header(_) => return Err("a second header".to_owned()),
            Event::Publish {
                op,
                issuer,
                stream,
                first,
                count,
                due,
            } => {
                let begun = Op {
                    op,
                    first,
                    count,
                    due,
                    at: t,
                    end: None,
                };
                self.publish((issuer, stream), begun)?;
            }
            Event::Poison { op, what, bad, .. } => {
                self.open.insert(op, Where::Poison(h.poison.len()));
                h.poison.push(Poisoned {
                    op,
                    what,
                    bad,
                    end: None,
                });
            }
            Event::End {
                op,
                how,
                accepted,
                duplicate,
                refused,
                ..
            } => {
                let end = End {
                    at: t,
                    how,
                    accepted,
                    duplicate,
                    refused,
                };
                self.end(op, end)?;
            }
            Event::Subscription {
                sub,
                platform,
                name,
                role,
            } => {
                let begun = Subscription {
                    platform,
                    name,
                    role,
                    items: Vec::new(),
                    reconnects: 0,
                    audited: false,
                };
                self.subscribe(sub, begun)?;
            }
            Event::Opened { sub, cursor } => self.item(sub, t, Item::Opened(cursor))?,
            Event::SnapshotBegin { sub } => self.item(sub, t, Item::SnapshotBegin)?,
            Event::Rows { sub, rows, digest } => self.item(sub, t, Item::Rows(rows, digest))?,
            Event::SnapshotEnd { sub, cursor } => self.item(sub, t, Item::SnapshotEnd(cursor))?,
            Event::Got { sub, records } => {
                for record in records {
                    self.item(sub, t, Item::Record(record))?;
                }
            }
            Event::Alien { sub, offset, what } => self.item(sub, t, Item::Alien(offset, what))?,
            Event::Audited { sub } => self.subscription(sub)?.audited = true,
            Event::Reconnected { sub } => self.subscription(sub)?.reconnects += 1,
            Event::ClientEnded { who, error } => h.client_ends.push((t, who, error)),
            Event::Table {
                sink,
                cursor,
                rows,
                bad,
            } => h.tables.push(Table {
                at: t,
                sink,
                cursor,
                rows,
                bad,
            }),
            Event::Areas(areas) => h.areas = Some(areas),
            Event::Process { name, what } => h.processes.push((t, name, what)),
            Event::Fault { index, phase } => {
                let fault = h.faults.get_mut(index).ok_or("no such fault")?;
                fault.phases.push((t, phase));
            }
            Event::Sample { memory, cpu_ms } => h.samples.push((t, memory, cpu_ms)),
            Event::Beat => h.beats.push(t),
            Event::LoadEnded => h.load_ended = Some(t),
            Event::Converged => h.converged = Some(t),
            Event::Stopped { why } => h.stopped = Some((t, why)),
            Event::Done => h.done = true,
        }
        Ok(())
    }

    fn publish(&mut self, stream: (u32, Stream), begun: Op) -> Result<(), String> {
        let ops = self.history.ops.entry(stream).or_default();
        if ops
            .last()
            .is_some_and(|last| last.revisions().end > begun.first)
        {
            return Err("revisions of a producer must rise".to_owned());
        }
        self.open.insert(begun.op, Where::Op(stream, ops.len()));
        ops.push(begun);
        Ok(())
    }

    fn end(&mut self, op: u64, end: End) -> Result<(), String> {
        match self.open.remove(&op) {
            Some(Where::Op(stream, i)) => {
                let ops = self.history.ops.get_mut(&stream);
                if let Some(op) = ops.and_then(|ops| ops.get_mut(i)) {
                    op.end = Some(end);
                }
            }
            Some(Where::Poison(i)) => self.history.poison[i].end = Some(end),
            None => return Err(format!("operation {op} ends without a beginning")),
        }
        Ok(())
    }

    fn subscribe(&mut self, sub: u32, begun: Subscription) -> Result<(), String> {
        if self
            .subs
            .insert(sub, self.history.subscriptions.len())
            .is_some()
        {
            return Err(format!("subscription {sub} begins twice"));
        }
        self.history.subscriptions.push(begun);
        Ok(())
    }

    fn subscription(&mut self, sub: u32) -> Result<&mut Subscription, String> {
        let index = self.subs.get(&sub);
        let index = index.ok_or_else(|| format!("no subscription {sub}"))?;
        Ok(&mut self.history.subscriptions[*index])
    }

    fn item(&mut self, sub: u32, t: u64, item: Item) -> Result<(), String> {
        self.subscription(sub)?.items.push((t, item));
        Ok(())
    }

    fn finish(self) -> History {
        self.history
    }
}
