//! A scenario as a TOML file: its name and the options it is to have. It becomes the command line that
//! says the same, so both have the same names, defaults and checks.

use crate::Failure;
use clap::Command;
use std::{ffi::OsString, fs, path::Path};
use toml::Value;

/// The arguments that a file stands for; those after the file's name follow them and win.
pub fn arguments(file: &Path, command: &Command) -> Result<Vec<OsString>, Failure> {
    let shown = file.display();
    let text = fs::read_to_string(file).map_err(|e| format!("{shown}: {e}"))?;
    let table: toml::Table = text.parse().map_err(|e| format!("{shown}: {e}"))?;
    let name = match table.get("scenario") {
        Some(Value::String(name)) => name.clone(),
        _ => return Err(format!("{shown}: it needs a line `scenario = \"...\"`").into()),
    };
    let scenario = command.find_subcommand(&name).ok_or_else(|| {
        let known: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
        format!(
            "{shown}: there is no scenario {name:?}, only {}",
            known.join(", ")
        )
    })?;
    let mut out: Vec<OsString> = vec![command.get_name().into(), name.into()];
    for (key, value) in table.iter().filter(|(key, _)| *key != "scenario") {
        let long = key.replace('_', "-");
        let known = scenario
            .get_arguments()
            .any(|a| a.get_long() == Some(&long));
        if !known {
            let all: Vec<String> = scenario
                .get_arguments()
                .filter_map(|a| Some(a.get_long()?.replace('-', "_")))
                .collect();
            let line = text
                .lines()
                .position(|line| line.trim_start().starts_with(key.as_str()));
            return Err(format!(
                "{shown}:{}: {key:?} is not an option of {}, which has {}",
                line.map_or(0, |line| line + 1),
                scenario.get_name(),
                all.join(", ")
            )
            .into());
        }
        match value {
            Value::Boolean(false) => continue,
            Value::Boolean(true) => out.push(format!("--{long}").into()),
            value => out.push(format!("--{long}={}", plain(value)).into()),
        }
    }
    Ok(out)
}

/// As it is written on a command line.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
