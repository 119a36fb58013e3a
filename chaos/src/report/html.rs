//! The page that one shows around: all of it in English and in Chinese beside it, without a script, a font or
//! anything else from elsewhere, and readable in print. Its language is English; what is Chinese says so, and
//! what has no translation (names, commands, files) as well.

use crate::{
    commands::all::{Played, Row},
    drill::{BUILT_IN, Loading},
    history::History,
    judge::{Invariant, Outcome, Verdict},
    report::{
        counts,
        plot::timeline,
        put, recovery,
        words::{both, date, escape, said, verbatim},
    },
    text::Text,
};
use std::fmt::Write;

const STYLE: &str = "\
body{font:15px/1.5 'Noto Sans','Noto Sans CJK SC','PingFang SC','Microsoft YaHei',system-ui,sans-serif;\
color:#1b1f24;max-width:1060px;margin:2em auto;padding:0 1em}\
h1{font-size:1.7em;margin:.2em 0}h2{font-size:1.15em;margin:1.6em 0 .5em;border-bottom:1px solid #c9ced6}\
h1 span,h2 span{color:#59636e;font-weight:400;margin-left:.6em}\
.verdict{font-size:1.3em;font-weight:700;padding:.5em .8em;border-left:10px solid;margin:1em 0;background:#f6f8fa}\
.PASS{border-color:#2a7d3f}.FAIL{border-color:#b3261e}.INVALID{border-color:#b98200}\
.verdict p{margin:0}.verdict ul{font-size:.68em;font-weight:400;margin:.4em 0 0;padding-left:1.2em}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.3em .7em .3em 0;\
border-bottom:1px solid #e3e6ea}th{font-weight:600;color:#59636e}td.n{text-align:right;white-space:nowrap}\
.zh,.left{color:#59636e}td p{margin:0}.ok{color:#2a7d3f;font-weight:700}.no{color:#b3261e;font-weight:700}\
pre{background:#f6f8fa;padding:.8em;overflow-x:auto;font-size:12px;white-space:pre-wrap}\
svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:#3b434d}svg .title{font-weight:600}\
svg .mark{font-weight:700;font-size:13px}svg .grid{stroke:#d0d5dc;stroke-width:.6}\
svg .bound{stroke:#b3261e;stroke-width:1;stroke-dasharray:6 4}\
section{break-before:auto}section+section{break-before:page;border-top:4px solid #1b1f24;margin-top:3em;padding-top:1em}\
@media print{body{margin:0;max-width:none;font-size:11px}pre{white-space:pre-wrap}h2{break-after:avoid}\
tr,svg,.verdict{break-inside:avoid}*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}";

/// One drill a section.
pub fn html(drills: &[(&History, &Verdict)]) -> String {
    let title = match drills {
        [(history, _)] => format!("{} {}", history.drill.title, history.drill.title_zh),
        _ => format!("{} {}", ALL.0, ALL.1),
    };
    page(&title, &sections(drills))
}

/// A table of all, and then a section for each that has one.
pub fn html_of_all(rows: &[Row], drills: &[(&History, &Verdict)]) -> String {
    let title = format!("{} {}", ALL.0, ALL.1);
    page(&title, &(overview(rows) + &sections(drills)))
}

const ALL: (&str, &str) = ("Chaos drills", "故障演练");

pub(super) fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{}</title>\n\
         <style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n",
        escape(title)
    )
}

fn sections(drills: &[(&History, &Verdict)]) -> String {
    let drills = drills.iter().enumerate();
    drills
        .map(|(i, (history, verdict))| section(i, history, verdict))
        .collect()
}

pub(super) fn heading(level: u8, en: &str, zh: &str) -> String {
    format!("<h{level}>{}</h{level}>\n", both(en, zh))
}

/// The beginning of a table: a title above each column, or none.
pub(super) fn table(columns: &[(&str, &str)]) -> String {
    let mut out = String::from("<table><tr>");
    for (en, zh) in columns {
        let title = match zh.is_empty() {
            true => escape(en),
            false => both(en, zh),
        };
        put!(out, "<th>{title}</th>");
    }
    out + "</tr>\n"
}

fn overview(rows: &[Row]) -> String {
    let mut out = format!("<section>{}", heading(1, ALL.0, ALL.1));
    out += &table(&[
        ("Drill", "演练"),
        ("Load", "负载"),
        ("Verdict", "结论"),
        ("Recovery, s", "恢复，s"),
        ("Worst urgent lag, s", "最大紧急延迟，s"),
        ("Acknowledged", "已确认"),
    ]);
    for row in rows {
        let load = match row.surge {
            true => both("surge", "高峰"),
            false => both("quiet", "平稳"),
        };
        let (class, word) = match row.played.outcome() {
            Some(outcome) => (mark(outcome == Outcome::Pass).0, outcome.text()),
            None => ("left", Text::new("not played", "未演练")),
        };
        put!(
            out,
            "<tr><td>{}</td><td>{load}</td><td class=\"{class}\">{}</td>",
            said(&row.title),
            both(&word.en, &word.zh)
        );
        match &row.played {
            Played::Judged(verdict, _) => put!(
                out,
                "<td class=\"n\">{}</td><td class=\"n\">{:.2}</td><td class=\"n\">{}</td></tr>",
                recovery(verdict).map_or("-".to_owned(), |s| format!("{s:.1}")),
                verdict.totals.worst_urgent_lag_s,
                verdict.totals.acknowledged,
            ),
            Played::Left(why) | Played::Broken(why) => {
                put!(out, "<td colspan=\"3\">{}</td></tr>", said(why));
            }
        }
    }
    put!(out, "</table><p>{}</p></section>", said(&counts(rows)));
    out
}

/// Class and sign.
pub(super) fn mark(good: bool) -> (&'static str, &'static str) {
    if good { ("ok", "✓") } else { ("no", "✗") }
}

fn section(number: usize, history: &History, verdict: &Verdict) -> String {
    let drill = &history.drill;
    let mut out = format!(
        "<section id=\"drill-{}\">{}<p>{}</p>\n",
        number + 1,
        heading(1, &drill.title, &drill.title_zh),
        said(&Text::new(&drill.why, &drill.why_zh))
    );
    out += &banner(verdict);
    out += &heading(2, "What was broken, and when", "何时破坏了什么");
    out += &timeline(history, verdict);
    out += &faults(verdict);
    out += &promises(verdict);
    out += &invariants(verdict);
    out += &proof(verdict);
    out += &totals(verdict);
    out += &setting(history, verdict);
    out + "</section>\n"
}

fn banner(verdict: &Verdict) -> String {
    let (en, zh) = match verdict.outcome {
        Outcome::Pass => (
            "every promise held while this was broken",
            "故障期间所有承诺均得到遵守",
        ),
        Outcome::Fail => ("a promise was broken", "承诺被违反"),
        Outcome::Invalid => ("this says nothing", "本次演练不能得出结论"),
    };
    let reasons: Vec<_> = verdict.reasons.iter().map(|reason| reason.text()).collect();
    verdict_box(verdict.outcome, (en, zh), &reasons)
}

/// The word that one looks for first, what it means here, and why.
pub(super) fn verdict_box(outcome: Outcome, (en, zh): (&str, &str), reasons: &[Text]) -> String {
    let word = outcome.text();
    let mut out = format!(
        "<div class=\"verdict {}\"><p>{}</p>",
        word.en,
        both(&format!("{}: {en}", word.en), &format!("{}：{zh}", word.zh))
    );
    if !reasons.is_empty() {
        out += "<ul>";
        for reason in reasons {
            put!(out, "<li>{}</li>", said(reason));
        }
        out += "</ul>";
    }
    out + "</div>\n"
}

fn seconds(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |s| format!("{s:.1} s"))
}

fn faults(verdict: &Verdict) -> String {
    let mut out = table(&[
        ("#", ""),
        ("Fault", "故障"),
        ("From", "开始"),
        ("Undone", "解除"),
        ("Steady again after", "恢复稳态用时"),
    ]);
    for (i, fault) in verdict.faults.iter().enumerate() {
        put!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            i + 1,
            said(&fault.label),
            seconds(fault.begin_s),
            seconds(fault.healing_s),
            seconds(fault.recovery_s)
        );
    }
    out + "</table>\n"
}

fn promises(verdict: &Verdict) -> String {
    let mut out = heading(2, "What was promised, and what was seen", "承诺与实测");
    out += &table(&[
        ("", ""),
        ("Promise", "承诺"),
        ("Bound", "上限"),
        ("Seen", "实测"),
    ]);
    for promise in &verdict.promises {
        let (class, sign) = mark(promise.kept);
        put!(
            out,
            "<tr><td class=\"{class}\">{sign}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            said(&promise.what),
            said(&promise.bound),
            said(&promise.seen)
        );
    }
    out + "</table>\n"
}

fn invariants(verdict: &Verdict) -> String {
    let mut out = heading(2, "What must hold whatever happens", "任何情况下必须成立");
    out += &table(&[
        ("", ""),
        ("", ""),
        ("Invariant", "不变量"),
        ("Checks", "检查次数"),
        ("Violations", "违反"),
    ]);
    for invariant in Invariant::ALL {
        let finding = verdict.findings.0.get(&invariant);
        let (checked, violations) = finding.map_or((0, 0), |f| (f.checked, f.violations));
        let (class, sign) = match (checked, violations) {
            (0, 0) => ("left", "–"),
            (_, 0) => mark(true),
            (..) => mark(false),
        };
        let number = verbatim(&format!("INV-{}", invariant.number()));
        put!(
            out,
            "<tr><td class=\"{class}\">{sign}</td><td>{number}</td><td><p>{}</p>",
            said(&invariant.text())
        );
        for told in finding.iter().flat_map(|f| &f.told) {
            put!(out, "<p class=\"no\">{}</p>", said(&told.text()));
        }
        put!(
            out,
            "</td><td class=\"n\">{checked}</td><td class=\"n\">{violations}</td></tr>"
        );
    }
    out + "</table>\n"
}

fn proof(verdict: &Verdict) -> String {
    let mut out = heading(2, "Proof that it was broken", "故障确已发生的证据");
    out += &table(&[("", ""), ("#", ""), ("Measured", "测量"), ("Seen", "所见")]);
    for (i, fault) in verdict.faults.iter().enumerate() {
        for proof in &fault.proof {
            let (class, sign) = mark(proof.holds);
            put!(
                out,
                "<tr><td class=\"{class}\">{sign}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                i + 1,
                said(&Text::new(&proof.what, &proof.what_zh)),
                said(&proof.seen)
            );
        }
        if fault.proof.is_empty() {
            let not_undone = Text::new("it was not undone", "未能解除");
            put!(
                out,
                "<tr><td class=\"no\">✗</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                i + 1,
                both("no proof", "无证据"),
                said(fault.failed.as_ref().unwrap_or(&not_undone))
            );
        }
    }
    out + "</table>\n"
}

fn totals(verdict: &Verdict) -> String {
    let t = &verdict.totals;
    let rows = [
        ("Deltas published", "发布的变更", t.published.to_string()),
        ("Acknowledged", "已确认", t.acknowledged.to_string()),
        (
            "Refused, with a reason",
            "被拒绝（有原因）",
            t.refused.to_string(),
        ),
        ("Without an answer", "无应答", t.unknown.to_string()),
        (
            "Poison batches refused",
            "被拒绝的有毒批次",
            t.poison_refused.to_string(),
        ),
        (
            "Delivered, over all subscribers",
            "投递总数",
            t.delivered.to_string(),
        ),
        (
            "Batches sent again and not applied twice",
            "重发且未重复应用的批次",
            t.duplicates.to_string(),
        ),
        (
            "Reconnects of subscribers",
            "订阅方重连次数",
            t.reconnects.to_string(),
        ),
        (
            "Starts of the broker",
            "互通启动次数",
            t.broker_starts.to_string(),
        ),
        (
            "Worst urgent lag",
            "最大紧急延迟",
            format!("{:.2} s", t.worst_urgent_lag_s),
        ),
        (
            "Worst bulk lag",
            "最大批量延迟",
            format!("{:.2} s", t.worst_bulk_lag_s),
        ),
        (
            "Memory at its peak",
            "内存峰值",
            format!("{:.0} MB", t.memory_peak_mb),
        ),
        (
            "Tables of the sink compared",
            "比对的下游表快照数",
            t.tables_compared.to_string(),
        ),
    ];
    let mut out = heading(2, "In numbers", "数字") + "<table>\n";
    for (en, zh, value) in rows {
        put!(
            out,
            "<tr><td>{}</td><td class=\"n\">{value}</td></tr>",
            both(en, zh)
        );
    }
    out + "</table>\n"
}

/// What was typed, and what has to be said beside it.
fn command(history: &History, verdict: &Verdict) -> String {
    let header = &history.header;
    // What is built in has its name; any other drill stands below, and is played from a file.
    let named = BUILT_IN.iter().any(|(name, _)| *name == verdict.drill);
    let file = if named { "" } else { ".toml" };
    let mut command = format!(
        "hutong-chaos run {}{file} --seed {}",
        verdict.drill, header.seed
    );
    if let Some(us) = header.duration_us {
        write!(command, " --duration {us}us").expect("a text takes all");
    }
    if let Some(rate) = header.rate {
        write!(command, " --rate {rate}").expect("a text takes all");
    }
    if let Some(plant) = &header.plant {
        write!(command, " --plant {plant}").expect("a text takes all");
    }
    if let Some(edge) = &header.edge {
        write!(command, " --edge {edge}").expect("a text takes all");
    }
    if let Some(nth) = header.nth {
        write!(command, " --nth {nth}").expect("a text takes all");
    }
    let trial = [
        ("--trial", &header.trial_at),
        ("--marker", &header.trial),
        ("--kill-with", &header.kill_with),
    ];
    for (option, value) in trial {
        if let Some(value) = value {
            write!(command, " {option} {}", for_a_shell(value)).expect("a text takes all");
        }
    }
    let mut out = verbatim(&command);
    if let Some(load) = header.load {
        let word = match load {
            Loading::Quiet => "quiet",
            Loading::Surge => "surge",
        };
        let beside = Text::new(
            format!("with the load of `all --load {word}`"),
            format!("采用 `all --load {word}` 的负载"),
        );
        put!(out, "<br>{}", said(&beside));
    }
    if !named {
        let beside = Text::new(
            "with the drill below in that file",
            "先将下方演练内容存为该文件",
        );
        put!(out, "<br>{}", said(&beside));
    }
    out
}

/// One word of a command line.
fn for_a_shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/[]".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

fn setting(history: &History, verdict: &Verdict) -> String {
    let header = &history.header;
    let mut out = heading(2, "How to do it again", "如何重现") + "<table>\n";
    let mut row = |en, zh, value: String| {
        put!(out, "<tr><td>{}</td><td>{value}</td></tr>", both(en, zh));
    };
    row("Command", "命令", command(history, verdict));
    row("Date", "日期", verbatim(&date(header.wall_us)));
    row("Commit", "提交", verbatim(&header.commit));
    row("Machine", "机器", verbatim(&header.machine));
    if let Some(plant) = &header.plant {
        row("Bug planted on purpose", "故意植入的缺陷", verbatim(plant));
    }
    out += "</table>\n";
    out += &heading(2, "Drill", "演练文件");
    put!(
        out,
        "<pre translate=\"no\">{}</pre>",
        escape(header.drill.trim())
    );
    out += &heading(2, "Configuration of the broker", "互通配置");
    // What stands in the history was never given to a broker that ran already.
    match &header.trial {
        None => put!(
            out,
            "<pre translate=\"no\">{}</pre>",
            escape(header.broker.trim())
        ),
        Some(_) => {
            let elsewhere = Text::new(
                "not known: the broker ran before the drill, with a file of its own",
                "未知：互通在演练之前已在运行，使用其自身的配置文件",
            );
            put!(out, "<p>{}</p>", said(&elsewhere));
        }
    }
    out
}
