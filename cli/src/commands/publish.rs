//! `publish FILE`: sends deltas that stand in a file, one JSON object a line, and says for every line
//! that was not accepted which one and why.

use super::Context;
use crate::{
    errors::CliError,
    output::{Format, Grid, Screen, grouped, json_line, progress_bar},
    shapes::DeltaShape,
    times,
};
use clap::Args;
use hutong_connectors::client::{Pending, Publisher, PublisherOptions, Receipt};
use hutong_proto::{Delta, Issuer, Reason, Revision};
use indicatif::ProgressBar;
use serde::Serialize;
use std::{
    collections::VecDeque,
    fs::File,
    future::Future,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

#[derive(Debug, Args)]
pub struct PublishArgs {
    /// A file of JSON lines, or - for standard input. A line is one delta:
    /// {"entity":"<32 hex>","health_code":{"colour":"green"},"provenance":{"authority":"..",
    /// "rule_id":"..","rule_version":1,"reason":".."}}. Instead of health_code:
    /// "test_result":{"outcome":"negative"}, "vaccination":{"doses":2},
    /// "area_risk":{"level":"high","path":["..",".."]} (the entity may be left out).
    /// Optional: revision, committed_at_us (now, if left out), expires_at_us, evidence.
    #[arg(value_name = "FILE", verbatim_doc_comment)]
    pub file: PathBuf,
    /// Names the producer within its platform; use one name for one stream of revisions.
    #[arg(long, default_value = "cli-publish", value_name = "NAME")]
    pub producer: String,
    /// Deltas sent together.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub batch: u32,
}

/// A line that was not accepted.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct RefusedLine {
    pub line: u64,
    pub reason: String,
    pub field: String,
    pub message: String,
}

/// What `publish` prints at the end.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    pub lines: u64,
    pub accepted: u64,
    /// Those that were refused here or by the broker; at most [`REFUSED_SHOWN_MAX`] are kept.
    pub refused: u64,
    pub refused_lines: Vec<RefusedLine>,
}

/// A file with a million wrong lines must not fill memory nor the screen.
const REFUSED_SHOWN_MAX: usize = 1000;
const IN_FLIGHT_MAX: usize = 16;
/// Of one delta as JSON: many times what it may have on the wire.
const LINE_BYTES_MAX: usize = 64 << 10;
/// A broker that starts again is away for a moment.
const SAY_AFTER_SECONDS: u32 = 3;
const AWAY_SECONDS_MAX: u32 = 60;
/// The reason of lines that do not get as far as the broker.
const LINE_INVALID: &str = "LINE_INVALID";

impl Summary {
    fn refuse(&mut self, line: u64, reason: &str, field: &str, message: &str) {
        self.refused += 1;
        if self.refused_lines.len() < REFUSED_SHOWN_MAX {
            self.refused_lines.push(RefusedLine {
                line,
                reason: reason.to_owned(),
                field: field.to_owned(),
                message: message.to_owned(),
            });
        }
    }

    /// Counts what the broker said about a batch whose deltas stood on these lines.
    fn count(&mut self, receipt: &Receipt, lines: &[u64], again: bool) {
        if let Some(error) = &receipt.error {
            for line in lines {
                self.refuse(*line, &error.reason, &error.field, &error.message);
            }
            return;
        }
        self.accepted += u64::from(receipt.accepted);
        for refused in &receipt.refused {
            // Said of a batch that was sent again as a new one: its first coming was accepted.
            if again && refused.info.reason_known == Some(Reason::RevisionNotNewer) {
                self.accepted += 1;
                continue;
            }
            let line = lines.get(refused.index as usize).copied().unwrap_or(0);
            let info = &refused.info;
            // The line says which delta it is; its place in a batch means nothing to the reader.
            let place = format!("deltas[{}]", refused.index);
            let field = info.field.strip_prefix(&place).unwrap_or(&info.field);
            let field = field.strip_prefix('.').unwrap_or(field);
            self.refuse(line, &info.reason, field, &info.message);
        }
    }
}

pub async fn run(context: &Context, args: &PublishArgs) -> Result<(), CliError> {
    let own = context.platform("publish")?;
    let (mut input, bytes) = open(&args.file)?;
    context.reach().await?;
    let publisher = Publisher::connect(PublisherOptions::new(
        context.endpoint.clone(),
        args.producer.clone(),
    ))
    .await
    .map_err(|e| context.failed(&e))?;
    let progress = bytes.map_or_else(ProgressBar::new_spinner, |bytes| {
        progress_bar("publishing", bytes, "{bytes} of {total_bytes}")
    });
    let mut job = Job::new(context, own, publisher, args.batch as usize);
    let mut line = Vec::new();
    loop {
        let read = read_line(&mut input, &mut line).map_err(|source| CliError::File {
            doing: "reading",
            path: args.file.clone(),
            source,
        })?;
        if read == 0 {
            break;
        }
        progress.inc(read);
        job.line(&line).await?;
    }
    let summary = job.finish().await?;
    progress.finish_and_clear();
    report(context, &summary)
}

fn open(path: &Path) -> Result<(Box<dyn BufRead>, Option<u64>), CliError> {
    if path.as_os_str() == "-" {
        return Ok((Box::new(BufReader::new(io::stdin())), None));
    }
    let failed = |source| CliError::File {
        doing: "opening",
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    Ok((Box::new(BufReader::new(file)), Some(bytes)))
}

/// Reads a line, and of one that is too long its beginning. Returns how many bytes were read; 0 at the
/// end.
fn read_line(input: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<u64> {
    line.clear();
    let mut read = 0;
    loop {
        let some = input.fill_buf()?;
        let end = some.iter().position(|b| *b == b'\n');
        let taken = end.map_or(some.len(), |end| end + 1);
        let room = (LINE_BYTES_MAX + 1).saturating_sub(line.len());
        line.extend_from_slice(&some[..taken.min(room)]);
        input.consume(taken);
        read += taken as u64;
        if end.is_some() || taken == 0 {
            return Ok(read);
        }
    }
}

/// A batch on its way, kept until it is known which of it was refused.
struct Sent {
    pending: Pending,
    deltas: Vec<Delta>,
    lines: Vec<u64>,
}

/// A file on its way.
struct Job<'a> {
    context: &'a Context,
    own: Issuer,
    publisher: Publisher,
    batch_max: usize,
    batch: Vec<Delta>,
    lines: Vec<u64>,
    in_flight: VecDeque<Sent>,
    last_revision: Revision,
    summary: Summary,
}

impl<'a> Job<'a> {
    fn new(context: &'a Context, own: Issuer, publisher: Publisher, batch_max: usize) -> Job<'a> {
        Job {
            context,
            own,
            publisher,
            batch_max,
            batch: Vec::new(),
            lines: Vec::new(),
            in_flight: VecDeque::new(),
            last_revision: Revision(0),
            summary: Summary::default(),
        }
    }

    async fn line(&mut self, line: &[u8]) -> Result<(), CliError> {
        self.summary.lines += 1;
        let number = self.summary.lines;
        if line.len() > LINE_BYTES_MAX {
            let what = format!("longer than {LINE_BYTES_MAX} bytes");
            self.summary.refuse(number, LINE_INVALID, "", &what);
            return Ok(());
        }
        let text = match str::from_utf8(line) {
            Ok(text) => text.trim(),
            Err(e) => {
                let what = format!("not UTF-8: {e}");
                self.summary.refuse(number, LINE_INVALID, "", &what);
                return Ok(());
            }
        };
        if text.is_empty() {
            return Ok(());
        }
        let now = times::now();
        match DeltaShape::parse(text, self.own, now) {
            Ok(mut delta) => {
                // A revision that was left out is the time; two lines may fall on one microsecond.
                if delta.revision.0 == now.0 {
                    delta.revision = delta.revision.max(Revision(self.last_revision.0 + 1));
                    self.last_revision = delta.revision;
                }
                self.batch.push(delta);
                self.lines.push(number);
            }
            Err(e) => {
                self.summary
                    .refuse(number, LINE_INVALID, e.field, &e.problem);
            }
        }
        if self.batch.len() >= self.batch_max {
            self.send().await?;
        }
        Ok(())
    }

    async fn send(&mut self) -> Result<(), CliError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        if self.in_flight.len() >= IN_FLIGHT_MAX {
            self.receive().await?;
        }
        let deltas = std::mem::take(&mut self.batch);
        let lines = std::mem::take(&mut self.lines);
        let pending = self.publish(&deltas).await?;
        self.in_flight.push_back(Sent {
            pending,
            deltas,
            lines,
        });
        Ok(())
    }

    async fn publish(&self, deltas: &[Delta]) -> Result<Pending, CliError> {
        let publishing = pin!(self.publisher.publish(deltas.to_vec()));
        let pending = self.patiently(publishing).await?;
        pending.map_err(|e| self.context.failed(&e))
    }

    /// Waits for the broker, says so when it is away, and gives up when it stays away.
    async fn patiently<T>(&self, what: impl Future<Output = T> + Unpin) -> Result<T, CliError> {
        let mut what = what;
        let mut watch = tokio::time::interval(Duration::from_secs(1));
        let mut away = 0;
        loop {
            tokio::select! {
                done = &mut what => return Ok(done),
                _ = watch.tick() => {
                    let status = self.publisher.status();
                    away = if status.connected { 0 } else { away + 1 };
                    let why = status.last_error.unwrap_or_default();
                    if away == SAY_AFTER_SECONDS {
                        let text = format!("the broker is away, waiting for it: {why}");
                        Screen::stderr().line(text)?;
                    }
                    if away == AWAY_SECONDS_MAX {
                        return Err(CliError::Unreachable {
                            address: self.context.address.clone(),
                            cause: format!(
                                "away for {AWAY_SECONDS_MAX} s: {why}. Of {} lines read {} are known to be \
                                 accepted; publish the file again, what is known already changes nothing",
                                self.summary.lines, self.summary.accepted
                            ),
                        });
                    }
                }
            }
        }
    }

    async fn receive(&mut self) -> Result<(), CliError> {
        let Some(mut sent) = self.in_flight.pop_front() else {
            return Ok(());
        };
        let mut again = false;
        loop {
            let receipt = self.patiently(&mut sent.pending).await?;
            let receipt = receipt.map_err(|e| self.context.failed(&e))?;
            if !receipt.duplicate {
                self.summary.count(&receipt, &sent.lines, again);
                return Ok(());
            }
            // It was durable before its ack was lost, and what was refused of it stood in that ack. As
            // a new batch what was accepted is not newer, and the rest is refused again.
            again = true;
            sent.pending = self.publish(&sent.deltas).await?;
        }
    }

    async fn finish(mut self) -> Result<Summary, CliError> {
        self.send().await?;
        while !self.in_flight.is_empty() {
            self.receive().await?;
        }
        self.publisher
            .close()
            .await
            .map_err(|e| self.context.failed(&e))?;
        self.summary.refused_lines.sort_by_key(|r| r.line);
        Ok(self.summary)
    }
}

fn report(context: &Context, summary: &Summary) -> Result<(), CliError> {
    match context.format {
        Format::Json => json_line(summary)?,
        Format::Table => {
            context.screen.line(format!(
                "{} accepted, {} refused, of {} lines",
                grouped(summary.accepted),
                grouped(summary.refused),
                grouped(summary.lines)
            ))?;
            refused_table(&context.screen, summary)?;
        }
    }
    match summary.refused {
        0 => Ok(()),
        n => Err(CliError::Finding(format!(
            "{} of {} lines were refused; mend them and publish those lines again",
            grouped(n),
            grouped(summary.lines)
        ))),
    }
}

fn refused_table(screen: &Screen, summary: &Summary) -> Result<(), CliError> {
    if summary.refused_lines.is_empty() {
        return Ok(());
    }
    let mut grid = Grid::new(&[">line", "reason", "field", "what"]);
    for r in &summary.refused_lines {
        grid.row([
            r.line.to_string(),
            r.reason.clone(),
            r.field.clone(),
            r.message.clone(),
        ]);
    }
    screen.grid(&grid)?;
    let hidden = summary.refused - summary.refused_lines.len() as u64;
    if hidden > 0 {
        screen.line(format!("and {} more", grouped(hidden)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_connectors::client::{Refused, RefusedInfo};
    use hutong_proto::Sequence;

    fn refused(index: u32, reason: Reason) -> Refused {
        Refused {
            index,
            info: RefusedInfo {
                reason: reason.code().to_owned(),
                reason_known: Some(reason),
                field: String::new(),
                message: String::new(),
                retryable: false,
            },
        }
    }

    #[test]
    fn a_line_without_end_takes_bounded_memory_and_the_next_one_is_read() {
        let mut text = vec![b'x'; 3 * LINE_BYTES_MAX];
        text.extend_from_slice(b"\nshort\nlast");
        let mut input = BufReader::with_capacity(1000, text.as_slice());
        let mut line = Vec::new();
        let read = read_line(&mut input, &mut line).expect("read");
        assert_eq!(
            (read as usize, line.len()),
            (3 * LINE_BYTES_MAX + 1, LINE_BYTES_MAX + 1)
        );
        assert_eq!(read_line(&mut input, &mut line).expect("read"), 6);
        assert_eq!(line, b"short\n");
        assert_eq!(read_line(&mut input, &mut line).expect("read"), 4);
        assert_eq!(read_line(&mut input, &mut line).expect("read"), 0);
    }

    #[test]
    fn what_was_sent_again_counts_as_accepted_if_it_is_known_and_as_refused_if_it_is_not() {
        let receipt = Receipt {
            sequence: Sequence(2),
            accepted: 0,
            refused: vec![
                refused(0, Reason::RevisionNotNewer),
                refused(1, Reason::IssuerNotYours),
            ],
            error: None,
            duplicate: false,
            positions: Vec::new(),
        };
        let mut summary = Summary::default();
        summary.count(&receipt, &[7, 8], true);
        assert_eq!((summary.accepted, summary.refused), (1, 1));
        assert_eq!(summary.refused_lines[0].line, 8);
        // At its first coming a known revision is a line to mend.
        let mut summary = Summary::default();
        summary.count(&receipt, &[7, 8], false);
        assert_eq!((summary.accepted, summary.refused), (0, 2));
    }
}
