//! One number of the broker's page of metrics, for what cannot be seen from outside in another way.

use super::{Stage, listens_at};
use crate::error::ChaosError;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

const PAGE_MAX: u64 = 32 << 20;
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Between two looks.
const POLL: Duration = Duration::from_millis(50);

impl Stage {
    /// Of a broker that runs; `series` is written as on the page, with its labels.
    pub async fn metric(&self, series: &str) -> Result<f64, ChaosError> {
        let address = listens_at(&self.broker.ready(ANSWER_MAX).await?, "http=")?;
        let page = tokio::time::timeout(ANSWER_MAX, page(address))
            .await
            .map_err(|_| ChaosError::told("the page of metrics takes too long", "指标页面无响应"))?
            .map_err(ChaosError::stage("cannot read the page of metrics"))?;
        Ok(value(&page, series))
    }

    /// Waits until it is more than that; what it was at last. A broker that was started again counts from 0.
    pub async fn metric_above(&self, series: &str, than: f64, within: Duration) -> f64 {
        let until = Instant::now() + within;
        loop {
            let now = self.metric(series).await.unwrap_or(than);
            let since = if now < than { now } else { now - than };
            if since > 0.0 || Instant::now() > until {
                return since;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// HTTP/1.0: an answer in one piece, and the end of the connection is its end.
async fn page(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut page = String::new();
    stream.take(PAGE_MAX).read_to_string(&mut page).await?;
    Ok(page)
}

/// What nobody counted yet is not on the page, and is 0.
fn value(page: &str, series: &str) -> f64 {
    let of = |line: &str| line.strip_prefix(series)?.trim().parse().ok();
    page.lines().find_map(of).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::value;

    #[test]
    fn a_series_is_found_by_all_of_its_name() {
        let page =
            "HTTP/1.0 200 OK\r\n\r\n# HELP a b\na_total{p=\"1\"} 3\na_total{p=\"12\"} 4\nb 5.5\n";
        for (series, expected) in [
            ("a_total{p=\"12\"}", 4.0),
            ("a_total{p=\"1\"}", 3.0),
            ("b", 5.5),
            ("a_total", 0.0),
            ("c", 0.0),
        ] {
            assert!((value(page, series) - expected).abs() < 1e-9, "{series}");
        }
    }
}
