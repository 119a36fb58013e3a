//! Lines that are cut, slow or lossy, in our own proxy.

use crate::{
    drill::{Clients, Direction, What},
    faults::{Back, Undone, share},
    history::{Proof, Reaction},
    proxy::{Counts, Line, Rule, Ruling, counts},
    stage::Stage,
    text::Text,
};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// Rules on some lines; taken away when dropped.
pub struct Network<'a> {
    lines: Vec<(&'a Line, Ruling)>,
    before: Counts,
    begun: Instant,
    what: What,
}

impl<'a> Network<'a> {
    pub fn begin(stage: &'a Stage, what: &What) -> Network<'a> {
        let plain = Rule::default;
        let (clients, to_broker, from_broker) = match what {
            What::Partition { clients, direction } => {
                let held = |held| Rule { held, ..plain() };
                (
                    *clients,
                    held(*direction != Direction::FromBroker),
                    held(*direction != Direction::ToBroker),
                )
            }
            What::Latency {
                clients,
                delay,
                jitter,
            } => {
                let rule = Rule {
                    delay: *delay,
                    jitter: *jitter,
                    ..plain()
                };
                (*clients, rule, rule)
            }
            What::Loss { clients, percent } => {
                let rule = Rule {
                    loss: percent / 100.0,
                    ..plain()
                };
                (*clients, rule, rule)
            }
            What::Bandwidth {
                clients,
                bytes_per_s,
            } => {
                let rule = Rule {
                    bytes_per_s: Some(*bytes_per_s),
                    ..plain()
                };
                (*clients, rule, rule)
            }
            _ => (Clients::All, plain(), plain()),
        };
        let lines = stage.lines_of(clients);
        let before = counts(lines.iter().copied());
        let ruled = lines.into_iter();
        Network {
            lines: ruled
                .map(|line| (line, line.add(to_broker, from_broker)))
                .collect(),
            before,
            begun: Instant::now(),
            what: what.clone(),
        }
    }

    pub fn heal(self) -> Undone<'a> {
        let lines = self.lines.iter().map(|(line, _)| *line);
        let seen = counts(lines).since(self.before);
        let seconds = self.begun.elapsed().as_secs_f64();
        Undone::proof(vec![self.proof(&seen, seconds)])
    }

    fn proof(&self, seen: &Counts, seconds: f64) -> Proof {
        match &self.what {
            What::Latency { .. } => Proof::new(
                "pieces that the proxy delayed, and by how much on average",
                "代理延迟的数据块数及平均延迟",
                Text::same(format!(
                    "{}, {:.0} ms",
                    seen.delayed_chunks,
                    seen.delayed_us as f64 / 1000.0 / seen.delayed_chunks.max(1) as f64
                )),
                seen.delayed_chunks > 0,
            ),
            What::Loss { percent, .. } => Proof::new(
                "segments that counted as lost, each a stall of 200 ms, and which share of all that is",
                "视为丢失的报文段数（每个停顿 200 毫秒）及其占比",
                share(seen.stalls, seen.segments, *percent),
                seen.stalls > 0,
            ),
            What::Bandwidth { bytes_per_s, .. } => Proof::new(
                "seconds for which bytes waited for bytes before them, over all lines, and what a line \
                 carried a second, both ways",
                "全部线路上字节排队的总秒数，以及每条线路每秒传输的字节数（双向）",
                carried(seen, self.lines.len(), seconds, *bytes_per_s as f64),
                // Two pieces behind each other wait on any line, for less than a thousandth of its time.
                seen.throttled_us as f64 / 1e6 >= NARROW_SHARE * seconds * self.lines.len() as f64,
            ),
            _ => Proof::new(
                "bytes that came while the line was cut, and were held",
                "断网期间到达并被扣留的字节数",
                seen.held_bytes,
                seen.held_bytes > 0,
            ),
        }
    }
}

/// What all pieces waited together, of the time of all lines. Pieces that wait at one time count each.
const NARROW_SHARE: f64 = 0.1;

/// Seconds of waiting, and what a line carried of what it may.
fn carried(seen: &Counts, lines: usize, seconds: f64, bytes_per_s: f64) -> Text {
    let waited = seen.throttled_us as f64 / 1e6;
    let each = seen.bytes as f64 / 1000.0 / lines.max(1) as f64 / seconds;
    let most = bytes_per_s / 1000.0;
    Text::new(
        format!("{waited:.1}, {each:.0} kB of {most:.0} kB each way"),
        format!("{waited:.1}，{each:.0} kB（单向上限 {most:.0} kB）"),
    )
}

impl Drop for Network<'_> {
    fn drop(&mut self) {
        for (line, ruling) in &self.lines {
            line.take_away(*ruling);
        }
    }
}

/// All connections cut, and nobody let in until it is over, which is when this is dropped.
pub struct Storm<'a> {
    closed: Closed<'a>,
    before: Counts,
    within: Duration,
    /// Connections of each line that were open.
    open: Vec<usize>,
}

/// Lines that take no connection; open again when dropped.
struct Closed<'a>(Vec<&'a Line>);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        for line in &self.0 {
            line.open_again();
        }
    }
}

impl<'a> Storm<'a> {
    pub fn begin(stage: &'a Stage) -> Storm<'a> {
        let lines = stage.lines_of(Clients::All);
        let before = counts(lines.iter().copied());
        // A platform that publishes has one for each of its streams.
        let open = lines.iter().map(|line| line.upstream().len()).collect();
        for line in &lines {
            line.close();
        }
        Storm {
            closed: Closed(lines),
            before,
            within: stage.drill.rollback.timeout,
            open,
        }
    }

    pub fn heal(self) -> Undone<'a> {
        let lines = self.closed.0.clone();
        let cut = counts(lines.iter().copied()).since(self.before);
        drop(self.closed);
        let open: usize = self.open.iter().sum();
        let proof = vec![
            Proof::new(
                "connections that were cut, of those that were open",
                "被中断的连接数，以及此前的连接数",
                Text::new(
                    format!("{} of {open}", cut.cut),
                    format!("{open} 中的 {}", cut.cut),
                ),
                open >= lines.len() && cut.cut >= open as u64,
            ),
            Proof::new(
                "attempts to connect that were refused meanwhile",
                "期间被拒绝的连接尝试",
                cut.refused,
                cut.refused > 0,
            ),
        ];
        Undone {
            proof,
            back: Back::Clients(Gone {
                lines,
                open: self.open,
                within: self.within,
            }),
        }
    }
}

/// Clients that were cut off and may come again.
pub struct Gone<'a> {
    lines: Vec<&'a Line>,
    open: Vec<usize>,
    within: Duration,
}

impl Gone<'_> {
    /// Waits until each line has as many connections as it had.
    pub async fn back(self) -> Vec<Reaction> {
        let all: usize = self.open.iter().sum();
        let back = || -> usize {
            let lines = self.lines.iter().zip(&self.open);
            lines
                .map(|(line, open)| line.upstream().len().min(*open))
                .sum()
        };
        let everybody = async {
            while back() < all {
                tokio::time::sleep(POLL).await;
            }
        };
        // Those that did not come are in what was seen.
        drop(tokio::time::timeout(self.within, everybody).await);
        let back = back();
        vec![Reaction::new(
            "connections that came back",
            "恢复的连接数",
            all,
            back,
            back >= all,
        )]
    }
}
