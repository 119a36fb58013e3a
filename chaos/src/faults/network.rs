//! Lines that are cut, slow or lossy, in our own proxy.

use crate::{
    drill::{Clients, Direction, What},
    error::ChaosError,
    history::Proof,
    proxy::{Counts, Line, Rule, counts},
    stage::Stage,
};
use std::time::Duration;

const POLL: Duration = Duration::from_millis(20);

/// Rules on some lines; taken away when dropped.
pub struct Network<'a> {
    lines: Vec<&'a Line>,
    before: Counts,
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
                (*clients, rule.clone(), rule)
            }
            What::Loss { clients, percent } => {
                let rule = Rule {
                    loss: percent / 100.0,
                    ..plain()
                };
                (*clients, rule.clone(), rule)
            }
            What::Bandwidth {
                clients,
                bytes_per_s,
            } => {
                let rule = Rule {
                    bytes_per_s: Some(*bytes_per_s),
                    ..plain()
                };
                (*clients, rule.clone(), rule)
            }
            _ => (Clients::All, plain(), plain()),
        };
        let lines = stage.lines_of(clients);
        let before = counts(lines.iter().copied());
        for line in &lines {
            line.set(to_broker.clone(), from_broker.clone());
        }
        Network {
            lines,
            before,
            what: what.clone(),
        }
    }

    pub fn heal(self) -> Vec<Proof> {
        let seen = counts(self.lines.iter().copied()).since(self.before);
        vec![match &self.what {
            What::Latency { .. } => Proof::new(
                "pieces that the proxy delayed, and by how much on average",
                "代理延迟的数据块数及平均延迟",
                format!(
                    "{}, {:.0} ms",
                    seen.delayed_chunks,
                    seen.delayed_us as f64 / 1000.0 / seen.delayed_chunks.max(1) as f64
                ),
                seen.delayed_chunks > 0,
            ),
            What::Loss { .. } => Proof::new(
                "segments that counted as lost, each a stall of 200 ms",
                "视为丢失的报文段数（每个停顿 200 毫秒）",
                seen.stalls,
                seen.stalls > 0,
            ),
            What::Bandwidth { .. } => Proof::new(
                "seconds for which bytes waited for their turn, over all lines",
                "全部线路上字节排队的总秒数",
                format!("{:.1}", seen.throttled_us as f64 / 1e6),
                seen.throttled_us > 0,
            ),
            _ => Proof::new(
                "bytes that came while the line was cut, and were held",
                "断网期间到达并被扣留的字节数",
                seen.held_bytes,
                seen.held_bytes > 0,
            ),
        }]
    }
}

impl Drop for Network<'_> {
    fn drop(&mut self) {
        for line in &self.lines {
            line.set(Rule::default(), Rule::default());
        }
    }
}

/// All connections cut, and nobody let in until it is over.
pub struct Storm<'a> {
    stage: &'a Stage,
    lines: Vec<&'a Line>,
    before: Counts,
}

impl<'a> Storm<'a> {
    pub fn begin(stage: &'a Stage) -> Storm<'a> {
        let lines = stage.lines_of(Clients::All);
        let before = counts(lines.iter().copied());
        for line in &lines {
            line.cut(true);
        }
        Storm {
            stage,
            lines,
            before,
        }
    }

    pub async fn heal(self) -> Result<Vec<Proof>, ChaosError> {
        let cut = counts(self.lines.iter().copied()).since(self.before);
        let closed: Vec<Counts> = self.lines.iter().map(|line| line.counts()).collect();
        for line in &self.lines {
            line.open_again();
        }
        let back = || {
            let pairs = self.lines.iter().zip(&closed);
            pairs
                .filter(|(line, before)| line.counts().since(**before).connections > 0)
                .count()
        };
        let all = async {
            while back() < self.lines.len() {
                tokio::time::sleep(POLL).await;
            }
        };
        // Those that did not come are in the proof.
        drop(tokio::time::timeout(self.stage.drill.rollback.timeout, all).await);
        let lines = self.lines.len();
        Ok(vec![
            Proof::new(
                "connections that were cut",
                "被中断的连接数",
                cut.cut,
                cut.cut >= lines as u64,
            ),
            Proof::new(
                "attempts to connect that were refused meanwhile",
                "期间被拒绝的连接尝试",
                cut.refused,
                true,
            ),
            Proof::new(
                "clients that came back",
                "重新连接的客户端",
                format!("{} of {lines}", back()),
                back() == lines,
            ),
        ])
    }
}

impl Drop for Storm<'_> {
    fn drop(&mut self) {
        for line in &self.lines {
            line.open_again();
        }
    }
}
