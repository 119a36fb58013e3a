//! `check`: the mistakes of a drill's file, each with its line.

use crate::{
    commands::{PASS, USAGE},
    drill::Drill,
    error::ChaosError,
    out,
    stage::machine::Machine,
};
use clap::Args;
use hutong_config::Look;
use std::path::PathBuf;

#[derive(Clone, Debug, Args)]
pub struct Arguments {
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

pub fn run(arguments: &Arguments) -> Result<u8, ChaosError> {
    let machine = Machine::look();
    let mut code = PASS;
    for file in &arguments.files {
        match Drill::load(file) {
            Ok(drill) => {
                out::line(format_args!(
                    "OK  {}: {} / {}",
                    file.display(),
                    drill.title,
                    drill.title_zh
                ));
                for fault in &drill.faults {
                    let (en, zh) = fault.what.label();
                    out::line(format_args!(
                        "    {:>6.1} s  for {:>5.1} s  {en} / {zh}",
                        fault.at.as_secs_f64(),
                        fault.lasting.as_secs_f64()
                    ));
                    if let Err(why) = machine.available(&fault.what) {
                        out::line(format_args!("              not on this machine: {why}"));
                    }
                }
            }
            Err(errors) => {
                eprint!("{}", errors.render(Look::of_stderr()));
                code = USAGE;
            }
        }
    }
    Ok(code)
}
