//! What can keep a drill from running at all. A drill that ran has a verdict instead.

use crate::text::Text;
use hutong_config::{ConfigErrors, Look};
use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum ChaosError {
    #[error("{0}")]
    Usage(String),
    /// A drill's file has mistakes; each with its line.
    #[error("{}", .0.render(Look::of_stderr()).trim_end())]
    Drill(ConfigErrors),
    #[error("{doing} {}: {source}", .path.display())]
    File {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// A part of the stage does not stand: a process that does not start, a client that cannot connect.
    #[error("{0}")]
    Stage(String),
    /// The same, in words of our own: a page has it in both languages.
    #[error("{0}")]
    Told(Text),
    #[error("interrupted")]
    Interrupted,
}

impl ChaosError {
    pub fn file(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| ChaosError::File {
            doing,
            path,
            source,
        }
    }

    /// For `map_err`: what was being done, and what went wrong.
    pub fn stage<E: std::fmt::Display>(doing: &str) -> impl FnOnce(E) -> Self {
        move |error| ChaosError::Stage(format!("{doing}: {error}"))
    }

    pub fn told(en: impl Into<String>, zh: impl Into<String>) -> Self {
        ChaosError::Told(Text::new(en, zh))
    }

    /// For a page. What a program or the kernel said stays as it is.
    pub fn text(&self) -> Text {
        match self {
            ChaosError::Told(text) => text.clone(),
            ChaosError::File {
                doing,
                path,
                source,
            } => Text::new(
                self.to_string(),
                format!("{} {}：「{source}」", in_chinese(doing), path.display()),
            ),
            ChaosError::Interrupted => Text::new("interrupted", "被中断"),
            ChaosError::Usage(_) | ChaosError::Drill(_) | ChaosError::Stage(_) => {
                Text::quoted(self)
            }
        }
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            ChaosError::Usage(_) | ChaosError::Drill(_) => crate::commands::USAGE,
            ChaosError::File { .. } | ChaosError::Stage(_) | ChaosError::Told(_) => {
                crate::commands::INVALID
            }
            ChaosError::Interrupted => crate::commands::INTERRUPTED,
        }
    }
}

/// What could not be done to a file.
fn in_chinese(doing: &str) -> &'static str {
    match doing {
        "cannot append to" => "无法追加到",
        "cannot change" => "无法修改",
        "cannot copy" => "无法复制",
        "cannot create" => "无法创建",
        "cannot cut" => "无法截短",
        "cannot fill" => "无法写满",
        "cannot grow" => "无法扩展",
        "cannot read" => "无法读取",
        "cannot remove" => "无法删除",
        "cannot write" => "无法写入",
        _ => "文件操作失败",
    }
}
