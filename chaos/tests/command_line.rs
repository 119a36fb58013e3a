//! What a person sees: lists, mistakes with line and caret, old histories judged again, pages.

mod program;
mod support;

use hutong_chaos::{
    drill::What,
    history::{Event, Phase},
    report,
};
use hutong_plants::Failpoint;
use program::{Chaos, exit_code};
use serde_json::Value;
use std::{io::Write, process::Stdio};
use support::Made;

#[test]
fn the_list_says_what_each_drill_needs_and_why_it_cannot_be_played() {
    let output = Chaos::new().run(&["list", "--json"]);
    assert_eq!(exit_code(output.status), Some(0));
    let list: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let list = list.as_array().expect("an array");
    assert!(list.len() >= 25, "{}", list.len());
    for listed in list {
        assert!(listed["faults"].as_array().is_some_and(|f| !f.is_empty()));
        assert!(listed["needs"].is_array());
        let available = listed["available"].as_bool().expect("a word");
        assert_eq!(available, listed["why_not"].is_null(), "{listed:#}");
    }
    let named = |name: &str| {
        let found = list.iter().find(|l| l["name"] == name);
        found.expect("listed")
    };
    assert_eq!(named("reload-expired")["available"], true);
    let needs = named("risk-levels")["needs"].to_string();
    assert!(needs.contains("published lists"), "{needs}");
}

const MISTAKES: &str = r#"# A drill with mistakes.
name = "Bad Name"
title = "t"
title_zh = "t"
why = "w"
why_zh = "w"
duration = "20s"

[hypothesis]
urgent_lagg = "1s"

[[faults]]
kind = "kill-brokr"
at = "5s"
for = "2s"

[[faults]]
kind = "kill-connector"
at = "1s"
for = "30s"
"#;

#[test]
fn every_mistake_of_a_file_is_shown_with_line_and_caret() {
    let chaos = Chaos::new();
    let file = chaos.dir().join("bad.toml");
    std::fs::write(&file, MISTAKES).expect("written");
    let output = chaos.run(&["check", "bad.toml"]);
    assert_eq!(exit_code(output.status), Some(2));
    let shown = String::from_utf8_lossy(&output.stderr);
    for (line, text) in [
        (2, "a name of a-z"),
        (10, "did you mean `urgent_lag`?"),
        (13, "did you mean \"kill-broker\"?"),
        (18, "there is no sink"),
        (19, "no steady state"),
        (20, "ends 11 s after the load"),
    ] {
        assert!(
            shown.contains(&format!("bad.toml:{line}:")),
            "{line}: {shown}"
        );
        assert!(shown.contains(text), "{text}: {shown}");
    }
    // To play it is the same as to check it.
    let output = chaos.run(&["run", "bad.toml"]);
    assert_eq!(exit_code(output.status), Some(2));
    let good = chaos.run(&["check", "no-such.toml"]);
    assert_eq!(exit_code(good.status), Some(2));
}

#[test]
fn a_drill_of_ones_own_is_checked_and_its_faults_are_told() {
    let chaos = Chaos::new();
    let file = chaos.dir().join("mine.toml");
    std::fs::write(&file, support::drill("", "kill-broker")).expect("written");
    let output = chaos.run(&["check", "mine.toml"]);
    assert_eq!(exit_code(output.status), Some(0), "{output:?}");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(shown.contains("broker killed (SIGKILL)"), "{shown}");
}

fn written(chaos: &Chaos, made: &Made) -> String {
    let path = chaos.dir().join("old.jsonl");
    let mut file = std::fs::File::create(&path).expect("created");
    for line in &made.lines {
        writeln!(file, "{}", serde_json::to_string(line).expect("JSON")).expect("written");
    }
    path.display().to_string()
}

#[test]
fn an_old_history_is_judged_again_with_exit_codes_for_each_verdict() {
    let chaos = Chaos::new();
    let lost = Made::sound().without_records(|_, record| record.offset == 21);
    for (made, code, outcome) in [
        (Made::sound(), 0, "PASS"),
        (lost, 1, "FAIL"),
        (Made::without_fault(), 3, "INVALID"),
    ] {
        let file = written(&chaos, &made);
        let output = chaos.run(&["judge", &file, "--json", "--report", "page.html"]);
        assert_eq!(exit_code(output.status), Some(code), "{output:?}");
        let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(json["outcome"], outcome);
        let page = std::fs::read_to_string(chaos.dir().join("page.html")).expect("a page");
        assert!(page.contains(&format!("class=\"verdict {outcome}\"")));
    }
    let output = chaos.run(&["judge", "no-such.jsonl"]);
    assert_ne!(exit_code(output.status), Some(0));
    let nonsense = chaos.dir().join("nonsense.jsonl");
    std::fs::write(&nonsense, "{\"t\":1}\n").expect("written");
    let output = chaos.run(&["judge", "nonsense.jsonl"]);
    assert_eq!(exit_code(output.status), Some(2), "{output:?}");
    let shown = String::from_utf8_lossy(&output.stderr);
    assert!(shown.contains("nonsense.jsonl:1"), "{shown}");
}

/// The drill's file says one edge, and who typed the command another.
#[test]
fn an_old_history_is_judged_with_the_edge_that_was_asked_for() {
    let crash = "crash-at-edge\"\nedge = \"commit-taken";
    let made = Made::of(&support::drill("", crash)).change(
        |event| matches!(event, Event::Header(_)),
        |event| {
            let Event::Header(header) = event else { return };
            header.edge = Some("commit-synced".to_owned());
            header.nth = Some(3);
        },
    );
    let (history, verdict) = (made.history(), made.judged());
    let (edge, nth) = (Failpoint::CommitSynced, 3);
    assert_eq!(
        history.drill.faults[0].what,
        What::CrashAtEdge { edge, nth }
    );
    let page = report::html(&[(&history, &verdict)]);
    assert!(page.contains(" --edge commit-synced --nth 3"), "{page}");
    assert!(
        page.contains("broker dies at commit-synced, time 3"),
        "{page}"
    );
}

#[test]
fn a_page_stands_alone_and_speaks_both_languages() {
    let history = Made::sound().history();
    let verdict = hutong_chaos::judge::judge(&history);
    let page = report::html(&[(&history, &verdict)]);
    for part in [
        "What was broken, and when",
        "何时破坏了什么",
        "承诺与实测",
        "Proof that it was broken",
        "<polyline",
        "@media print",
        "--seed 11",
    ] {
        assert!(page.contains(part), "{part}");
    }
    for elsewhere in ["<script", "<link", "url(", "src=", "http://", "https://"] {
        let without = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        assert!(!without.contains(elsewhere), "{elsewhere}");
    }
}

#[test]
fn a_page_of_a_trial_says_what_was_typed_and_not_what_the_broker_had() {
    let is_header = |event: &Event| matches!(event, Event::Header(_));
    let made = Made::sound().change(is_header, |event| {
        let Event::Header(header) = event else { return };
        header.trial = Some("spring".to_owned());
        header.trial_at = Some("10.0.0.1:7400".to_owned());
        header.kill_with = Some("ssh trial \"kill it\"".to_owned());
        header.broker = "identity = \"made up\"".to_owned();
    });
    let (history, verdict) = (made.history(), made.judged());
    let page = report::html(&[(&history, &verdict)]);
    let typed = "--trial 10.0.0.1:7400 --marker spring --kill-with 'ssh trial &quot;kill it&quot;'";
    assert!(page.contains(typed), "{page}");
    assert!(!page.contains("made up"), "{page}");
    assert!(page.contains("not known: the broker ran before"), "{page}");
}

#[test]
fn a_picture_has_every_fault_and_every_bound() {
    let pictured = |made: &Made| {
        let (history, verdict) = (made.history(), made.judged());
        report::html(&[(&history, &verdict)])
    };
    let count = |page: &str, what: &str| page.matches(what).count();
    let page = pictured(&Made::sound());
    assert_eq!(count(&page, "<rect"), 1, "{page}");
    // Of urgent lag, bulk lag, and memory.
    assert_eq!(count(&page, "class=\"bound\""), 3, "{page}");
    // One that nobody came to undo.
    let healed = |event: &Event| match event {
        Event::Fault { phase, .. } => !matches!(phase, Phase::Begin | Phase::Active),
        _ => false,
    };
    let page = pictured(&Made::sound().remove(healed));
    assert_eq!(count(&page, "<rect"), 1, "{page}");
}

#[test]
fn whoever_reads_half_of_a_list_is_no_mistake() {
    let chaos = Chaos::new();
    for args in [["list", "--json"].as_slice(), &["list"]] {
        let mut command = chaos.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        // Before it has written anything.
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("its end");
        assert_eq!(exit_code(output.status), Some(0), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
}

/// The variable is for the programs that drills hunt.
#[test]
fn a_simulation_has_no_bug_that_somebody_left_in_the_environment() {
    let chaos = Chaos::new();
    let sim = |more: &[&str]| {
        let mut command = chaos.command(&[&["sim", "--seeds", "2", "--no-keep"], more].concat());
        command.env("HUTONG_PLANT", "byte-flipped");
        exit_code(command.output().expect("it runs").status)
    };
    assert_eq!(sim(&[]), Some(0));
    assert_eq!(sim(&["--plant", "byte-flipped"]), Some(1));
}

/// What does nothing would be believed.
#[test]
fn an_option_that_a_command_cannot_have_is_refused_with_the_reason() {
    let chaos = Chaos::new();
    for (args, why) in [
        (["list", "--rate", "5"].as_slice(), "it plays nothing"),
        (
            &["list", "--report", "page.html"],
            "a page shows what was seen",
        ),
        (
            &["judge", "old.jsonl", "--seed=5"],
            "its history says with what",
        ),
        (&["sim", "--rate", "5"], "each seed draws a load of its own"),
        (&["sweep", "--rate", "5"], "a number of operations"),
        (&["sim", "--duration", "0s"], "more than no time"),
        (&["sweep", "--duration", "0s"], "more than no time"),
        (&["sim", "--minutes", "0"], "1.."),
        (
            &["sim", "--seed", "5", "--duration", "9s"],
            "cannot be used with",
        ),
        (
            &["sweep", "--edge", "commit-told", "--duration", "9s"],
            "cannot be used with",
        ),
        (
            &["run", "kill-broker", "--edge", "commit-told"],
            "for drills with crash-at-edge",
        ),
        (
            &[
                "run",
                "crash-at-edge",
                "--edge",
                "recovery-mended",
                "--nth",
                "2",
            ],
            "leave --nth out",
        ),
    ] {
        let output = chaos.run(args);
        assert_eq!(exit_code(output.status), Some(2), "{args:?}: {output:?}");
        let shown = String::from_utf8_lossy(&output.stderr);
        assert!(shown.contains(why), "{args:?}: {shown}");
    }
}

#[test]
fn a_drill_that_cannot_be_played_is_an_object_too() {
    let chaos = Chaos::new();
    let mut command = chaos.command(&["run", "risk-levels", "--json"]);
    let output = command.env("HUTONG_TEST_DATA", chaos.dir()).output();
    let output = output.expect("it runs");
    assert_eq!(exit_code(output.status), Some(3), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["drill"], "risk-levels", "{json:#}");
    assert_eq!(json["outcome"], "INVALID", "{json:#}");
    let why = json["why_not"].as_str().expect("a reason");
    assert!(why.contains("no lists of risk areas"), "{json:#}");
}

#[test]
fn a_simulation_whose_time_is_over_says_how_many_seeds_it_ran() {
    let chaos = Chaos::new();
    let sim = |more: &[&str]| {
        let args = [
            &["sim", "--seeds", "1000000", "--duration", "1s", "--no-keep"],
            more,
        ]
        .concat();
        let output = chaos.run(&args);
        assert_eq!(exit_code(output.status), Some(0), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let json: Value = serde_json::from_str(&sim(&["--json"])).expect("JSON");
    let seeds = json["seeds"].as_u64().expect("a number");
    assert!(seeds > 0 && seeds < 1_000_000, "{json:#}");
    assert_eq!(json["out_of_time"], true, "{json:#}");
    assert_eq!(json["asked"], 1_000_000, "{json:#}");
    let text = sim(&["--report", "page.html"]);
    assert!(text.contains("the time was over after"), "{text}");
    let page = std::fs::read_to_string(chaos.dir().join("page.html")).expect("a page");
    assert!(page.contains("of 1000000 seeds"), "{page}");
    assert!(page.contains("--duration 1000000us"), "{page}");
}

#[test]
fn a_page_that_cannot_be_written_is_refused_before_anything_is_done() {
    let chaos = Chaos::new();
    let history = chaos.dir().join("history.jsonl");
    let history = history.to_str().expect("UTF-8");
    for command in [
        &["sim", "--seeds", "1000000"][..],
        &["sweep"],
        &["run", "kill-broker"],
        &["all"],
        &["judge", history],
    ] {
        let output = chaos.run(&[command, &["--report", "missing/page.html"]].concat());
        assert_eq!(exit_code(output.status), Some(2), "{output:?}");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            told.contains("--report missing/page.html: cannot write it"),
            "{told}"
        );
    }
    let output = chaos.run(&["sim", "--seeds", "1", "--report", "page.html", "--no-keep"]);
    assert_eq!(exit_code(output.status), Some(0), "{output:?}");
    // What one sees first is that nothing was caught.
    let planted = [
        "sim",
        "--seeds",
        "1",
        "--plant",
        "ack-before-sync",
        "--report",
        "page.html",
    ];
    let output = chaos.run(&planted);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("ack-before-sync was NOT caught"), "{told}");
    let page = std::fs::read_to_string(chaos.dir().join("page.html")).expect("a page");
    assert!(page.contains("the planted bug was not caught"), "{page}");
}

#[test]
fn a_sweep_whose_time_is_over_says_how_many_points_it_judged() {
    let chaos = Chaos::new();
    let args = [
        "sweep",
        "--operations",
        "60",
        "--duration",
        "1ms",
        "--json",
        "--report",
        "page.html",
    ];
    let output = chaos.run(&args);
    assert_eq!(exit_code(output.status), Some(0), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    // It does not end before it has shown something.
    assert!(json["acknowledged_checked"].as_u64() > Some(0), "{json:#}");
    assert!(json["points"].as_u64() < Some(1000), "{json:#}");
    assert_eq!(json["out_of_time"], true, "{json:#}");
    let page = std::fs::read_to_string(chaos.dir().join("page.html")).expect("a page");
    assert!(page.contains("of 10000 crash points"), "{page}");
}

#[test]
fn recovery_is_timed_by_what_the_broker_has_and_has_to_apply_again() {
    let chaos = Chaos::new();
    let args = [
        "recovery",
        "--registers",
        "4000",
        "--fresh",
        "0,8000",
        "--kills",
        "2",
        "--json",
    ];
    let output = chaos.run(&args);
    assert_eq!(exit_code(output.status), Some(0), "{output:?}");
    let rows: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let again = |row: usize| rows[row]["records_again"].as_u64().expect("a number");
    assert!(again(1) > again(0), "{rows:#}");
    for row in rows.as_array().expect("an array") {
        assert!(row["ms_p50"].as_f64() > Some(0.0), "{row:#}");
        assert!(row["log_mb"].as_f64() > Some(0.0), "{row:#}");
    }
}
