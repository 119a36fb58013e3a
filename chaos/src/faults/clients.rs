//! Clients that behave badly: they do not read, send what must be refused, or send too much.

use crate::{
    clients::{Load, OBSERVER, Poisoner, Progress, Reader, Refusals, open},
    drill::Clients,
    error::ChaosError,
    faults::Undone,
    history::{Cursor, Proof, Reaction, Role, Stream},
    proxy::{Line, Rule, Ruling},
    stage::{Stage, producer},
    text::Text,
};
use hutong_connectors::client::Start;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// Longer than any drill: whoever does not read does not complain of silence.
const SILENCE_MAX: Duration = Duration::from_secs(24 * 3600);
/// From when a subscriber reads again until the broker has looked for what it missed, and for a broker that is down to be back.
const READ_MAX: Duration = Duration::from_secs(30);
const FELL_BEHIND: &str = "hutong_fell_behind_total";

/// A subscription of the drill's own, which begins now.
async fn slow(stage: &Stage, name: &str, url: &str) -> Result<(Reader, Arc<Progress>), ChaosError> {
    let sub = stage.next_sub();
    let who = (OBSERVER, name, Role::Slow);
    let silence = Some(SILENCE_MAX);
    let subscriber = open(&stage.history, sub, who, url, Start::Now, silence).await?;
    // Nobody waits for it before it reads.
    let progress = stage.board.reader(OBSERVER, false);
    let reader = Reader {
        sub,
        history: stage.history.clone(),
        deltas: stage.deltas.clone(),
        board: Arc::clone(&stage.board),
        progress: Some(Arc::clone(&progress)),
        subscriber,
        reached: Cursor::default(),
        complete: false,
    };
    Ok((reader, progress))
}

/// Subscribers that read nothing; from the healing on they do.
pub struct Stalled<'a> {
    stage: &'a Stage,
    readers: Vec<(String, Reader, Arc<Progress>)>,
    lines: Vec<Line>,
    /// Deltas that were acknowledged before.
    before: u64,
}

impl<'a> Stalled<'a> {
    pub async fn begin(stage: &'a Stage, count: usize) -> Result<Stalled<'a>, ChaosError> {
        let mut stalled = Stalled {
            stage,
            readers: Vec::new(),
            lines: Vec::new(),
            before: stage.board.deltas_accepted(),
        };
        for i in 0..count {
            let name = format!("stalled-{i}");
            let line = stage.line(Clients::Subscribers).await?;
            let (reader, progress) = slow(stage, &name, &line.url()).await?;
            stalled.readers.push((name, reader, progress));
            stalled.lines.push(line);
        }
        Ok(stalled)
    }

    pub async fn heal(self) -> Undone<'a> {
        let mut proof = Vec::new();
        let behind = self.stage.board.deltas_accepted() - self.before;
        let small = self.stage.drill.workload.rings.is_some() && self.stage.trial.is_none();
        let reads = Reads::before(self.stage, small).await;
        for (name, reader, progress) in self.readers {
            proof.push(Proof::new(
                "deltas that were acknowledged while the subscriber read nothing",
                "订阅方停止读取期间得到确认的变更数",
                Text::same(format!("{name}: {behind}")),
                behind > 0,
            ));
            progress.set_counts(true);
            self.stage.extras.read(reader);
        }
        self.stage.extras.keep(self.lines);
        proof.extend(reads.after().await);
        Undone::proof(proof)
    }
}

/// Reads of the log for subscribers behind rings that are so small that there must be some.
struct Reads<'a> {
    stage: &'a Stage,
    before: Option<f64>,
}

impl<'a> Reads<'a> {
    /// Just before they read again: what others of the same platform need is not theirs.
    async fn before(stage: &'a Stage, small: bool) -> Reads<'a> {
        let before = match small {
            // A broker that is down counts from 0 when it is back.
            true => Some(
                stage
                    .metric(FELL_BEHIND, OBSERVER)
                    .await
                    .unwrap_or_default(),
            ),
            false => None,
        };
        Reads { stage, before }
    }

    async fn after(self) -> Option<Proof> {
        let before = self.before?;
        let rises = self.stage.rises(FELL_BEHIND, OBSERVER, before);
        // Whoever is down for so long has no proof.
        let reads = tokio::time::timeout(READ_MAX, rises).await;
        let reads = reads.unwrap_or_default();
        Some(Proof::new(
            "reads of the log for subscribers that the rings had no more records for",
            "因环中已无所需记录而为订阅方读取日志的次数",
            reads as u64,
            reads > 0.0,
        ))
    }
}

/// Subscribers whose window is closed: they want to read, but nothing comes through.
pub struct ZeroWindow<'a> {
    stage: &'a Stage,
    lines: Vec<(Line, Ruling, Arc<Progress>)>,
}

impl<'a> ZeroWindow<'a> {
    pub async fn begin(stage: &'a Stage, count: usize) -> Result<ZeroWindow<'a>, ChaosError> {
        let mut zero = ZeroWindow {
            stage,
            lines: Vec::new(),
        };
        for i in 0..count {
            let line = stage.line(Clients::Subscribers).await?;
            let name = format!("zero-window-{i}");
            let (reader, progress) = slow(stage, &name, &line.url()).await?;
            stage.extras.read(reader);
            let unread = Rule {
                unread: true,
                ..Rule::default()
            };
            let ruling = line.add(Rule::default(), unread);
            zero.lines.push((line, ruling, progress));
        }
        Ok(zero)
    }

    pub fn heal(mut self) -> Result<Undone<'a>, ChaosError> {
        let table = std::fs::read_to_string("/proc/net/tcp")
            .map_err(ChaosError::file("cannot read", "/proc/net/tcp"))?;
        let mut proof = Vec::new();
        for (line, ruling, progress) in self.lines.drain(..) {
            let ours = line.upstream();
            let stuck: u64 = ours
                .iter()
                .map(|own| unsent(&table, self.stage.grpc, *own))
                .sum();
            proof.push(Proof::new(
                "bytes in the broker's send buffer that the closed window keeps there",
                "因窗口关闭而滞留在互通发送缓冲区的字节数",
                stuck,
                stuck > 0,
            ));
            line.take_away(ruling);
            progress.set_counts(true);
            self.stage.extras.keep(vec![line]);
        }
        Ok(Undone::proof(proof))
    }
}

/// Bytes that wait in the send queue from `local` to `remote`, by `/proc/net/tcp`.
fn unsent(table: &str, local: SocketAddr, remote: SocketAddr) -> u64 {
    let of = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => {
            let ip = u32::from_le_bytes(v4.ip().octets());
            format!("{ip:08X}:{:04X}", v4.port())
        }
        SocketAddr::V6(_) => String::new(),
    };
    let (local, remote) = (of(local), of(remote));
    let line = table.lines().find(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next() == Some(&local) && fields.next() == Some(&remote)
    });
    let queues = line.and_then(|line| line.split_whitespace().nth(4));
    let unsent = queues.and_then(|queues| queues.split(':').next());
    unsent.map_or(0, |hex| u64::from_str_radix(hex, 16).unwrap_or(0))
}

/// Batches that must be refused, beside all others.
pub struct Poison<'a> {
    stage: &'a Stage,
    seen: watch::Receiver<Refusals>,
    _task: AbortOnDropHandle<()>,
}

impl<'a> Poison<'a> {
    pub fn begin(stage: &'a Stage, per_s: f64) -> Poison<'a> {
        let poisoner = Poisoner {
            issuer: stage.platforms()[0],
            url: stage.publisher_line(0).url(),
            history: stage.history.clone(),
            deltas: stage.deltas.clone(),
            every: Duration::from_secs_f64(1.0 / per_s),
        };
        let (told, seen) = watch::channel(Refusals::default());
        let task = tokio::spawn(poisoner.run(told));
        Poison {
            stage,
            seen,
            _task: AbortOnDropHandle::new(task),
        }
    }

    pub fn heal(self) -> Undone<'a> {
        let Refusals { sent, refused } = *self.seen.borrow();
        let proof = vec![Proof::new(
            "poison batches that were handed over",
            "已提交的有毒批次数",
            sent,
            sent > 0,
        )];
        Undone::with(self.stage, proof, move || {
            vec![Reaction::new(
                "poison batches that were refused, each with a reason",
                "被拒绝（并给出原因）的有毒批次数",
                ("1 or more", "1 个及以上"),
                refused,
                refused > 0,
            )]
        })
    }
}

/// One platform sends far more than its share.
pub struct Flood<'a> {
    stage: &'a Stage,
    before: u64,
    offered_before: u64,
    begun: Duration,
    rate: f64,
}

impl<'a> Flood<'a> {
    pub async fn begin(
        stage: &'a Stage,
        rate: f64,
        lasting: Duration,
    ) -> Result<Flood<'a>, ChaosError> {
        let begun = Duration::from_micros(stage.history.clock().now_us());
        let mut producer = producer(stage, stage.platforms()[0], 0, Stream::Flood);
        producer.load = Load {
            per_s: rate,
            surge: None,
            from: begun,
            until: begun + lasting,
        };
        producer.first = stage
            .extras
            .flood_from((rate * lasting.as_secs_f64()) as u64 + 1);
        let before = stage.board.deltas_accepted();
        let offered_before = stage.board.flood_offered();
        let publisher = producer.connect(&stage.publisher_line(0).url()).await?;
        stage.extras.publish(producer, publisher);
        Ok(Flood {
            stage,
            before,
            offered_before,
            begun,
            rate,
        })
    }

    pub fn heal(self) -> Undone<'a> {
        let accepted = self.stage.board.deltas_accepted() - self.before;
        let now = Duration::from_micros(self.stage.history.clock().now_us());
        let seconds = (now - self.begun).as_secs_f64().max(0.001);
        let per_s = accepted as f64 / seconds;
        // Overload slows the sender, so it need not get rid of all that is due.
        let offered = self.stage.board.flood_offered() - self.offered_before;
        Undone::proof(vec![Proof::new(
            "deltas that the flood handed over, how many a second were due, and how many a second of everybody \
             were taken",
            "涌入提交的条数、每秒到期条数，以及期间各方每秒被接受的条数",
            Text::same(format!("{offered}, {:.0}, {per_s:.0}", self.rate)),
            // Less than all others together say would be no flood.
            offered as f64 >= self.stage.drill.workload.rate * seconds,
        )])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_in_a_send_queue_is_found() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n\
            \x20  0: 0100407F:1CE8 0100007F:C350 01 0001A2B0:00000000 01:00000014 00000000     0\n";
        let address = |text: &str| text.parse().expect("an address");
        let local = address("127.64.0.1:7400");
        assert_eq!(unsent(table, local, address("127.0.0.1:50000")), 0x1a2b0);
        assert_eq!(unsent(table, local, address("127.0.0.1:50001")), 0);
    }
}
