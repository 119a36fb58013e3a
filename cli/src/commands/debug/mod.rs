//! `debug bundle`: everything that somebody far away needs to understand a fault, in one archive, and nothing that
//! names a person or opens a door.

mod secrets;
mod tar;

use super::{Context, connectors, lag, platforms};
use crate::{errors::CliError, output::bytes_text, times};
use clap::{Args, Subcommand};
use hutong_connectors::client;
use hutong_proto::api;
use serde_json::{Value, json};
use std::{
    fs::File,
    io::{self, BufWriter},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tar::Tar;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Of one page of the broker.
const PAGE_BYTES_MAX: u64 = 32 << 20;
const PAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Said where it was made, and to who reads the archive.
const NO_CONFIG: &str = "no configuration of a connector is in it: name it with --config FILE";
/// What the broker runs with.
const RUNNING: &str = "broker.toml";
/// Everything lies in one folder of the archive.
const FOLDER: &str = "hutong-debug";

#[derive(Debug, Subcommand)]
pub enum DebugCommand {
    /// Writes a tar archive: configuration without secrets, metrics, lags, partitions, recent errors.
    Bundle(BundleArgs),
}

#[derive(Debug, Args)]
pub struct BundleArgs {
    /// The archive; it must not be there yet.
    #[arg(long, value_name = "FILE", default_value = "hutong-debug.tar")]
    pub into: PathBuf,
    /// The broker's HTTP address, for metrics and recent errors.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7401")]
    pub http: String,
    /// A configuration to take along, without its secrets: that of a connector, since what the broker runs with is in
    /// it anyway. May be given several times.
    #[arg(long, value_name = "FILE")]
    pub config: Vec<PathBuf>,
}

/// A file of the archive: its name, and what is in it, or why that could not be had.
type Part = (String, Result<Vec<u8>, String>);

pub async fn bundle(context: &Context, args: &BundleArgs) -> Result<(), CliError> {
    let failed = |source: io::Error| CliError::File {
        doing: "writing",
        path: args.into.clone(),
        source,
    };
    // For its owner only, and never over something else.
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&args.into)
        .map_err(failed)?;
    let mut parts = from_services(context).await;
    for (name, path) in [
        ("metrics.txt", "/metrics"),
        ("livez.txt", "/livez"),
        ("readyz.txt", "/readyz"),
        ("errors.json", "/console/api/errors"),
        ("refused.json", "/console/api/refused"),
        ("picture.json", "/console/api/picture"),
        ("history.json", "/console/api/history"),
    ] {
        let page = page(&args.http, path, &context.identity.to_string()).await;
        parts.push((name.to_owned(), page.map_err(|e| e.to_string())));
    }
    parts.push((RUNNING.to_owned(), running(context, args).await));
    for (i, path) in args.config.iter().enumerate() {
        parts.push((format!("config-{i}.toml"), configuration(path)));
    }
    let lost = parts.iter().filter(|(_, part)| part.is_err()).count();
    let had = parts.len() - lost;
    if args.config.is_empty() {
        // Nobody can ask a connector for it.
        parts.push(("config-0.toml".to_owned(), Err(NO_CONFIG.to_owned())));
    }
    let missing: Vec<&Part> = parts.iter().filter(|(_, part)| part.is_err()).collect();
    let mut tar = Tar::new(BufWriter::new(file), times::now().0 / 1_000_000);
    let about = about(context, args, &missing);
    tar.file(&format!("{FOLDER}/about.json"), about.as_bytes())
        .map_err(failed)?;
    for (name, content) in &parts {
        if let Ok(content) = content {
            tar.file(&format!("{FOLDER}/{name}"), content)
                .map_err(failed)?;
        }
    }
    tar.finish().map_err(failed)?;
    let bytes = std::fs::metadata(&args.into).map_err(failed)?.len();
    context.screen.line(format!(
        "{}: {had} files, {}{}",
        args.into.display(),
        bytes_text(bytes),
        match lost {
            0 => String::new(),
            n => format!("; {n} could not be had, about.json says why"),
        }
    ))?;
    if args.config.is_empty() {
        context.screen.line(NO_CONFIG)?;
    }
    match had {
        0 => Err(CliError::Finding("nothing could be gathered".to_owned())),
        _ => Ok(()),
    }
}

fn about(context: &Context, args: &BundleArgs, missing: &[&Part]) -> String {
    let missing: Vec<Value> = missing
        .iter()
        .filter_map(|(name, part)| {
            let why = part.as_ref().err()?;
            Some(json!({ "file": name, "why": why }))
        })
        .collect();
    let about = json!({
        "made_at_us": times::now().0,
        "made_by": format!("hutong {}", env!("CARGO_PKG_VERSION")),
        "identity": context.identity.to_string(),
        "address": context.address,
        "http": args.http,
        "missing": missing,
    });
    format!("{about:#}\n")
}

/// The broker's own configuration. Nothing in it should be secret; if something ever is, it stays here.
async fn running(context: &Context, args: &BundleArgs) -> Result<Vec<u8>, String> {
    let page = page(
        &args.http,
        "/console/api/config",
        &context.identity.to_string(),
    )
    .await
    .map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&page);
    secrets::without_secrets(&text).map(String::into_bytes)
}

fn configuration(path: &Path) -> Result<Vec<u8>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let clean = secrets::without_secrets(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(clean.into_bytes())
}

async fn from_services(context: &Context) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut put = |name: &str, part: Result<Value, CliError>| {
        let part = part.map(|value| format!("{value:#}\n").into_bytes());
        parts.push((name.to_owned(), part.map_err(|e| e.to_string())));
    };
    put("status.json", status(context).await);
    let found = platforms::read_platforms(context).await;
    put("platforms.json", found.map(|platforms| json!(platforms)));
    let found = connectors::read(context).await;
    put("connectors.json", found.map(|connectors| json!(connectors)));
    let found = platforms::read_partitions(context).await;
    put("partitions.json", found.map(|partitions| json!(partitions)));
    let found = lag::read(context).await;
    put("lag.json", found.map(|lags| json!(lags)));
    parts
}

async fn status(context: &Context) -> Result<Value, CliError> {
    let mut client = client::admin(&context.endpoint).map_err(|e| context.failed(&e))?;
    let answer = client.get_status(api::GetStatusRequest {}).await;
    let s = answer.map_err(|s| context.refused(&s))?.into_inner();
    Ok(json!({
        "version": s.version,
        "log_id": format!("{:016x}", s.log_id),
        "started_at_us": s.started_at_us,
        "now_us": s.now_us,
        "next_offset": s.next_offset,
        "applied_offset": s.applied_offset,
        "stored_offset": s.stored_offset,
        "deltas_applied": s.deltas_applied,
        "registers_estimate": s.registers_estimate,
    }))
}

/// The body of a page of the broker's HTTP port. A refusal is none, but what `/livez` and `/readyz` say is wrong is what is
/// wanted of them.
async fn page(address: &str, path: &str, identity: &str) -> io::Result<Vec<u8>> {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!(
            "GET {path} HTTP/1.0\r\nhost: {address}\r\nhutong-identity: {identity}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(PAGE_BYTES_MAX).read_to_end(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    };
    let answer = timeout(PAGE_TIMEOUT, asked)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n");
    let end = end.ok_or_else(|| io::Error::other("this is no answer of HTTP"))?;
    let (head, body) = (&answer[..end], &answer[end + 4..]);
    // HTTP/1.1 200 OK
    let status = head.split(|byte| *byte == b' ').nth(1);
    if status == Some(b"200") || ["/livez", "/readyz"].contains(&path) {
        return Ok(body.to_vec());
    }
    let status = String::from_utf8_lossy(status.unwrap_or_default());
    let why: String = String::from_utf8_lossy(body).chars().take(1000).collect();
    Err(io::Error::other(format!("HTTP {status}: {}", why.trim())))
}
