//! The page of a simulation or a sweep. Such a search has no history and no hour of the day: what it shows is how
//! much was tried, what must hold in all of it, and how each failure is seen again.

use crate::{
    clock::Clock,
    judge::{Invariant, Outcome},
    play::{commit, description},
    report::{
        html::{heading, mark, page, table, verdict_box},
        put,
        words::{both, date, said, verbatim},
    },
    text::Text,
};
use std::fmt::Write;

/// What a search says of itself.
#[derive(Clone, Debug)]
pub struct Searched {
    pub title: Text,
    /// What a pass tells.
    pub why: Text,
    /// What was asked for and not done.
    pub left: Option<Text>,
    /// What it looks at.
    pub invariants: Vec<Invariant>,
    /// As they were found, each with the line that repeats it where there is one.
    pub failures: Vec<String>,
    pub numbers: Vec<(Text, String)>,
    /// More numbers, each row as long as the columns.
    pub more: Option<More>,
    pub command: String,
    pub plant: Option<String>,
}

#[derive(Clone, Debug)]
pub struct More {
    pub title: Text,
    pub columns: Vec<Text>,
    pub rows: Vec<Vec<String>>,
}

/// Why a search ended before it had done all, if it did.
pub fn ended_early((interrupted, out_of_time): (bool, bool), done: &Text) -> Option<Text> {
    let (en, zh) = match (interrupted, out_of_time) {
        (true, _) => ("interrupted", "被中断"),
        (false, true) => ("the time was over", "时间用尽"),
        (false, false) => return None,
    };
    Some(Text::new(
        format!("{en} after {}", done.en),
        format!("{zh}：{}", done.zh),
    ))
}

/// `began` is its clock.
pub fn html_of_search(searched: &Searched, began: Clock) -> String {
    let Text { en, zh } = &searched.title;
    let mut body = format!(
        "<section>{}<p>{}</p>\n",
        heading(1, en, zh),
        said(&searched.why)
    );
    body += &banner(searched);
    body += &invariants(searched);
    body += &failures(searched);
    body += &numbers(searched);
    if let Some(more) = &searched.more {
        body += &more_numbers(more);
    }
    body += &setting(searched, began);
    page(&format!("{en} {zh}"), &(body + "</section>\n"))
}

fn banner(searched: &Searched) -> String {
    let mut reasons: Vec<_> = searched.left.iter().cloned().collect();
    if let Some(plant) = &searched.plant {
        reasons.push(Text::new(
            format!("the bug {plant} was planted, to see it found"),
            format!("植入了缺陷 {plant}，以检验能否发现"),
        ));
    }
    match searched.failures.is_empty() {
        true if searched.plant.is_some() => verdict_box(
            Outcome::Invalid,
            (
                "the planted bug was not caught: this says nothing about the broker",
                "未发现植入的缺陷：这不能说明互通的情况",
            ),
            &reasons,
        ),
        true => verdict_box(
            Outcome::Pass,
            (
                "no promise was broken in all that was tried",
                "所有尝试中没有承诺被违反",
            ),
            &reasons,
        ),
        false => verdict_box(
            Outcome::Fail,
            ("a promise was broken", "承诺被违反"),
            &reasons,
        ),
    }
}

/// It is not counted how often each was looked at, but which of them a failure names.
fn invariants(searched: &Searched) -> String {
    let mut out = heading(2, "What must hold whatever happens", "任何情况下必须成立");
    out += &table(&[("", ""), ("", ""), ("Invariant", "不变量")]);
    for invariant in &searched.invariants {
        let name = format!("INV-{}", invariant.number());
        let found = |failure: &String| failure.contains(&format!("{name}: "));
        let (class, sign) = mark(!searched.failures.iter().any(found));
        put!(
            out,
            "<tr><td class=\"{class}\">{sign}</td><td>{}</td><td>{}</td></tr>",
            verbatim(&name),
            said(&invariant.text())
        );
    }
    out + "</table>\n"
}

fn failures(searched: &Searched) -> String {
    if searched.failures.is_empty() {
        return String::new();
    }
    let mut out = heading(2, "What was found", "发现的问题") + "<ul>\n";
    for failure in &searched.failures {
        put!(out, "<li class=\"no\">{}</li>", verbatim(failure));
    }
    out + "</ul>\n"
}

fn numbers(searched: &Searched) -> String {
    let mut out = heading(2, "In numbers", "数字") + "<table>\n";
    for (what, value) in &searched.numbers {
        put!(
            out,
            "<tr><td>{}</td><td class=\"n\">{}</td></tr>",
            both(&what.en, &what.zh),
            verbatim(value)
        );
    }
    out + "</table>\n"
}

fn more_numbers(more: &More) -> String {
    let mut out = heading(2, &more.title.en, &more.title.zh);
    let columns: Vec<_> = (more.columns.iter())
        .map(|title| (&*title.en, &*title.zh))
        .collect();
    out += &table(&columns);
    for row in &more.rows {
        let cells = row
            .iter()
            .map(|cell| format!("<td>{}</td>", verbatim(cell)));
        put!(out, "<tr>{}</tr>", cells.collect::<String>());
    }
    out + "</table>\n"
}

fn setting(searched: &Searched, began: Clock) -> String {
    let mut out = heading(2, "How to do it again", "如何重现") + "<table>\n";
    let mut row = |en, zh, value: &str| {
        put!(
            out,
            "<tr><td>{}</td><td>{}</td></tr>",
            both(en, zh),
            verbatim(value)
        );
    };
    row("Command", "命令", &searched.command);
    row("Date", "日期", &date(began.wall_us()));
    row("Commit", "提交", &commit());
    row("Machine", "机器", &description());
    if let Some(plant) = &searched.plant {
        row("Bug planted on purpose", "故意植入的缺陷", plant);
    }
    out + "</table>\n"
}
