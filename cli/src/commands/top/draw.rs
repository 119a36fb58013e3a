//! One screen of `top`.

use super::model::{Model, View};
use crate::{
    commands::lag::LaneLagShape,
    output::{grouped, seconds_text},
};
use ratatui::{
    Frame,
    layout::{Constraint, Layout},
    style::{Color, Modifier, Style},
    text::{Line, Span, Text},
    widgets::{Cell, Row, Table, TableState},
};

const KEYS: &str =
    " l lag  r rate  f refused  c code | Tab lane  w worst pairs  Enter down  Esc back  q quit";
/// As in `check`.
const WARNING: [f64; 2] = [3.0, 30.0];
const CRITICAL: [f64; 2] = [10.0, 300.0];

/// `colour`: whether it is welcome; a lag that is too long is also bold and marked.
pub fn draw(frame: &mut Frame<'_>, model: &Model, title: &str, colour: bool) {
    let rows = [
        Constraint::Length(3),
        Constraint::Min(3),
        Constraint::Length(1),
    ];
    let [head, body, foot] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(header(model, title, colour), head);
    let mut state = TableState::default().with_selected(model.selected);
    let table = match model.view {
        View::Platforms => platforms(model, colour, frame.area().width),
        View::Pairs | View::Platform(_) => pairs(model, colour),
    };
    frame.render_stateful_widget(table, body, &mut state);
    frame.render_widget(Line::from(KEYS).style(Modifier::DIM), foot);
}

fn header(model: &Model, title: &str, colour: bool) -> Text<'static> {
    let all = model.subscriptions();
    let worst = all
        .iter()
        .max_by(|a, b| a.urgent.seconds.total_cmp(&b.urgent.seconds));
    let second = match (&model.error, worst) {
        (Some(error), _) => Span::styled(format!(" {error}"), style(2, colour)),
        (None, Some(worst)) if worst.urgent.records > 0 => {
            let text = format!(
                " worst: {} has not applied urgent of {} for {} (offset {})",
                model.name(worst.platform),
                model.name(worst.urgent.oldest_issuer),
                seconds_text(worst.urgent.seconds),
                worst.urgent.oldest_offset
            );
            Span::styled(text, style(level(&worst.urgent, 0), colour))
        }
        _ => Span::raw(" nothing urgent is outstanding"),
    };
    let view = match model.view {
        View::Platforms => format!("platforms by {}", model.sort.name()),
        View::Pairs => "worst pairs".to_owned(),
        View::Platform(code) => format!("{} {code}, what it has not applied", model.name(code)),
    };
    let live = all.iter().filter(|l| l.state != "away").count();
    let first = match model.error {
        // What it said last is not how it is.
        Some(_) => format!(" hutong {title} | no answer: what is below is old"),
        None => format!(
            " hutong {title} | {live} of {} subscriptions connected | {} changes/s",
            all.len(),
            grouped(model.rate() as u64),
        ),
    };
    let lane = model
        .lane
        .map_or_else(String::new, |lane| format!(", {lane} lane"));
    Text::from(vec![
        Line::from(first).style(Modifier::BOLD),
        Line::from(second),
        Line::from(format!(" {view}{lane}")).style(Modifier::DIM),
    ])
}

/// 0 well, 1 warning, 2 critical.
fn level(lag: &LaneLagShape, lane: usize) -> usize {
    match lag.seconds {
        s if s >= CRITICAL[lane] => 2,
        s if s >= WARNING[lane] => 1,
        _ => 0,
    }
}

fn style(level: usize, colour: bool) -> Style {
    let (paint, modifier) = match level {
        2 => (Color::Red, Modifier::BOLD | Modifier::REVERSED),
        1 => (Color::Yellow, Modifier::BOLD),
        _ => return Style::default(),
    };
    let style = Style::default().add_modifier(modifier);
    if colour { style.fg(paint) } else { style }
}

fn lag_cell(lag: &LaneLagShape, lane: usize, colour: bool) -> Cell<'static> {
    let level = level(lag, lane);
    let mark = ["", "! ", "!! "][level];
    let text = match lag.records {
        0 => ".".to_owned(),
        _ => format!("{mark}{}", seconds_text(lag.seconds)),
    };
    Cell::from(Line::from(text).right_aligned()).style(style(level, colour))
}

fn number(n: u64) -> Cell<'static> {
    Cell::from(Line::from(grouped(n)).right_aligned())
}

fn head(titles: &[&'static str]) -> Row<'static> {
    let cell = |title: &&'static str| match title.strip_prefix('>') {
        Some(title) => Cell::from(Line::from(title).right_aligned()),
        None => Cell::from(*title),
    };
    Row::new(titles.iter().map(cell)).style(Modifier::UNDERLINED)
}

/// Columns of the platforms: title, width, and from which width of the screen on it is there. A number that is
/// cut is a wrong one, so what matters least goes first.
const PLATFORMS: [(&str, u16, u16); 9] = [
    (" platform", 20, 0),
    ("state", 9, 0),
    (">urgent", 12, 0),
    (">records", 9, 78),
    (">bulk", 12, 0),
    (">records", 9, 78),
    (">in/s", 9, 88),
    (">refused", 9, 98),
    (">producers", 9, 108),
];

fn platforms(model: &Model, colour: bool, width: u16) -> Table<'static> {
    let shown = || PLATFORMS.map(|(_, _, from)| width >= from).into_iter();
    let rows = model.platforms().into_iter().map(|p| {
        let cells = [
            Cell::from(format!(" {} {}", p.code, p.name)),
            Cell::from(p.state),
            lag_cell(&p.urgent, 0, colour),
            number(p.urgent.records),
            lag_cell(&p.bulk, 1, colour),
            number(p.bulk.records),
            number(p.rate as u64),
            number(p.refused),
            number(u64::from(p.producers)),
        ];
        Row::new(
            cells
                .into_iter()
                .zip(shown())
                .filter_map(|(cell, on)| on.then_some(cell)),
        )
    });
    let columns: Vec<_> = PLATFORMS
        .into_iter()
        .filter(|(_, _, from)| width >= *from)
        .collect();
    let widths: Vec<Constraint> = columns
        .iter()
        .enumerate()
        .map(|(i, (_, width, _))| match i {
            0 => Constraint::Fill(1),
            _ => Constraint::Length(*width),
        })
        .collect();
    let titles: Vec<&'static str> = columns.iter().map(|(title, _, _)| *title).collect();
    table(rows, &widths, &titles)
}

fn pairs(model: &Model, colour: bool) -> Table<'static> {
    let several = model.with_several_subscriptions();
    let rows: Vec<Row<'static>> = model
        .pairs()
        .into_iter()
        .map(|p| {
            let whose = match several.contains(&p.receiver) {
                true => format!(" {} {}", p.subscription, p.receiver),
                false => format!(" {} {}", p.receiver, model.name(p.receiver)),
            };
            let oldest = match (p.urgent.records, p.bulk.records) {
                (0, _) => p.bulk.oldest_offset,
                _ => p.urgent.oldest_offset,
            };
            Row::new([
                Cell::from(whose),
                Cell::from(format!("{} {}", p.issuer, model.name(p.issuer))),
                lag_cell(&p.urgent, 0, colour),
                number(p.urgent.records),
                lag_cell(&p.bulk, 1, colour),
                number(p.bulk.records),
                Cell::from(Line::from(oldest.to_string()).right_aligned()),
            ])
        })
        .collect();
    let widths = [
        Constraint::Min(20),
        Constraint::Min(20),
        Constraint::Length(12),
        Constraint::Length(9),
        Constraint::Length(12),
        Constraint::Length(9),
        Constraint::Length(12),
    ];
    let titles = [
        " receives",
        "issues",
        ">urgent",
        ">records",
        ">bulk",
        ">records",
        ">oldest",
    ];
    table(rows, &widths, &titles)
}

fn table(
    rows: impl IntoIterator<Item = Row<'static>>,
    widths: &[Constraint],
    titles: &[&'static str],
) -> Table<'static> {
    Table::new(rows, widths)
        .header(head(titles))
        .row_highlight_style(Style::default().add_modifier(Modifier::REVERSED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::{
        lag::{LagShape, PairShape},
        top::model::{Key, tests::answers},
    };
    use ratatui::{Terminal, backend::TestBackend};

    fn screen(model: &Model) -> String {
        screen_of(model, 120)
    }

    fn screen_of(model: &Model, width: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, 12)).expect("a screen");
        terminal
            .draw(|frame| draw(frame, model, "http://here", false))
            .expect("drawn");
        let buffer = terminal.backend().buffer();
        let line = |y: u16| {
            (0..width)
                .map(|x| buffer[(x, y)].symbol())
                .collect::<String>()
        };
        (0..12)
            .map(|y| line(y).trim_end().to_owned() + "\n")
            .collect()
    }

    #[test]
    fn on_a_narrow_screen_columns_go_and_no_number_is_cut() {
        let mut model = Model::default();
        model.answered(answers(1), None);
        for width in [60, 70, 80, 90, 100, 110, 140] {
            let text = screen_of(&model, width);
            let lines: Vec<&str> = text.lines().collect();
            assert!(lines[4].contains("!! 11.0 h"), "{width}: {text}");
            assert!(lines[5].contains("! 60.0 s"), "{width}: {text}");
            assert!(lines[4].contains("510000 S"), "{width}: {text}");
            for (title, _, from) in PLATFORMS {
                let title = title.trim_start_matches('>').trim();
                let there = lines[3].contains(title);
                assert!(there || width < from, "{width}: {title} in {text}");
            }
        }
    }

    #[test]
    fn two_subscriptions_of_a_platform_are_told_apart() {
        let mut model = Model::default();
        let mut two = answers(1);
        let subscription = || "second".to_owned();
        two.lags.push(LagShape {
            subscription: subscription(),
            ..two.lags[0].clone()
        });
        two.pairs.push(PairShape {
            subscription: subscription(),
            ..two.pairs[0].clone()
        });
        model.answered(two, None);
        model.key(Key::Char('w'));
        let text = screen(&model);
        assert!(
            text.contains(" main 310000") && text.contains(" second 310000"),
            "{text}"
        );
        assert!(text.contains(" 510000 Sichuan"), "{text}");
    }

    #[test]
    fn the_worst_stands_in_the_second_line_and_first_in_the_list() {
        let mut model = Model::default();
        model.answered(answers(1), None);
        let text = screen(&model);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].contains("1 of 2 subscriptions connected"),
            "{text}"
        );
        assert!(
            lines[1].contains("Sichuan has not applied urgent of Anhui for 11.0 h (offset 17)"),
            "{text}"
        );
        assert!(
            lines[4].contains("510000 Sichuan") && lines[4].contains("!! 11.0 h"),
            "{text}"
        );
        assert!(
            lines[5].contains("310000 Shanghai") && lines[5].contains("! 60.0 s"),
            "{text}"
        );
        model.key(Key::Enter);
        let text = screen(&model);
        assert!(
            text.contains("Sichuan 510000, what it has not applied"),
            "{text}"
        );
        assert!(text.contains("340000 Anhui"), "{text}");
    }
}
