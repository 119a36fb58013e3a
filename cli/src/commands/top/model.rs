//! What `top` shows and how keys change that: no terminal, no broker.

use crate::commands::{
    lag::{LagShape, LaneLagShape, PairShape, seconds_of},
    platforms::PlatformShape,
};
use hutong_proto::Lane;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// What the broker said at one moment.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    pub platforms: Vec<PlatformShape>,
    pub lags: Vec<LagShape>,
    pub pairs: Vec<PairShape>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    Lag,
    Rate,
    Refused,
    Code,
}

impl Sort {
    pub fn name(self) -> &'static str {
        match self {
            Sort::Lag => "lag",
            Sort::Rate => "rate",
            Sort::Refused => "refused",
            Sort::Code => "code",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Platforms,
    /// The pairs with the longest lag, of all receivers.
    Pairs,
    /// What one platform has not applied, by issuer.
    Platform(u32),
}

/// What a key means; the terminal's own names for keys stay outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Char(char),
    Up,
    Down,
    Enter,
    Back,
    NextLane,
}

/// A line of the list of platforms.
#[derive(Clone, Debug)]
pub struct PlatformRow {
    pub code: u32,
    pub name: String,
    /// The worst of its subscriptions; `-` when it has none.
    pub state: &'static str,
    pub urgent: LaneLagShape,
    pub bulk: LaneLagShape,
    /// Deltas accepted a second.
    pub rate: f64,
    pub refused: u64,
    pub producers: u32,
}

#[derive(Debug)]
pub struct Model {
    answers: Answers,
    /// By platform: deltas a second between the last two answers.
    rates: BTreeMap<u32, f64>,
    pub sort: Sort,
    pub view: View,
    /// Only this lane counts for sorting; `None`: both.
    pub lane: Option<Lane>,
    pub selected: usize,
    /// Why the last question had no answer.
    pub error: Option<String>,
    pub quit: bool,
}

impl Default for Model {
    fn default() -> Model {
        Model {
            answers: Answers::default(),
            rates: BTreeMap::new(),
            sort: Sort::Lag,
            view: View::Platforms,
            lane: None,
            selected: 0,
            error: None,
            quit: false,
        }
    }
}

impl Model {
    /// `since`: since the answers before.
    pub fn answered(&mut self, answers: Answers, since: Option<Duration>) {
        if let Some(since) = since {
            let before = |code| self.answers.platforms.iter().find(|p| p.code == code);
            let rate = |p: &PlatformShape| {
                let before = before(p.code).map_or(p.deltas_accepted, |b| b.deltas_accepted);
                let more = p.deltas_accepted.saturating_sub(before);
                (p.code, more as f64 / since.as_secs_f64().max(1e-3))
            };
            self.rates = answers.platforms.iter().map(rate).collect();
        }
        self.answers = answers;
        self.error = None;
    }

    pub fn key(&mut self, key: Key) {
        let last = self.rows().saturating_sub(1);
        match key {
            Key::Char('q') => self.quit = true,
            Key::Back if self.view == View::Platforms => self.quit = true,
            Key::Back => self.show(View::Platforms),
            Key::Char('w') => self.show(View::Pairs),
            Key::Char('p') => self.show(View::Platforms),
            Key::Char('l') => self.sort = Sort::Lag,
            Key::Char('r') => self.sort = Sort::Rate,
            Key::Char('f') => self.sort = Sort::Refused,
            Key::Char('c') => self.sort = Sort::Code,
            Key::Up | Key::Char('k') => self.selected = self.selected.saturating_sub(1),
            Key::Down | Key::Char('j') => self.selected = (self.selected + 1).min(last),
            Key::Enter => self.enter(),
            Key::NextLane => {
                self.lane = match self.lane {
                    None => Some(Lane::Urgent),
                    Some(Lane::Urgent) => Some(Lane::Bulk),
                    Some(_) => None,
                };
            }
            Key::Char(_) => {}
        }
    }

    fn show(&mut self, view: View) {
        self.view = view;
        self.selected = 0;
    }

    fn enter(&mut self) {
        let chosen = match self.view {
            View::Platforms => self.platforms().get(self.selected).map(|row| row.code),
            View::Pairs => self.pairs().get(self.selected).map(|pair| pair.receiver),
            View::Platform(_) => None,
        };
        if let Some(code) = chosen {
            self.show(View::Platform(code));
        }
    }

    fn rows(&self) -> usize {
        match self.view {
            View::Platforms => self.answers.platforms.len(),
            View::Pairs | View::Platform(_) => self.pairs().len(),
        }
    }

    pub fn name(&self, code: u32) -> String {
        let known = self.answers.platforms.iter().find(|p| p.code == code);
        known.map_or_else(|| code.to_string(), |p| p.name.clone())
    }

    pub fn subscriptions(&self) -> &[LagShape] {
        &self.answers.lags
    }

    /// Platforms of which a line must say which subscription it is about.
    pub fn with_several_subscriptions(&self) -> BTreeSet<u32> {
        let mut seen = BTreeSet::new();
        let again = |lag: &&LagShape| !seen.insert(lag.platform);
        let lags = self.answers.lags.iter();
        lags.filter(again).map(|lag| lag.platform).collect()
    }

    pub fn rate(&self) -> f64 {
        self.rates.values().sum()
    }

    /// In the order that was asked for; those that are equal, by code.
    pub fn platforms(&self) -> Vec<PlatformRow> {
        let mut rows: Vec<PlatformRow> =
            self.answers.platforms.iter().map(|p| self.row(p)).collect();
        let lag = |row: &PlatformRow| seconds_of(self.lane, &row.urgent, &row.bulk);
        rows.sort_by(|a, b| {
            match self.sort {
                Sort::Lag => lag(b).total_cmp(&lag(a)),
                Sort::Rate => b.rate.total_cmp(&a.rate),
                Sort::Refused => b.refused.cmp(&a.refused),
                Sort::Code => std::cmp::Ordering::Equal,
            }
            .then(a.code.cmp(&b.code))
        });
        rows
    }

    fn row(&self, p: &PlatformShape) -> PlatformRow {
        let own = || self.answers.lags.iter().filter(|l| l.platform == p.code);
        let worst = |of: fn(&LagShape) -> LaneLagShape| {
            own().map(of).max_by(|a, b| a.seconds.total_cmp(&b.seconds))
        };
        // What needs somebody comes first.
        let states = ["compacted", "away", "snapshot", "live"];
        PlatformRow {
            code: p.code,
            name: p.name.clone(),
            state: states
                .into_iter()
                .find(|state| own().any(|l| l.state == *state))
                .unwrap_or("-"),
            urgent: worst(|l| l.urgent).unwrap_or_default(),
            bulk: worst(|l| l.bulk).unwrap_or_default(),
            rate: self.rates.get(&p.code).copied().unwrap_or(0.0),
            refused: p.deltas_refused,
            producers: p.producers_connected,
        }
    }

    /// Of the view, those with something outstanding, the longest lag first.
    pub fn pairs(&self) -> Vec<&PairShape> {
        let lag = |pair: &PairShape| seconds_of(self.lane, &pair.urgent, &pair.bulk);
        let shown = |pair: &&PairShape| match self.view {
            View::Platform(code) => pair.receiver == code,
            View::Platforms | View::Pairs => true,
        };
        let mut pairs: Vec<&PairShape> = self
            .answers
            .pairs
            .iter()
            .filter(shown)
            .filter(|pair| pair.urgent.records + pair.bulk.records > 0)
            .collect();
        pairs.sort_by(|a, b| lag(b).total_cmp(&lag(a)));
        pairs
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn lane(seconds: f64) -> LaneLagShape {
        LaneLagShape {
            records: u64::from(seconds > 0.0) * 3,
            seconds,
            oldest_at_us: 1,
            oldest_offset: 17,
            oldest_issuer: 340_000,
        }
    }

    pub fn answers(accepted: u64) -> Answers {
        let platform = |code, name: &str, accepted, refused| PlatformShape {
            code,
            name: name.to_owned(),
            name_zh: name.to_owned(),
            shards: 1,
            producers_connected: 1,
            subscriptions_connected: 1,
            last_record_at_us: 1,
            deltas_accepted: accepted,
            deltas_refused: refused,
        };
        let lag = |platform, state, urgent, bulk| LagShape {
            platform,
            subscription: "main".to_owned(),
            state,
            urgent: lane(urgent),
            bulk: lane(bulk),
        };
        let pair = |receiver, urgent, bulk| PairShape {
            issuer: 340_000,
            receiver,
            subscription: "main".to_owned(),
            urgent: lane(urgent),
            bulk: lane(bulk),
        };
        Answers {
            platforms: vec![
                platform(310_000, "Shanghai", 0, 9),
                platform(340_000, "Anhui", accepted, 0),
                platform(510_000, "Sichuan", 0, 0),
            ],
            lags: vec![
                lag(310_000, "live", 0.0, 60.0),
                lag(510_000, "away", 39_600.0, 0.0),
            ],
            pairs: vec![
                pair(310_000, 0.0, 60.0),
                pair(510_000, 39_600.0, 0.0),
                pair(340_000, 0.0, 0.0),
            ],
        }
    }

    fn model() -> Model {
        let mut model = Model::default();
        model.answered(answers(100), None);
        model.answered(answers(300), Some(Duration::from_secs(2)));
        model
    }

    fn codes(model: &Model) -> Vec<u32> {
        model.platforms().iter().map(|row| row.code).collect()
    }

    #[test]
    fn keys_sort_by_what_they_say() {
        let mut model = model();
        for (key, expected) in [
            (Key::Char('l'), [510_000, 310_000, 340_000]),
            (Key::Char('r'), [340_000, 310_000, 510_000]),
            (Key::Char('f'), [310_000, 340_000, 510_000]),
            (Key::Char('c'), [310_000, 340_000, 510_000]),
        ] {
            model.key(key);
            assert_eq!(codes(&model), expected, "{key:?}");
        }
        assert_eq!(model.platforms()[1].rate, 100.0);
        model.key(Key::Char('l'));
        model.key(Key::NextLane);
        model.key(Key::NextLane);
        assert_eq!(model.lane, Some(Lane::Bulk));
        assert_eq!(codes(&model)[0], 310_000);
    }

    #[test]
    fn enter_goes_down_to_the_pairs_of_a_platform_and_back_comes_up_again() {
        let mut model = model();
        assert_eq!(model.platforms()[0].state, "away");
        model.key(Key::Enter);
        assert_eq!(model.view, View::Platform(510_000));
        let receivers: Vec<u32> = model.pairs().iter().map(|p| p.receiver).collect();
        assert_eq!(receivers, [510_000]);
        model.key(Key::Back);
        assert_eq!((model.view, model.quit), (View::Platforms, false));
        model.key(Key::Char('w'));
        model.key(Key::Down);
        model.key(Key::Down);
        assert_eq!(
            model.selected, 1,
            "there are two pairs with something outstanding"
        );
        model.key(Key::Enter);
        assert_eq!(model.view, View::Platform(310_000));
        model.key(Key::Back);
        model.key(Key::Back);
        assert!(model.quit);
    }
}
