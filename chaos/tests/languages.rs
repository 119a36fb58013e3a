//! A page says everything in English and in Chinese: whatever the verdict is and whatever was found.

mod program;
mod support;

use hutong_chaos::{
    commands::all::{Played, Row},
    drill::BUILT_IN,
    history::{AreaDiffers, AreasCompared, Cursor, Event, Phase, Stream},
    judge::{Outcome, Verdict},
    report,
    text::{Text, has_chinese},
};
use std::collections::BTreeSet;
use support::{ANHUI, Made, drill};

/// Where text stands, and which of it has to be in both languages for itself.
const BLOCKS: [&str; 7] = ["h1", "h2", "p", "li", "td", "th", "text"];
/// Signs of units, and names of verdicts, which stand for themselves.
const SIGNS: [&str; 9] = [
    "s", "ms", "MB", "MiB", "kB", "PASS", "FAIL", "INVALID", "µs",
];

/// What is open at a place of a page.
struct Open {
    tag: String,
    chinese: bool,
    verbatim: bool,
}

#[derive(Default)]
struct Block {
    english: String,
    chinese: String,
}

impl Block {
    fn is_one_sided(&self) -> bool {
        let chinese = has_chinese(&self.chinese);
        match needs_words(&self.english) {
            true => !chinese,
            false => chinese && !self.english.contains(char::is_alphabetic),
        }
    }
}

/// Goes through a page as a reader does; what is in one language only.
fn one_sided(page: &str) -> Vec<String> {
    let body = page.split_once("<body>").expect("a body").1;
    let (mut open, mut blocks): (Vec<Open>, Vec<Block>) = (Vec::new(), Vec::new());
    let mut found = Vec::new();
    for piece in body.split('<').skip(1) {
        let (tag, text) = piece.split_once('>').expect("a tag");
        let name: String = tag.chars().take_while(|c| !" />".contains(*c)).collect();
        if let Some(name) = tag.strip_prefix('/') {
            let last = open.pop();
            if let Some(last) = last {
                assert_eq!(last.tag, name, "<{tag}>");
            }
            if BLOCKS.contains(&name)
                && let Some(block) = blocks.pop()
                && block.is_one_sided()
            {
                found.push(format!("{:?} {:?}", block.english, block.chinese));
            }
        } else if !tag.ends_with('/') && name != "br" {
            let (chinese, verbatim) = open
                .last()
                .map_or((false, false), |o| (o.chinese, o.verbatim));
            if BLOCKS.contains(&&*name) {
                blocks.push(Block::default());
            }
            open.push(Open {
                tag: name,
                chinese: chinese || tag.contains("lang=\"zh-Hans\""),
                verbatim: verbatim || tag.contains("translate=\"no\""),
            });
        }
        let Some(inside) = open.last().filter(|o| !o.verbatim) else {
            continue;
        };
        if has_chinese(text) && !inside.chinese {
            found.push(format!("not marked as Chinese: {text:?}"));
        }
        match blocks.last_mut() {
            Some(block) if inside.chinese => block.chinese += text,
            Some(block) => block.english += text,
            None if needs_words(text) => found.push(format!("in no block: {text:?}")),
            None => {}
        }
    }
    found
}

/// Are there words in it, and not only figures with their units?
fn needs_words(text: &str) -> bool {
    let words = text.split(|c: char| !c.is_alphabetic());
    words
        .filter(|word| !SIGNS.contains(word))
        .any(|word| word.len() > 1)
}

fn page(made: &Made) -> (Verdict, String) {
    let (history, verdict) = (made.history(), made.judged());
    let page = report::html(&[(&history, &verdict)]);
    (verdict, page)
}

#[track_caller]
fn is_in_both(page: &str) {
    let found = one_sided(page);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
    assert!(page.contains("<html lang=\"en\">"));
}

/// What a check must not let pass, a bug each: the judge's own tests say that each is caught.
fn broken() -> Vec<Made> {
    let publish = |event: &Event| {
        matches!(
            event,
            Event::Publish { op: 40, .. } | Event::End { op: 40, .. }
        )
    };
    let table = |event: &Event| matches!(event, Event::Table { .. });
    let alien = Event::Alien {
        sub: 0,
        offset: 77,
        what: "health_code of entity ff".to_owned(),
    };
    let gave_up = Event::ClientEnded {
        who: "publisher 110000 urgent".to_owned(),
        error: "the broker forgot what it had acknowledged".to_owned(),
    };
    let areas = Event::Areas(AreasCompared {
        lists: 3,
        listed: 0,
        different: 1,
        told: vec![AreaDiffers {
            area: "合肥市".to_owned(),
            listed: Some("high".to_owned()),
            found: None,
        }],
    });
    let row = (ANHUI, Stream::Urgent, 1);
    let with_table = |rows| {
        let cursor = Some(Cursor {
            urgent: 90,
            bulk: 90,
        });
        let sink = "sink".to_owned();
        let table = Event::Table {
            sink,
            cursor,
            rows,
            bad: 3,
        };
        Made::sound().add(11_900_000, table)
    };
    vec![
        Made::sound().without_records(|_, record| record.offset > 188),
        Made::sound().without_records(|_, record| record.offset == 81),
        Made::sound().without_records(|sub, record| sub == 0 && record.offset == 83),
        Made::sound().each_record(|_, record| record.digest ^= u32::from(record.offset == 29)),
        Made::sound().each_record(|_, record| {
            if record.offset == 29 {
                record.runs[0].0 = 1;
            }
        }),
        Made::sound().each_record(|sub, record| {
            record.durable_at += u64::from(sub == 0 && record.offset == 31);
        }),
        Made::sound().each_record(|_, record| record.durable_at -= 5 * record.offset),
        Made::sound().remove(publish),
        Made::sound().remove(table),
        with_table(vec![row]),
        with_table(vec![row, row]),
        Made::sound().add(8_000_000, alien),
        Made::sound().add(8_000_000, gave_up),
        Made::sound().add(12_000_000, areas),
        Made::sound().remove(|event| matches!(event, Event::Audited { .. })),
        Made::sound().remove(|event| matches!(event, Event::Converged)),
        Made::of(&drill("fail_stop = true", "sync-error")),
        Made::of(&drill("refuses_to_start = true", "flipped-byte")),
        Made::of(&drill("", "kill-broker").replace("100MiB", "40MiB")),
        Made::of(&drill("", "pause-broker")),
    ]
}

#[test]
fn a_page_of_whatever_was_found_is_in_both_languages() {
    let mut kinds = BTreeSet::new();
    for made in broken() {
        let (verdict, page) = page(&made);
        assert_eq!(verdict.outcome, Outcome::Fail, "{:?}", verdict.reasons);
        is_in_both(&page);
        let told = verdict
            .findings
            .0
            .values()
            .flat_map(|finding| &finding.told);
        kinds.extend(told.map(|told| told.kind));
    }
    // Half of all there are, so that the page is seen to take them.
    assert!(kinds.len() >= 16, "{kinds:?}");
}

#[test]
fn a_page_that_says_nothing_says_why_in_both_languages() {
    let unproven = |phase: Phase| {
        Made::sound().change(
            |event| {
                matches!(
                    event,
                    Event::Fault {
                        phase: Phase::Undone { .. },
                        ..
                    }
                )
            },
            move |event| {
                *event = Event::Fault {
                    index: 0,
                    phase: phase.clone(),
                }
            },
        )
    };
    let why = Text::quoted("mount: no such device");
    for made in [
        unproven(Phase::Stuck { why: why.clone() }),
        unproven(Phase::Failed { why }),
        unproven(Phase::Undone { proof: Vec::new() }),
        Made::without_fault(),
        Made::sound().remove(|event| matches!(event, Event::Done)),
        Made::sound().remove(|event| matches!(event, Event::End { .. })),
    ] {
        let (verdict, page) = page(&made);
        assert_eq!(verdict.outcome, Outcome::Invalid, "{:?}", verdict.reasons);
        is_in_both(&page);
    }
}

#[test]
fn the_table_of_all_drills_is_in_both_languages() {
    let row = |played| Row {
        name: "kill-broker".to_owned(),
        title: Text::new("The broker is killed", "终止互通"),
        surge: true,
        played,
    };
    let history = Made::sound().history();
    let rows = [
        row(Played::Left(Text::new("needs root", "需要 root"))),
        row(Played::Broken(Text::quoted("the broker was not ready"))),
        row(Played::Judged(
            Box::new(Made::sound().judged()),
            "h.jsonl".into(),
        )),
    ];
    let verdict = Made::sound().judged();
    assert_eq!(verdict.outcome, Outcome::Pass, "{:?}", verdict.reasons);
    is_in_both(&report::html_of_all(&rows, &[(&history, &verdict)]));
}

/// Of what passed, of what was found, and of each command that searches.
#[test]
fn the_page_of_a_search_is_in_both_languages_and_stands_alone() {
    let chaos = program::Chaos::new();
    for (args, code, word) in [
        (["sim", "--seeds", "2", "--no-keep"].as_slice(), 0, "PASS"),
        (
            &["sim", "--seed", "1", "--plant", "byte-flipped"],
            1,
            "FAIL",
        ),
        (
            &["sweep", "--edge", "commit-told", "--operations", "60"],
            0,
            "PASS",
        ),
        (
            &["sweep", "--operations", "60", "--duration", "1ms"],
            0,
            "PASS",
        ),
    ] {
        let output = chaos.run(&[args, &["--report", "page.html"]].concat());
        assert_eq!(program::exit_code(output.status), Some(code), "{output:?}");
        let page = std::fs::read_to_string(chaos.dir().join("page.html")).expect("a page");
        assert!(
            page.contains(&format!("class=\"verdict {word}\"")),
            "{page}"
        );
        is_in_both(&page);
        for elsewhere in ["<script", "<link", "url(", "src=", "http://", "https://"] {
            assert!(!page.contains(elsewhere), "{args:?}: {elsewhere}");
        }
    }
}

/// What each fault is called, and what each drill says of itself.
#[test]
fn drills_and_their_faults_have_chinese_names() {
    for (name, _) in BUILT_IN {
        let drill = hutong_chaos::drill::find(name).expect("built in");
        let labels = drill.faults.iter().map(|fault| fault.what.label().1);
        for text in labels.chain([drill.title_zh.clone(), drill.why_zh.clone()]) {
            assert!(has_chinese(&text), "{name}: {text}");
        }
    }
}

/// What finds what is left out must find it.
#[test]
fn a_label_in_one_language_is_found() {
    let found = |cell: &str| one_sided(&format!("<body><table><tr><td>{cell}</td></tr></table>"));
    let both = "Lag <span class=\"zh\" lang=\"zh-Hans\">延迟</span>";
    assert_eq!(found(both), Vec::<String>::new());
    assert_eq!(found("12.5 ms"), Vec::<String>::new());
    assert_eq!(
        found("<span translate=\"no\">hutong-chaos run</span>"),
        Vec::<String>::new()
    );
    assert_eq!(found("Worst lag").len(), 1);
    assert_eq!(found("Worst lag 最大延迟").len(), 2);
}
