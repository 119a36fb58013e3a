//! The last warnings and errors of this process' log, in memory, for who looks when it is too late to
//! have read it: the console, and whoever gathers what is needed to understand a fault.
//!
//! There is one, as there is one log in a process.

use std::{
    collections::VecDeque,
    fmt::{self, Write as _},
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id},
};
use tracing_subscriber::{Layer, layer::Context, registry::LookupSpan};

/// Kept at most; the oldest goes first.
const ENTRIES_MAX: usize = 256;
/// Of one entry; the rest is cut off.
const TEXT_BYTES_MAX: usize = 512;

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Microseconds since the Unix epoch.
    pub at_us: u64,
    pub error: bool,
    /// The module that said it.
    pub target: &'static str,
    /// The message, then the fields as `name=value`.
    pub text: String,
    /// How often it was said in a row.
    pub times: u64,
    /// Of the call in which it was said last, if that has one.
    pub trace_id: Option<String>,
}

static ENTRIES: Mutex<VecDeque<Entry>> = Mutex::new(VecDeque::new());

/// Newest first.
pub fn entries() -> Vec<Entry> {
    locked().iter().rev().cloned().collect()
}

fn locked() -> MutexGuard<'static, VecDeque<Entry>> {
    // Whoever panicked left whole entries.
    ENTRIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remembers what passes the log's filter.
#[derive(Debug)]
pub(crate) struct Recent;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recent {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut found = TraceId::default();
        attributes.record(&mut found);
        if let (Some(span), TraceId(Some(_))) = (context.span(id), &found) {
            span.extensions_mut().insert(found);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let level = *event.metadata().level();
        // The more verbose a level is, the greater it counts.
        if level > Level::WARN {
            return;
        }
        let mut text = Text::default();
        event.record(&mut text);
        let mut spans = context.event_scope(event).into_iter().flatten();
        let trace_id = spans.find_map(|span| span.extensions().get::<TraceId>()?.0.clone());
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        keep(
            &mut locked(),
            Entry {
                at_us: at.unwrap_or_default().as_micros() as u64,
                error: level == Level::ERROR,
                target: event.metadata().target(),
                text: text.finish(),
                times: 1,
                trace_id,
            },
        );
    }
}

/// The same again and again must not push out everything else.
fn keep(entries: &mut VecDeque<Entry>, entry: Entry) {
    match entries.back_mut() {
        Some(last) if last.text == entry.text && last.target == entry.target => {
            last.at_us = entry.at_us;
            last.times += 1;
            last.trace_id = entry.trace_id;
        }
        _ => {
            if entries.len() == ENTRIES_MAX {
                entries.pop_front();
            }
            entries.push_back(entry);
        }
    }
}

/// The field `trace_id` of a span.
#[derive(Default)]
struct TraceId(Option<String>);

impl Visit for TraceId {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "trace_id" {
            self.0 = Some(format!("{value:?}"));
        }
    }
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn finish(mut self) -> String {
        self.message.push_str(&self.fields);
        let mut end = self.message.len().min(TEXT_BYTES_MAX);
        while !self.message.is_char_boundary(end) {
            end -= 1;
        }
        self.message.truncate(end);
        self.message
    }

    fn add(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let written = match field.name() {
            "message" => write!(self.message, "{value}"),
            name => write!(self.fields, " {name}={value}"),
        };
        written.expect("a string takes all");
    }
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format_args!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::prelude::*;

    fn entry(text: &str, at_us: u64) -> Entry {
        Entry {
            at_us,
            error: false,
            target: "t",
            text: text.to_owned(),
            times: 1,
            trace_id: None,
        }
    }

    #[test]
    fn the_oldest_goes_and_what_repeats_is_counted() {
        let mut entries = VecDeque::new();
        for n in 0..ENTRIES_MAX as u64 + 5 {
            keep(&mut entries, entry(&format!("line {n}"), n));
        }
        for n in 0..9 {
            let trace_id = Some(format!("trace {n}"));
            let again = entry("again", 1000 + n);
            keep(&mut entries, Entry { trace_id, ..again });
        }
        assert_eq!(entries.len(), ENTRIES_MAX);
        assert_eq!(entries[0].text, "line 6");
        let last = entries.back().expect("there are some");
        assert_eq!((last.times, last.at_us), (9, 1008));
        // That of the time beside it.
        assert_eq!(last.trace_id.as_deref(), Some("trace 8"));
    }

    #[test]
    fn what_is_said_in_a_call_has_the_trace_of_the_call() {
        let _guard = tracing_subscriber::registry().with(Recent).set_default();
        let said = |text: &str| {
            let found = entries();
            let entry = found.iter().find(|e| e.text == text).expect("kept");
            entry.trace_id.clone()
        };
        tracing::warn!("outside of a call");
        let call = tracing::error_span!("call", call = "Publish", trace_id = %"0af7");
        call.in_scope(|| {
            let _within = tracing::error_span!("part").entered();
            tracing::warn!("inside of a call");
        });
        assert_eq!(said("outside of a call"), None);
        assert_eq!(said("inside of a call").as_deref(), Some("0af7"));
    }

    #[test]
    fn warnings_and_errors_are_kept_with_their_fields_and_the_rest_is_not() {
        let _guard = tracing_subscriber::registry().with(Recent).set_default();
        tracing::info!("nothing to see");
        tracing::warn!(platform = 340_000, "a connection broke");
        tracing::error!(why = %"x".repeat(2 * TEXT_BYTES_MAX), "long");
        let found = entries();
        let warned = found.iter().find(|e| e.text.starts_with("a connection"));
        let warned = warned.expect("kept");
        assert_eq!(warned.text, "a connection broke platform=340000");
        assert!(!warned.error);
        let long = found.iter().find(|e| e.text.starts_with("long"));
        let long = long.expect("kept");
        assert!(long.error && long.text.len() == TEXT_BYTES_MAX);
        assert!(found.iter().all(|e| e.text != "nothing to see"));
    }
}
