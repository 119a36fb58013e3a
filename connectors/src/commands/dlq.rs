//! `hutong-connect dlq`: look at dead letters, try them again, drop them.

use super::{
    CommandError, Format, load,
    output::{json, line, progress_bar, table, time},
    pseudonymiser, runtime,
};
use crate::{
    config::{Config, SourceWork, Work},
    dlq::{DeadLetter, DeadLetters, LetterId},
    mapping::Mapper,
    runner::{BrokerTarget, Connect, Outcome, Outlet, Trouble},
    state::now,
};
use hutong_proto::{Lane, Reason};
use std::path::PathBuf;

/// Deltas of one batch of retries.
const RETRY_BATCH: usize = 500;

#[derive(Debug, clap::Subcommand)]
pub enum DlqCommand {
    /// Lists the dead letters. Shows no raw input.
    List(Letters),
    /// Shows one with its raw input, which may hold ID numbers.
    Show {
        /// The connector's configuration.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        id: u64,
    },
    /// Maps and publishes again, with the mapping as it is now and the original revision. What works
    /// is removed.
    Retry(Letters),
    /// Removes letters for good.
    Drop(Chosen),
}

#[derive(Debug, clap::Args)]
pub struct Letters {
    /// The connector's configuration.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Only these; all when none is given.
    #[arg(value_name = "ID")]
    ids: Vec<u64>,
}

#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Chosen {
    /// The connector's configuration.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Which ones.
    #[arg(value_name = "ID", required_unless_present = "all")]
    ids: Vec<u64>,
    /// All of them.
    #[arg(long, conflicts_with = "ids")]
    all: bool,
}

pub fn dlq(command: DlqCommand, format: Format) -> Result<(), CommandError> {
    match command {
        DlqCommand::List(args) => {
            let (_, store) = open(&args.file)?;
            list(&choose(&store, &args.ids)?, format)
        }
        DlqCommand::Show { file, id } => {
            let (_, store) = open(&file)?;
            Ok(json(&store.get(LetterId(id))?)?)
        }
        DlqCommand::Retry(args) => {
            let (config, mut store) = open(&args.file)?;
            let letters = choose(&store, &args.ids)?;
            runtime()?.block_on(retry(config, &mut store, letters))
        }
        DlqCommand::Drop(args) => {
            let (_, mut store) = open(&args.file)?;
            let ids: Vec<LetterId> = choose(&store, &args.ids)?.iter().map(|l| l.id).collect();
            let dropped = store.remove(&ids)?;
            store.forget_removed()?;
            Ok(line(format!("{dropped} dropped"))?)
        }
    }
}

fn open(file: &std::path::Path) -> Result<(Config, DeadLetters), CommandError> {
    let config = load(file)?;
    if let Work::Sink(_) = config.work {
        let what = "a sink has no dead letters: what the broker delivers was checked already";
        return Err(CommandError::Usage(what.to_owned()));
    }
    let store = DeadLetters::open(&config.folder(), config.state.dead_letters_bytes_max)?;
    Ok((config, store))
}

/// All when no ids are given; an unknown one is an error.
fn choose(store: &DeadLetters, ids: &[u64]) -> Result<Vec<DeadLetter>, CommandError> {
    let mut contents = store.contents()?;
    if contents.damaged_lines > 0 {
        tracing::warn!(
            lines = contents.damaged_lines,
            "some lines of the dead letters cannot be read, as after a power failure"
        );
    }
    if ids.is_empty() {
        return Ok(contents.letters.into_values().collect());
    }
    let mut chosen = Vec::with_capacity(ids.len());
    for id in ids.iter().copied().map(LetterId) {
        let letter = contents.letters.remove(&id);
        chosen.push(letter.ok_or(crate::dlq::DlqError::Unknown(id))?);
    }
    Ok(chosen)
}

fn list(letters: &[DeadLetter], format: Format) -> Result<(), CommandError> {
    if format == Format::Json {
        let rows: Vec<_> = letters.iter().map(without_raw).collect();
        return Ok(json(&rows)?);
    }
    let rows = letters.iter().map(|l| {
        [
            l.id.to_string(),
            l.reason.clone(),
            l.field.clone(),
            l.attempts.to_string(),
            time(l.first_at_us),
            time(l.last_at_us),
            l.place.clone(),
        ]
    });
    let head = [
        "ID", "REASON", "FIELD", "ATTEMPTS", "FIRST", "LAST", "PLACE",
    ];
    table(head, rows.collect())?;
    Ok(line(format!("{} dead letters", letters.len()))?)
}

/// The message may quote the row, so it stays out as well.
fn without_raw(letter: &DeadLetter) -> serde_json::Value {
    serde_json::json!({
        "id": letter.id,
        "place": letter.place,
        "reason": letter.reason,
        "field": letter.field,
        "attempts": letter.attempts,
        "first_at_us": letter.first_at_us,
        "last_at_us": letter.last_at_us,
        "revision": letter.revision,
        "committed_at_us": letter.committed_at_us,
    })
}

/// What became of the letters of a retry.
#[derive(Default)]
struct Tally {
    published: usize,
    not_newer: usize,
    refused: usize,
}

async fn retry(
    config: Config,
    store: &mut DeadLetters,
    letters: Vec<DeadLetter>,
) -> Result<(), CommandError> {
    if letters.is_empty() {
        return Ok(line("there are no dead letters")?);
    }
    let folder = config.folder();
    let Work::Source(work) = config.work else {
        return Ok(());
    };
    let SourceWork {
        mapping, pseudonym, ..
    } = *work;
    let mut mapper = Mapper::new(mapping, pseudonymiser(pseudonym.as_ref())?);
    // A producer of its own: under the connector's name it would fence the connector.
    let producer = format!("{}.retry", config.name);
    let mut target = BrokerTarget::one_stream(config.address, config.identity, producer, &folder);
    let mut outlet = target.connect(None).await.map_err(Trouble::from)?;
    let mut tally = Tally::default();
    let progress = progress_bar("retrying", letters.len() as u64);
    for letters in letters.chunks(RETRY_BATCH) {
        retry_batch(letters, &mut mapper, store, &mut outlet, &mut tally).await?;
        progress.inc(letters.len() as u64);
    }
    progress.finish_and_clear();
    store.forget_removed()?;
    line(format!(
        "{} published, {} not newer than what the broker has (removed), {} refused again",
        tally.published, tally.not_newer, tally.refused
    ))?;
    if tally.refused > 0 {
        return Err(CommandError::Silent);
    }
    Ok(())
}

async fn retry_batch(
    letters: &[DeadLetter],
    mapper: &mut Mapper,
    store: &mut DeadLetters,
    outlet: &mut impl Outlet,
    tally: &mut Tally,
) -> Result<(), CommandError> {
    let mut deltas = Vec::new();
    let mut sent = Vec::new();
    for letter in letters {
        match mapper.map(&letter.row()) {
            Ok(mapped) => {
                deltas.push(mapped.delta);
                sent.push(letter.id);
            }
            Err(refused) => {
                let why = (refused.reason.to_owned(), refused.field, refused.message);
                store.tried(letter.id, why, now())?;
                tally.refused += 1;
            }
        }
    }
    if deltas.is_empty() {
        return Ok(());
    }
    // Of both lanes, in one stream.
    let pending = outlet
        .publish(Lane::Urgent, deltas)
        .await
        .map_err(Trouble::from)?;
    let Outcome { refused, .. } = pending.await.map_err(Trouble::from)?;
    let mut not_newer = 0;
    let mut done: Vec<Option<LetterId>> = sent.into_iter().map(Some).collect();
    for refused in refused {
        if refused.reason == Reason::RevisionNotNewer.code() {
            // What the broker has came later: this row says nothing any more.
            not_newer += 1;
            continue;
        }
        if let Some(id) = done.get_mut(refused.index).and_then(Option::take) {
            store.tried(id, (refused.reason, refused.field, refused.message), now())?;
            tally.refused += 1;
        }
    }
    let done: Vec<LetterId> = done.into_iter().flatten().collect();
    tally.published += store.remove(&done)?.saturating_sub(not_newer);
    tally.not_newer += not_newer;
    Ok(())
}
