//! `list`: the drills, and whether this machine can play them.

use crate::{
    commands::PASS,
    drill::{BUILT_IN, Drill, find},
    error::ChaosError,
    out,
    play::unavailable,
    stage::machine::Machine,
    text::Text,
};
use clap::Args;
use serde::Serialize;

#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// An array of objects: name, faults, needs, available, why_not, why_not_zh.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    title: String,
    title_zh: String,
    faults: Vec<&'static str>,
    needs: Vec<&'static str>,
    available: bool,
    why_not: Option<String>,
    why_not_zh: Option<String>,
}

fn listed(drill: &Drill, machine: &Machine) -> Listed {
    let faults = || drill.faults.iter().map(|fault| &fault.what);
    let mut needs: Vec<&'static str> = faults().flat_map(Machine::needs).collect();
    if drill.workload.sink {
        needs.push("postgresql");
    }
    if drill.workload.risk_levels {
        needs.push("the published lists of risk areas");
    }
    needs.sort_unstable();
    needs.dedup();
    let why_not = unavailable(drill, machine, None);
    let why_not = (!why_not.is_empty()).then(|| Text::joined(&why_not));
    Listed {
        name: drill.name.clone(),
        title: drill.title.clone(),
        title_zh: drill.title_zh.clone(),
        faults: faults().map(|what| what.name()).collect(),
        needs,
        available: why_not.is_none(),
        why_not: why_not.as_ref().map(|why| why.en.clone()),
        why_not_zh: why_not.map(|why| why.zh),
    }
}

pub fn run(arguments: &Arguments) -> Result<u8, ChaosError> {
    let machine = Machine::look();
    let mut all = Vec::new();
    for (name, _) in BUILT_IN {
        all.push(listed(&find(name)?, &machine));
    }
    if arguments.json {
        let json = serde_json::to_string_pretty(&all).map_err(ChaosError::stage("JSON"))?;
        out::line(json);
        return Ok(PASS);
    }
    let width = all.iter().map(|drill| drill.name.len()).max().unwrap_or(0);
    for drill in &all {
        out::line(format_args!(
            "{:width$}  {} / {}",
            drill.name, drill.title, drill.title_zh
        ));
        let needs = match drill.needs.is_empty() {
            true => "nothing".to_owned(),
            false => drill.needs.join(", "),
        };
        out::line(format_args!("{:width$}  needs {needs}", ""));
        if let (Some(why), Some(zh)) = (&drill.why_not, &drill.why_not_zh) {
            out::line(format_args!("{:width$}  not available: {why} / {zh}", ""));
        }
    }
    Ok(PASS)
}
