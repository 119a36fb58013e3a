//! Clients that behave badly: they do not read, send what must be refused, or send too much.

use crate::{
    clients::{Load, OBSERVER, Poisoner, Progress, Reader, open},
    drill::Clients,
    error::ChaosError,
    history::{Cursor, Proof, Role, Stream},
    proxy::{Line, Rule},
    stage::{Stage, producer},
};
use hutong_connectors::client::Start;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// Longer than any drill: whoever does not read does not complain of silence.
const SILENCE_MAX: Duration = Duration::from_secs(24 * 3600);

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
    };
    Ok((reader, progress))
}

/// Subscribers that read nothing; from the healing on they do.
pub struct Stalled<'a> {
    stage: &'a Stage,
    readers: Vec<(String, Reader, Arc<Progress>)>,
    lines: Vec<Line>,
}

impl<'a> Stalled<'a> {
    pub async fn begin(stage: &'a Stage, count: usize) -> Result<Stalled<'a>, ChaosError> {
        let mut stalled = Stalled {
            stage,
            readers: Vec::new(),
            lines: Vec::new(),
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

    pub async fn heal(self) -> Result<Vec<Proof>, ChaosError> {
        let mut proof = Vec::new();
        for (name, reader, progress) in self.readers {
            let behind = self.stage.behind(OBSERVER, &name).await?;
            proof.push(Proof::new(
                "records that the broker had and the subscriber had not applied",
                "互通已有而订阅方未应用的记录数",
                format!("{name}: {behind}"),
                behind > 0,
            ));
            progress.set_counts(true);
            self.stage.extras.read(reader);
        }
        self.stage.extras.keep(self.lines);
        Ok(proof)
    }
}

/// Subscribers whose window is closed: they want to read, but nothing comes through.
pub struct ZeroWindow<'a> {
    stage: &'a Stage,
    lines: Vec<(Line, Arc<Progress>)>,
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
            line.set(Rule::default(), unread);
            zero.lines.push((line, progress));
        }
        Ok(zero)
    }

    pub fn heal(mut self) -> Result<Vec<Proof>, ChaosError> {
        let table = std::fs::read_to_string("/proc/net/tcp")
            .map_err(ChaosError::file("cannot read", "/proc/net/tcp"))?;
        let mut proof = Vec::new();
        for (line, progress) in self.lines.drain(..) {
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
            line.set(Rule::default(), Rule::default());
            progress.set_counts(true);
            self.stage.extras.keep(vec![line]);
        }
        Ok(proof)
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
pub struct Poison {
    refused: watch::Receiver<u64>,
    _task: AbortOnDropHandle<()>,
}

impl Poison {
    pub fn begin(stage: &Stage, per_s: f64) -> Poison {
        let poisoner = Poisoner {
            issuer: stage.platforms()[0],
            url: stage.publisher_line(0).url(),
            history: stage.history.clone(),
            deltas: stage.deltas.clone(),
            every: Duration::from_secs_f64(1.0 / per_s),
        };
        let (told, refused) = watch::channel(0);
        let task = tokio::spawn(poisoner.run(told));
        Poison {
            refused,
            _task: AbortOnDropHandle::new(task),
        }
    }

    pub fn heal(self) -> Vec<Proof> {
        let refused = *self.refused.borrow();
        vec![Proof::new(
            "poison batches that were refused, each with a reason",
            "被拒绝（并给出原因）的有毒批次数",
            refused,
            refused > 0,
        )]
    }
}

/// One platform sends far more than its share.
pub struct Flood<'a> {
    stage: &'a Stage,
    before: u64,
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
        let publisher = producer.connect(&stage.publisher_line(0).url()).await?;
        stage.extras.publish(producer, publisher);
        Ok(Flood {
            stage,
            before,
            begun,
            rate,
        })
    }

    pub fn heal(self) -> Vec<Proof> {
        let accepted = self.stage.board.deltas_accepted() - self.before;
        let now = Duration::from_micros(self.stage.history.clock().now_us());
        let per_s = accepted as f64 / (now - self.begun).as_secs_f64().max(0.001);
        let usual = self.stage.drill.workload.rate;
        vec![Proof::new(
            "deltas a second that were taken meanwhile, of which the flood offered",
            "期间每秒接受的条数，其中涌入提供",
            format!("{per_s:.0}, {:.0}", self.rate),
            // Overload slows the sender, so it need not get all it offers.
            per_s > usual * 1.2,
        )]
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
