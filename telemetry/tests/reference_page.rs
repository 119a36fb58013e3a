//! The reference of metrics is what the catalogue says.

use hutong_telemetry::catalogue;
use std::path::Path;

#[test]
fn the_page_of_metrics_is_current() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let current = catalogue::page();
    if std::env::var_os("HUTONG_WRITE").is_some() {
        std::fs::write(&page, &current).expect("written");
    }
    let stands = std::fs::read_to_string(&page).unwrap_or_default();
    assert!(
        stands == current,
        "docs/metrics.md is not what the catalogue says: run this test with HUTONG_WRITE=1"
    );
}
