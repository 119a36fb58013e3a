//! One number of the broker's page of metrics, for what cannot be seen from outside in another way.

use super::{Stage, listens_at};
use crate::error::ChaosError;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const PAGE_MAX: u64 = 32 << 20;
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Between two looks.
const POLL: Duration = Duration::from_millis(50);

impl Stage {
    /// Of a broker that runs: a counter of a platform.
    pub async fn metric(&self, name: &str, platform: u32) -> Result<f64, ChaosError> {
        let address = listens_at(&self.broker.ready(ANSWER_MAX).await?, "http=")?;
        let page = tokio::time::timeout(ANSWER_MAX, page(address))
            .await
            .map_err(|_| ChaosError::told("the page of metrics takes too long", "指标页面无响应"))?
            .map_err(ChaosError::stage("cannot read the page of metrics"))?;
        value(&page, name, platform).ok_or_else(|| {
            ChaosError::told(
                format!("the page of metrics has no {name}"),
                format!("指标页面中没有 {name}"),
            )
        })
    }

    /// Waits until it is more than that, and says by how much. A broker that was started again counts from 0.
    pub async fn rises(&self, name: &str, platform: u32, than: f64) -> f64 {
        loop {
            let now = self.metric(name, platform).await.unwrap_or(than);
            let since = if now < than { now } else { now - than };
            if since > 0.0 {
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

/// A platform for which nobody counted yet is not on the page, and has 0; what is no metric has nothing.
fn value(page: &str, name: &str, platform: u32) -> Option<f64> {
    let (head, body) = page.split_once("\r\n\r\n")?;
    let whole = head.split_whitespace().nth(1) == Some("200");
    let known = body
        .lines()
        .any(|line| line.starts_with(&format!("# TYPE {name} ")));
    if !(whole && known) {
        return None;
    }
    let series = format!("{name}{{platform=\"{platform}\"}} ");
    let of = |line: &str| line.strip_prefix(&series)?.trim().parse().ok();
    Some(body.lines().find_map(of).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::value;

    #[test]
    fn a_counter_is_found_by_all_of_its_name_and_nothing_is_not_zero() {
        let page = |status: u32| {
            format!(
                "HTTP/1.0 {status} x\r\na: b\r\n\r\n# TYPE a_total counter\na_total{{platform=\"1\"}} 3\n\
                 a_total{{platform=\"12\"}} 4\nb_total{{platform=\"1\"}} 5\n"
            )
        };
        for (name, platform, expected) in [
            ("a_total", 12, Some(4.0)),
            ("a_total", 1, Some(3.0)),
            ("a_total", 2, Some(0.0)),
            ("a", 1, None),
            ("b_total", 1, None),
        ] {
            assert_eq!(
                value(&page(200), name, platform),
                expected,
                "{name} {platform}"
            );
        }
        assert_eq!(value(&page(503), "a_total", 1), None);
        assert_eq!(value("", "a_total", 1), None);
    }
}
