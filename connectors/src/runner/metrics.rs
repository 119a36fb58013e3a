//! What a connector measures: the names in one place, read from the [`Board`].

use crate::state::{Board, Counts, State};
use hutong_telemetry::Exporter;
use opentelemetry::KeyValue;

/// Every metric of a connector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// 1 for the state that the connector is in, 0 for the others; label `state`.
    State,
    RowsRead,
    DeltasAccepted,
    DeltasNotNewer,
    RowsRefused,
    DeltasApplied,
    Snapshots,
    Restarts,
    Reconnects,
    DeadLetters,
    DeadLettersBytes,
    BatchesInFlight,
    HeldBackSeconds,
    LagSeconds,
}

impl Metric {
    pub const COUNTERS: [Metric; 9] = [
        Metric::RowsRead,
        Metric::DeltasAccepted,
        Metric::DeltasNotNewer,
        Metric::RowsRefused,
        Metric::DeltasApplied,
        Metric::Snapshots,
        Metric::Restarts,
        Metric::Reconnects,
        Metric::HeldBackSeconds,
    ];

    pub const GAUGES: [Metric; 4] = [
        Metric::DeadLetters,
        Metric::DeadLettersBytes,
        Metric::BatchesInFlight,
        Metric::LagSeconds,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Metric::State => "hutong_connect_state",
            Metric::RowsRead => "hutong_connect_rows_read_total",
            Metric::DeltasAccepted => "hutong_connect_deltas_accepted_total",
            Metric::DeltasNotNewer => "hutong_connect_deltas_not_newer_total",
            Metric::RowsRefused => "hutong_connect_rows_refused_total",
            Metric::DeltasApplied => "hutong_connect_deltas_applied_total",
            Metric::Snapshots => "hutong_connect_snapshots_total",
            Metric::Restarts => "hutong_connect_restarts_total",
            Metric::Reconnects => "hutong_connect_reconnects_total",
            Metric::DeadLetters => "hutong_connect_dead_letters",
            Metric::DeadLettersBytes => "hutong_connect_dead_letters_bytes",
            Metric::BatchesInFlight => "hutong_connect_batches_in_flight",
            Metric::HeldBackSeconds => "hutong_connect_held_back_seconds_total",
            Metric::LagSeconds => "hutong_connect_lag_seconds",
        }
    }

    fn description(self) -> &'static str {
        match self {
            Metric::State => "1 for the state that the connector is in.",
            Metric::RowsRead => "Rows that the source gave.",
            Metric::DeltasAccepted => "Deltas that the broker has durably accepted.",
            Metric::DeltasNotNewer => "Deltas that the broker had already, or newer.",
            Metric::RowsRefused => "Rows refused by the mapping or the broker.",
            Metric::DeltasApplied => "Deltas that the sink has durably applied.",
            Metric::Snapshots => "Snapshots that were begun.",
            Metric::Restarts => "How often it began again after trouble.",
            Metric::Reconnects => "How often the connection to the broker was made again.",
            Metric::DeadLetters => "Dead letters that wait for someone.",
            Metric::DeadLettersBytes => "Size of the file of dead letters.",
            Metric::BatchesInFlight => "Batches on the way to the broker.",
            Metric::HeldBackSeconds => {
                "Seconds that batches waited because the broker took no more."
            }
            Metric::LagSeconds => "How old the newest thing is that the sink has.",
        }
    }

    fn value(self, counts: &Counts) -> f64 {
        let whole = match self {
            Metric::State => 0,
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
}

/// Makes the instruments; they read the board when they are scraped, and live in their meter.
pub fn register(exporter: &Exporter, board: &Board) {
    let meter = exporter.meter("hutong_connect");
    for metric in Metric::COUNTERS {
        let board = board.clone();
        let _counter = meter
            .f64_observable_counter(metric.name())
            .with_description(metric.description())
            .with_callback(move |to| to.observe(metric.value(&board.status().counts), &[]))
            .build();
    }
    for metric in Metric::GAUGES {
        let board = board.clone();
        let _gauge = meter
            .f64_observable_gauge(metric.name())
            .with_description(metric.description())
            .with_callback(move |to| to.observe(metric.value(&board.status().counts), &[]))
            .build();
    }
    let board = board.clone();
    let _gauge = meter
        .u64_observable_gauge(Metric::State.name())
        .with_description(Metric::State.description())
        .with_callback(move |to| {
            let now = board.state();
            for state in State::ALL {
                let label = KeyValue::new("state", state.name());
                to.observe(u64::from(state == now), &[label]);
            }
        })
        .build();
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
        });
        let text = exporter.scrape().expect("scraped");
        for line in [
            "hutong_connect_rows_read_total 7\n",
            "hutong_connect_lag_seconds 0.25\n",
            "hutong_connect_state{state=\"RUNNING\"} 1\n",
            "hutong_connect_state{state=\"FAILED\"} 0\n",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }
}
