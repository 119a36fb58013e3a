//! The trace that a delta belongs to, as W3C Trace Context has it: <https://www.w3.org/TR/trace-context/>. Few deltas
//! have one. It is made at random and says nothing about whom a delta is about.

use std::fmt;

/// Identifies a span: the one that what follows is part of. What carries one is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceContext {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
}

impl TraceContext {
    /// In a delta: the trace, then the span.
    pub const BYTES: usize = 24;

    /// `None` unless it has the right length, and neither id is all zero.
    pub fn from_slice(bytes: &[u8]) -> Option<TraceContext> {
        let (trace_id, span_id) = bytes.split_at_checked(16)?;
        let context = TraceContext {
            trace_id: trace_id.try_into().ok()?,
            span_id: span_id.try_into().ok()?,
        };
        (context.trace_id != [0; 16] && context.span_id != [0; 8]).then_some(context)
    }

    pub fn to_bytes(self) -> [u8; TraceContext::BYTES] {
        let mut bytes = [0; TraceContext::BYTES];
        bytes[..16].copy_from_slice(&self.trace_id);
        bytes[16..].copy_from_slice(&self.span_id);
        bytes
    }

    /// Of the metadata [`crate::metadata::TRACE_PARENT`]: version 00, and sampled; `None` for anything else.
    pub fn from_trace_parent(text: &str) -> Option<TraceContext> {
        let ids = text.strip_prefix("00-")?.strip_suffix("-01")?;
        let (trace, span) = ids.split_once('-')?;
        if trace.len() != 32 || span.len() != 16 {
            return None;
        }
        let digits = format!("{trace}{span}");
        let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..digits.len()).step_by(2).map(byte).collect();
        TraceContext::from_slice(&bytes?)
    }

    pub fn to_trace_parent(self) -> String {
        format!("00-{}-{}-01", Hex(&self.trace_id), Hex(&self.span_id))
    }
}

/// The trace, as tools show it.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.trace_id).fmt(f)
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_nothing_else_is() {
        let context = TraceContext {
            trace_id: [0xab; 16],
            span_id: [7; 8],
        };
        assert_eq!(TraceContext::from_slice(&context.to_bytes()), Some(context));
        let parent = context.to_trace_parent();
        assert_eq!(
            parent,
            "00-abababababababababababababababab-0707070707070707-01"
        );
        assert_eq!(TraceContext::from_trace_parent(&parent), Some(context));
        assert_eq!(TraceContext::from_slice(&[1; 23]), None);
        assert_eq!(TraceContext::from_slice(&[0; 24]), None);
        for wrong in [
            "",
            "00-ab-07-01",
            &parent.replace("-01", "-00"),
            &parent.replace('a', "é"),
        ] {
            assert_eq!(TraceContext::from_trace_parent(wrong), None, "{wrong}");
        }
    }
}
