//! Values as JSON, the same in every sink.

use hutong_proto::Value;
use serde_json::json;

/// `{"colour"}`, `{"outcome", "sampled_at_us"}`, `{"doses", "product", "vaccinated_at_us"}` or
/// `{"level", "path"}`.
pub(super) fn to_json(value: &Value) -> serde_json::Value {
    match value {
        Value::HealthCode(colour) => json!({"colour": colour.name()}),
        Value::TestResult {
            outcome,
            sampled_at,
        } => json!({"outcome": outcome.name(), "sampled_at_us": sampled_at.0}),
        Value::Vaccination {
            doses,
            product,
            vaccinated_at,
        } => json!({"doses": doses, "product": product, "vaccinated_at_us": vaccinated_at.0}),
        Value::AreaRisk { level, path } => json!({"level": level.name(), "path": path}),
    }
}
