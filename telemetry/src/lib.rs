//! Logs and metrics: the one place that sets them up
