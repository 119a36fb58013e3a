//! A scenario as a TOML file: its name and the options it is to have. It becomes the command line that
//! says the same, so both have the same names, defaults and checks. What is wrong in it is said with its
//! line, its key and what may stand there.

use crate::Failure;
use clap::{Arg, Command, error::ContextKind, error::ContextValue};
use std::{error::Error, ffi::OsString, fs, ops::Range, path::Path};
use toml::{Value, de::DeTable};

/// The arguments that a file stands for; those after the file's name follow them and win. `names` are those
/// of the scenarios among the commands.
pub fn arguments(file: &Path, command: &Command, names: &[&str]) -> Result<Vec<OsString>, Failure> {
    let shown = file.display();
    let text = fs::read_to_string(file).map_err(|e| format!("{shown}: {e}"))?;
    let at = |span: Range<usize>, what: &str| -> Failure {
        let line = 1 + text
            .bytes()
            .take(span.start)
            .filter(|b| *b == b'\n')
            .count();
        format!("{shown}:{line}: {what}").into()
    };
    let wrong = |e: toml::de::Error| at(e.span().unwrap_or(0..0), e.message());
    let places = DeTable::parse(&text).map_err(wrong)?;
    let table: toml::Table = toml::from_str(&text).map_err(wrong)?;
    let place = |key: &str| {
        let found = places.get_ref().keys().find(|k| k.get_ref() == key);
        found.map_or(0..0, |key| key.span())
    };
    let known = || format!("it may be {}", names.join(", "));
    let name = match table.get("scenario") {
        Some(Value::String(name)) if names.contains(&name.as_str()) => name,
        Some(other) => {
            let what = format!("there is no scenario {other}: {}", known());
            return Err(at(place("scenario"), &what));
        }
        None => {
            let what = format!("a line `scenario = \"...\"` is missing: {}", known());
            return Err(at(0..0, &what));
        }
    };
    let scenario = command.find_subcommand(name).ok_or("no such command")?;
    let mut out: Vec<OsString> = vec![command.get_name().into(), name.into()];
    for (key, value) in table.iter().filter(|(key, _)| *key != "scenario") {
        let argument = argument(scenario, key, value).map_err(|what| at(place(key), &what))?;
        out.extend(argument);
    }
    Ok(out)
}

/// With options that were given after the file. They win; of an option that takes several values, those of the file go.
pub fn joined(file: Vec<OsString>, options: &[OsString]) -> Vec<OsString> {
    let flag = |argument: &OsString| {
        let text = argument.to_string_lossy();
        let flag = text.split('=').next().filter(|f| f.starts_with("--"));
        flag.map(str::to_owned)
    };
    let given: Vec<String> = options.iter().filter_map(flag).collect();
    let stays = |argument: &OsString| flag(argument).is_none_or(|f| !given.contains(&f));
    let mut all: Vec<OsString> = file.into_iter().filter(stays).collect();
    all.extend(options.iter().cloned());
    all
}

/// What stands on the command line for it; nothing for a flag that is not set.
fn argument(scenario: &Command, key: &str, value: &Value) -> Result<Option<OsString>, String> {
    let long = key.replace('_', "-");
    let option = scenario
        .get_arguments()
        .find(|a| a.get_long() == Some(&long));
    let Some(option) = option else {
        let all: Vec<String> = (scenario.get_arguments())
            .filter_map(|a| Some(a.get_long()?.replace('-', "_")))
            .collect();
        let name = scenario.get_name();
        return Err(format!(
            "{key:?} is not an option of {name}, which has {}",
            all.join(", ")
        ));
    };
    let argument = match (value, option.get_action().takes_values()) {
        (Value::Boolean(false), false) => return Ok(None),
        (Value::Boolean(true), false) => format!("--{long}"),
        (_, false) => return Err(format!("{key} = {value}: it is true or false")),
        (_, true) => format!("--{long}={}", plain(value)),
    };
    let alone = [scenario.get_name(), &argument];
    match scenario.clone().try_get_matches_from(alone) {
        Ok(_) => Ok(Some(argument.into())),
        Err(error) => Err(format!("{key} = {value}: {}", allowed(option, &error))),
    }
}

/// Why a value is refused, and what may stand there instead.
fn allowed(option: &Arg, error: &clap::Error) -> String {
    let mut said = Vec::new();
    if let Some(ContextValue::Strings(values)) = error.get(ContextKind::ValidValue) {
        said.push(format!("it may be {}", values.join(", ")));
    }
    if let Some(why) = error.source() {
        said.push(why.to_string());
    }
    let defaults = option.get_default_values().iter();
    let defaults: Vec<_> = defaults.map(|value| value.to_string_lossy()).collect();
    if !defaults.is_empty() {
        said.push(format!("the default is {}", defaults.join(",")));
    }
    if let Some(help) = option.get_help() {
        said.push(help.to_string());
    }
    said.join("; ")
}

/// As it is written on a command line.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
