//! Reports of drills: the pages that `hutong-chaos` writes, out of one configured folder.

use crate::{
    access::Call,
    console::{Failed, Shared, as_json},
};
use axum::{
    extract::{Path as UrlPath, State, rejection::PathRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use std::{fs, io, path::Path, time::SystemTime};

/// Listed at most, the newest ones.
const REPORTS_MAX: usize = 200;
/// Looked at in the folder, at most.
const ENTRIES_MAX: usize = 10_000;
const REPORT_BYTES_MAX: u64 = 8 << 20;
/// A report brings its own style and may do nothing else; it is no part of the console's origin.
const POLICY: &str = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; \
     frame-ancestors 'none'";

#[derive(Debug, Serialize)]
struct Report {
    name: String,
    bytes: u64,
    changed_at_us: u64,
}

pub async fn list(State(console): Shared, headers: HeaderMap) -> Result<Response, Failed> {
    console.check(&headers, Call::GetStatus)?;
    let Some(dir) = console.drills.clone() else {
        return Ok(as_json(
            &serde_json::json!({ "configured": false, "reports": [] }),
        ));
    };
    let reports = tokio::task::spawn_blocking(move || reports(&dir)).await;
    match reports {
        Ok(Ok(reports)) => {
            let answer = serde_json::json!({ "configured": true, "reports": reports });
            Ok(as_json(&answer))
        }
        Ok(Err(error)) => Err(unreadable(&error)),
        Err(error) => Err(unreadable(&error)),
    }
}

fn unreadable(error: &dyn std::error::Error) -> Failed {
    tracing::warn!(%error, "the folder of drill reports cannot be read");
    let what = "the folder that `console.drills` names cannot be read; the broker's log says why";
    let what_zh = "无法读取 console.drills 所指的文件夹；原因见代理的日志";
    Failed::message(StatusCode::INTERNAL_SERVER_ERROR, what, what_zh)
}

fn reports(dir: &Path) -> io::Result<Vec<Report>> {
    let mut reports = Vec::new();
    for entry in fs::read_dir(dir)?.take(ENTRIES_MAX) {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
            continue;
        };
        // Of the entry itself: what a link leads to is not looked at.
        let about = entry.metadata()?;
        if !is_report(&name) || !about.is_file() {
            continue;
        }
        let changed = about.modified()?.duration_since(SystemTime::UNIX_EPOCH);
        reports.push(Report {
            name,
            bytes: about.len(),
            changed_at_us: changed.unwrap_or_default().as_micros() as u64,
        });
    }
    reports.sort_by(|a, b| {
        b.changed_at_us
            .cmp(&a.changed_at_us)
            .then(a.name.cmp(&b.name))
    });
    reports.truncate(REPORTS_MAX);
    Ok(reports)
}

/// Plain names alone: no path, nothing hidden.
fn is_report(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    name.ends_with(".html") && !name.starts_with('.') && name.bytes().all(plain)
}

pub async fn report(
    State(console): Shared,
    name: Result<UrlPath<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Failed> {
    console.check(&headers, Call::GetStatus)?;
    let UrlPath(name) = name?;
    let none = || {
        Failed::message(
            StatusCode::NOT_FOUND,
            "there is no such report",
            "没有此报告",
        )
    };
    let dir = console.drills.clone().ok_or_else(none)?;
    if !is_report(&name) {
        return Err(none());
    }
    let read = tokio::task::spawn_blocking(move || read(&dir.join(name))).await;
    let page = read.ok().and_then(Result::ok).ok_or_else(none)?;
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
    ];
    Ok((headers, page).into_response())
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let about = fs::symlink_metadata(file)?;
    if !about.is_file() || about.len() > REPORT_BYTES_MAX {
        return Err(io::ErrorKind::NotFound.into());
    }
    fs::read(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_pages_are_reports_and_links_are_not_followed() {
        for (name, is) in [
            ("kill-broker.html", true),
            ("all_2.html", true),
            (".hidden.html", false),
            ("a/b.html", false),
            ("..%2fx.html", false),
            ("kill-broker.jsonl", false),
        ] {
            assert_eq!(is_report(name), is, "{name}");
        }
        let dir = tempfile::tempdir().expect("a folder");
        let page = dir.path().join("one.html");
        fs::write(&page, "<p>").expect("written");
        fs::write(dir.path().join("other.txt"), "x").expect("written");
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("link.html")).expect("made");
        let found = reports(dir.path()).expect("read");
        let names: Vec<&str> = found.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["one.html"]);
        assert_eq!(read(&page).expect("read"), b"<p>");
        assert!(read(&dir.path().join("link.html")).is_err());
    }
}
