//! A history as a broker without a fault would make it, in parts that a test can bend.
#![allow(dead_code, reason = "each test file uses its part")]

use hutong_chaos::{
    clients::{Deltas, OBSERVER},
    history::{
        self, Cursor, Event, Header, History, How, Life, Line, Phase, Proof, Record, Role, Row,
        Stream, VERSION,
    },
    judge::{self, Invariant, Outcome, Verdict},
};
use std::{collections::BTreeMap, io::Write};

pub const ANHUI: u32 = 110_000;
pub const SICHUAN: u32 = 120_000;
const WALL_US: u64 = 1_660_000_000_000_000;
const SEED: u64 = 11;
const PEOPLE: u64 = 40;
/// Of the drill, whose one fault lasts from 5 to 7 s.
const SECONDS: u64 = 12;
const BATCH: u32 = 4;

/// With what is asked of it added, such as `fail_stop = true`.
pub fn drill(hypothesis: &str, fault: &str) -> String {
    format!(
        "# Made for a test.\nname = \"made\"\ntitle = \"made\"\ntitle_zh = \"自制\"\nwhy = \"for a test\"\nwhy_zh = \"用于测试\"\n\
         duration = \"{SECONDS}s\"\n[hypothesis]\nurgent_lag = \"500ms\"\nbulk_lag = \"500ms\"\n\
         recovery = \"2s\"\nmemory = \"100MiB\"\n{hypothesis}\n[workload]\nplatforms = 2\npeople = {PEOPLE}\n\
         sink = true\n[[faults]]\nkind = \"{fault}\"\nat = \"5s\"\nfor = \"2s\"\n"
    )
}

/// Lines in the order of their times.
pub struct Made {
    pub lines: Vec<Line>,
    deltas: Deltas,
}

fn at(t: u64, e: Event) -> Line {
    Line { t, e }
}

impl Made {
    /// Two platforms, each with an urgent and a bulk batch four times a second, everything on its way for
    /// 20 ms; a sink that is looked at each second; an audit at the end.
    pub fn sound() -> Made {
        Made::of(&drill("", "kill-broker"))
    }

    /// Nothing was broken.
    pub fn without_fault() -> Made {
        Made::sound()
            .remove(|event| matches!(event, Event::Fault { .. }))
            .remove(|event| {
                matches!(
                    event,
                    Event::Process {
                        what: Life::Exited { .. },
                        ..
                    }
                )
            })
    }

    pub fn of(drill: &str) -> Made {
        let deltas = Deltas {
            seed: SEED,
            people: PEOPLE,
            wall_us: WALL_US,
            areas: false,
        };
        let mut made = Made {
            lines: vec![at(0, header(drill))],
            deltas,
        };
        for (sub, platform) in [(0, ANHUI), (1, SICHUAN)] {
            made.subscribe(1, sub, platform, "drill", Role::Live);
        }
        let records = made.load();
        made.watch(&records);
        made.audit(&records);
        made.lines.sort_by_key(|line| line.t);
        made
    }

    fn subscribe(&mut self, t: u64, sub: u32, platform: u32, name: &str, role: Role) {
        self.lines.push(at(
            t,
            Event::Subscription {
                sub,
                platform,
                name: name.to_owned(),
                role,
            },
        ));
        if role != Role::Snapshot {
            let cursor = Cursor { urgent: 1, bulk: 1 };
            self.lines.push(at(t, Event::Opened { sub, cursor }));
        }
    }

    /// Publishes and delivers; the log.
    fn load(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        let (mut op, mut offset) = (0, 1);
        let mut next: BTreeMap<(u32, Stream), u64> = BTreeMap::new();
        for tick in 0..SECONDS * 4 {
            let t = 1000 + tick * 250_000;
            for (sub, issuer) in [(1, ANHUI), (0, SICHUAN)] {
                for stream in [Stream::Urgent, Stream::Bulk] {
                    let first = *next.entry((issuer, stream)).or_insert(1);
                    next.insert((issuer, stream), first + u64::from(BATCH));
                    self.lines.push(at(
                        t,
                        Event::Publish {
                            op,
                            issuer,
                            stream,
                            first,
                            count: BATCH,
                            due: t,
                        },
                    ));
                    let mut record = Record {
                        offset,
                        issuer,
                        stream,
                        durable_at: WALL_US + t + offset,
                        runs: vec![(first, BATCH)],
                        digest: 0,
                    };
                    let digest = self.deltas.digest(&record, |_| Some(t));
                    record.digest = digest.expect("published");
                    let end = Event::End {
                        op,
                        how: How::Ok,
                        accepted: BATCH,
                        duplicate: false,
                        refused: Vec::new(),
                        error: None,
                    };
                    self.lines.push(at(t + 10_000, end));
                    let got = Event::Got {
                        sub,
                        records: vec![record.clone()],
                    };
                    self.lines.push(at(t + 20_000, got));
                    records.push(record);
                    op += 1;
                    offset += 1;
                }
            }
        }
        records
    }

    /// Newest rows below a cursor.
    fn rows(&self, records: &[Record], below: u64) -> Vec<Row> {
        let mut rows = BTreeMap::new();
        for record in records.iter().filter(|record| record.offset < below) {
            for (first, count) in &record.runs {
                for revision in *first..*first + u64::from(*count) {
                    let (issuer, stream) = (record.issuer, record.stream);
                    let register = self.deltas.register(issuer, stream, revision);
                    rows.insert(register, (issuer, stream, revision));
                }
            }
        }
        rows.into_values().collect()
    }

    /// Process, memory, sink, and the fault.
    fn watch(&mut self, records: &[Record]) {
        let process = |what| Event::Process {
            name: "hutong-broker".to_owned(),
            what,
        };
        self.lines.push(at(0, process(Life::Started { pid: 7 })));
        self.lines.push(at(0, process(Life::Ready)));
        for second in 1..SECONDS {
            let t = second * 1_000_000 + 500_000;
            let (memory, cpu_ms) = (50 << 20, 1);
            self.lines.push(at(t, Event::Sample { memory, cpu_ms }));
            let below = second * 16 + 1;
            let cursor = Some(Cursor {
                urgent: below,
                bulk: below,
            });
            let rows = self.rows(records, below);
            self.lines.push(at(t, table(cursor, rows)));
        }
        let phase = |phase| Event::Fault { index: 0, phase };
        let proof = vec![Proof::new("it", "它", ("seen", "所见"), true)];
        let ended = Life::Exited {
            code: None,
            signal: Some(9),
        };
        for (t, event) in [
            (5_000_000, phase(Phase::Begin)),
            (5_001_000, process(ended)),
            (5_002_000, phase(Phase::Active)),
            (7_000_000, phase(Phase::Healing)),
            (7_010_000, process(Life::Started { pid: 8 })),
            (7_050_000, process(Life::Ready)),
            (7_020_000, phase(Phase::Undone { proof })),
            (
                7_100_000,
                phase(Phase::Ended {
                    reactions: Vec::new(),
                }),
            ),
        ] {
            self.lines.push(at(t, event));
        }
    }

    fn audit(&mut self, records: &[Record]) {
        let end = SECONDS * 1_000_000 + 100_000;
        self.lines.push(at(end, Event::LoadEnded));
        self.lines.push(at(end + 1, Event::Converged));
        self.subscribe(end + 2, 2, OBSERVER, "audit-log", Role::Log);
        let records_all = records.to_vec();
        self.lines.push(at(
            end + 3,
            Event::Got {
                sub: 2,
                records: records_all,
            },
        ));
        self.subscribe(end + 4, 3, OBSERVER, "audit-snapshot", Role::Snapshot);
        let next = records.last().map_or(1, |record| record.offset + 1);
        let rows = self.rows(records, next);
        let due: BTreeMap<(u32, Stream, u64), u64> = records
            .iter()
            .flat_map(|r| {
                let due = r.durable_at - WALL_US - r.offset;
                let (first, count) = r.runs[0];
                (first..first + u64::from(count)).map(move |n| ((r.issuer, r.stream, n), due))
            })
            .collect();
        let digest = self
            .deltas
            .digest_of_rows(&rows, |i, s, r| due.get(&(i, s, r)).copied())
            .expect("published");
        let cursor = Cursor {
            urgent: next,
            bulk: next,
        };
        let last = table(Some(cursor), rows.clone());
        let sub = 3;
        for (t, event) in [
            (end + 3, Event::Audited { sub: 2 }),
            (end + 5, Event::SnapshotBegin { sub }),
            (end + 6, Event::Rows { sub, rows, digest }),
            (end + 7, Event::SnapshotEnd { sub, cursor }),
            (end + 7, Event::Audited { sub }),
            (end + 8, last),
            (end + 9, Event::Done),
        ] {
            self.lines.push(at(t, event));
        }
    }

    /// Changes the event at the first line that `which` finds.
    pub fn change(mut self, which: impl Fn(&Event) -> bool, how: impl FnOnce(&mut Event)) -> Made {
        let line = self.lines.iter_mut().find(|line| which(&line.e));
        how(&mut line.expect("such a line").e);
        self
    }

    pub fn remove(mut self, which: impl Fn(&Event) -> bool) -> Made {
        let before = self.lines.len();
        self.lines.retain(|line| !which(&line.e));
        assert!(self.lines.len() < before, "such a line");
        self
    }

    pub fn add(mut self, t: u64, event: Event) -> Made {
        let place = self.lines.partition_point(|line| line.t <= t);
        self.lines.insert(place, at(t, event));
        self
    }

    /// All records that anyone got.
    pub fn each_record(mut self, mut how: impl FnMut(u32, &mut Record)) -> Made {
        for line in &mut self.lines {
            if let Event::Got { sub, records } = &mut line.e {
                records.iter_mut().for_each(|record| how(*sub, record));
            }
        }
        self
    }

    /// Takes these records away from everyone, audit included.
    pub fn without_records(mut self, which: impl Fn(u32, &Record) -> bool) -> Made {
        for line in &mut self.lines {
            if let Event::Got { sub, records } = &mut line.e {
                records.retain(|record| !which(*sub, record));
            }
        }
        self
    }

    pub fn history(&self) -> History {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        for line in &self.lines {
            let line = serde_json::to_string(line).expect("JSON");
            writeln!(file, "{line}").expect("written");
        }
        history::read(file.path()).expect("a history")
    }

    pub fn judged(&self) -> Verdict {
        judge::judge(&self.history())
    }
}

pub fn broken(verdict: &Verdict) -> Vec<Invariant> {
    let findings = verdict.findings.0.iter();
    findings
        .filter(|(_, finding)| finding.violations > 0)
        .map(|(invariant, _)| *invariant)
        .collect()
}

/// It fails, and this invariant is among those that are broken.
#[track_caller]
pub fn caught(made: &Made, by: Invariant) {
    let verdict = made.judged();
    assert_eq!(verdict.outcome, Outcome::Fail, "{:?}", verdict.reasons);
    let broken = broken(&verdict);
    assert!(broken.contains(&by), "{by:?} not in {broken:?}");
}

/// It fails, and nothing but this is broken.
#[track_caller]
pub fn caught_alone(made: &Made, by: Invariant) {
    let verdict = made.judged();
    assert_eq!(verdict.outcome, Outcome::Fail, "{:?}", verdict.reasons);
    assert_eq!(broken(&verdict), [by], "{:?}", verdict.reasons);
}

pub fn table(cursor: Option<Cursor>, rows: Vec<Row>) -> Event {
    Event::Table {
        sink: "sink".to_owned(),
        cursor,
        rows,
        bad: 0,
    }
}

fn header(drill: &str) -> Event {
    Event::Header(Box::new(Header {
        version: VERSION,
        seed: SEED,
        wall_us: WALL_US,
        drill: drill.to_owned(),
        drill_file: "made.toml".to_owned(),
        duration_us: None,
        rate: None,
        edge: None,
        nth: None,
        load: None,
        platforms: vec![ANHUI, SICHUAN],
        observer: OBSERVER,
        commit: "none".to_owned(),
        machine: "none".to_owned(),
        broker: "none".to_owned(),
        trial: None,
        trial_at: None,
        kill_with: None,
        plant: None,
    }))
}
