//! Options that many commands have and some cannot have: whoever gives one there is told why, because an option
//! that does nothing would be believed.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Of an option that a command does not know, if others do.
pub fn why(error: &clap::Error, command: Option<&str>) -> Option<String> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let (command, option) = (command?, option.split('=').next()?);
    let why = reason(command, option)?;
    Some(format!("{command} has no {option}: {why}"))
}

fn reason(command: &str, option: &str) -> Option<&'static str> {
    Some(match (command, option) {
        ("list" | "check", "--seed" | "--duration" | "--rate") => {
            "it plays nothing, so there is nothing to draw, to time or to load"
        }
        ("list" | "check", "--report") => {
            "a page shows what was seen, and it plays nothing: run, all, soak, replay, sim, sweep and judge have one"
        }
        ("check", "--json") => {
            "mistakes are for whoever writes the file; its exit code is for programs"
        }
        ("judge", "--seed" | "--duration" | "--rate") => {
            "what was played is over, and its history says with what"
        }
        ("sim", "--rate") => {
            "its time is simulated, and each seed draws a load of its own; --seeds and --duration say how much is run"
        }
        ("sweep", "--rate") => {
            "its load is a number of operations and not one in a time; --operations and --points say how many"
        }
        ("plants", "--seed" | "--duration" | "--rate") => {
            "each bug is hunted until it is caught or its check has no tries left, the same ones each time"
        }
        ("plants", "--report") => {
            "it prints its table with --table, and --json for programs; `run DRILL --plant BUG --report FILE` has a page"
        }
        ("recovery", "--seed" | "--rate") => {
            "it publishes what --registers and --fresh say, as fast as it is taken"
        }
        ("recovery", "--duration") => "its size is --registers, --fresh and --kills",
        ("recovery", "--report") => "it prints its table, and --json for programs",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_commands_have_in_common_is_there_or_refused_with_a_reason() {
        // What each of them does have; `run` and its like have all.
        let has = |command: &str, option: &str| {
            matches!(
                (command, option),
                ("list" | "judge" | "plants" | "recovery", "--json")
                    | ("judge", "--report")
                    | (
                        "sim" | "sweep",
                        "--seed" | "--duration" | "--json" | "--report"
                    )
            )
        };
        for command in [
            "list", "check", "judge", "sim", "sweep", "plants", "recovery",
        ] {
            for option in ["--seed", "--duration", "--rate", "--json", "--report"] {
                let told = reason(command, option).is_some();
                assert_ne!(told, has(command, option), "{command} {option}");
            }
        }
    }
}
