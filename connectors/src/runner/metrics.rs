//! What a connector measures, as the catalogue has it, read from the [`Board`].

use crate::state::{Board, Counts, State};
use hutong_telemetry::{
    Exporter,
    catalogue::{Connector as Metric, Emit, Label},
};
use opentelemetry::KeyValue;

/// Makes the instruments; they read the board when they are scraped, and live in their meter.
pub fn register(exporter: &Exporter, board: &Board) {
    let meter = exporter.meter("hutong_connect");
    for metric in Metric::ALL.iter().copied() {
        let board = board.clone();
        let definition = metric.definition();
        definition.observe(&meter, move |emit| read(metric, &board, emit));
    }
}

fn read(metric: Metric, board: &Board, emit: Emit<'_>) {
    let status = board.status();
    match metric {
        Metric::BuildInfo => {
            let version = env!("CARGO_PKG_VERSION");
            emit(1.0, &[KeyValue::new(Label::Version.name(), version)]);
        }
        Metric::State => {
            for state in State::ALL {
                let label = KeyValue::new(Label::State.name(), state.name());
                emit(f64::from(state == status.state), &[label]);
            }
        }
        Metric::DeadLettersAdded => {
            for (reason, count) in &status.counts.dead_letters_added {
                let label = KeyValue::new(Label::Reason.name(), reason.clone());
                emit(*count as f64, &[label]);
            }
        }
        metric => emit(value(metric, &status.counts), &[]),
    }
}

fn value(metric: Metric, counts: &Counts) -> f64 {
    let whole = match metric {
        Metric::BuildInfo | Metric::State | Metric::DeadLettersAdded => 0,
        Metric::RowsRead => counts.rows_read,
        Metric::DeltasAccepted => counts.deltas_accepted,
        Metric::DeltasNotNewer => counts.deltas_not_newer,
        Metric::RowsRefused => counts.rows_refused,
        Metric::DeltasApplied => counts.deltas_applied,
        Metric::Snapshots => counts.snapshots,
        Metric::Restarts => counts.restarts,
        Metric::Reconnects => counts.reconnects,
        Metric::DeadLetters => counts.dead_letters,
        Metric::DeadLettersBytes => counts.dead_letters_bytes,
        Metric::BatchesInFlight => counts.batches_in_flight,
        Metric::HeldBackSeconds => return counts.held_back_seconds,
        Metric::LagSeconds => return counts.lag_seconds,
    };
    whole as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_board_is_what_is_scraped() {
        let exporter = Exporter::new(|_| None).expect("an exporter");
        let board = Board::new("anhui");
        register(&exporter, &board);
        board.set(State::Running, "");
        board.count(|counts| {
            counts.rows_read = 7;
            counts.lag_seconds = 0.25;
            counts.dead_letter("VALUE_UNMAPPED", 2);
        });
        let text = exporter.scrape().expect("scraped");
        for line in [
            "hutong_connect_rows_read_total 7\n",
            "hutong_connect_lag_seconds 0.25\n",
            "hutong_connect_dead_letters_added_total{reason=\"VALUE_UNMAPPED\"} 2\n",
            "hutong_connect_state{state=\"RUNNING\"} 1\n",
            "hutong_connect_state{state=\"FAILED\"} 0\n",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        let build = format!(
            "hutong_connect_build_info{{version=\"{}\"}} 1\n",
            env!("CARGO_PKG_VERSION")
        );
        assert!(text.contains(&build), "{text}");
    }
}
