//! Three things that happened to people because one platform did not hear of another, played again as
//! the deltas that they are.

use super::{
    fleet::Fleet,
    outbox::Change,
    people::{Person, because},
    platform::Seen,
    platforms::{ANHUI, FUJIAN, Place, SHANGHAI, SICHUAN},
    registers::Registers,
    report::{StepReport, StoryReport},
};
use crate::{
    commands::entity::{ExplainShape, TraceShape},
    errors::CliError,
    output::{Grid, Screen},
    times,
};
use hutong_connectors::{
    client::{self, Endpoint, Identity},
    pseudonym::Pseudonymiser,
};
use hutong_proto::{
    Issuer, Kind, Micros, Revision, Value, api,
    delta::{Colour, TestOutcome},
};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Numbers of people from here on belong to the stories.
const FIRST_NUMBER: u32 = 9_000_000;
const ARRIVES_WITHIN: Duration = Duration::from_secs(20);
/// How long the broker may take to have heard from every platform that it applied a delta.
const TRACED_WITHIN: Duration = Duration::from_secs(5);
/// Hops of a trace that are shown: the one of the story and the slowest.
const HOPS_SHOWN: usize = 4;
const DAY_US: u64 = 24 * 3_600_000_000;

/// A story: what happened, and the deltas that tell it.
#[derive(Debug)]
pub struct Story {
    title: &'static str,
    happened: &'static str,
    person: Person,
    steps: Vec<Step>,
    asks: Ask,
}

/// One delta of a story.
#[derive(Debug)]
struct Step {
    what: &'static str,
    issuer: u32,
    value: fn(Micros) -> Value,
    valid_days: u64,
    rule: &'static str,
    reason: &'static str,
    /// How long it took in life until another province knew.
    in_life: &'static str,
}

/// What is asked of the broker at the end.
#[derive(Clone, Copy, Debug)]
enum Ask {
    /// Which colour holds, and why.
    Explain,
    /// The way of the first delta to a platform.
    Trace { to: u32 },
}

fn green(_: Micros) -> Value {
    Value::HealthCode(Colour::Green)
}

fn yellow(_: Micros) -> Value {
    Value::HealthCode(Colour::Yellow)
}

fn red(_: Micros) -> Value {
    Value::HealthCode(Colour::Red)
}

fn positive(now: Micros) -> Value {
    Value::TestResult {
        outcome: TestOutcome::Positive,
        sampled_at: Micros(now.0 - 6 * 3_600_000_000),
    }
}

const BATCH: &str = "next half-hourly batch: up to 30 min";

/// The three stories, with people of their own.
pub fn all(pseudonyms: &Pseudonymiser) -> Vec<Story> {
    let mut numbers = FIRST_NUMBER..;
    let mut person = |place| {
        let number = numbers.next().expect("far from the last one");
        Person::new(place, number, pseudonyms)
    };
    vec![
        wrongly_yellow(person(ANHUI)),
        driver(person(SICHUAN)),
        train(person(SHANGHAI)),
    ]
}

fn wrongly_yellow(person: Person) -> Story {
    Story {
        title: "A yellow code that was wrong (Anhui)",
        happened: "A code in Anhui is yellow by mistake, and Anhui corrects it. But codes go to the \
            national platform in batches, every 30 minutes: elsewhere the code stays yellow long \
            after it was corrected at home.",
        person,
        steps: vec![
            Step {
                what: "Anhui: yellow, by mistake",
                issuer: ANHUI,
                value: yellow,
                valid_days: 7,
                rule: "CODE",
                reason: "contact reported in error",
                in_life: BATCH,
            },
            Step {
                what: "Anhui: green, corrected",
                issuer: ANHUI,
                value: green,
                valid_days: 0,
                rule: "CODE",
                reason: "corrected on review",
                in_life: BATCH,
            },
        ],
        asks: Ask::Explain,
    }
}

fn driver(person: Person) -> Story {
    Story {
        title: "A driver: red in Anhui, green in Sichuan",
        happened: "A driver's code turned red in Anhui. Eleven hours later Sichuan still showed it \
            green: the change had not arrived.",
        person,
        steps: vec![
            Step {
                what: "Sichuan: green",
                issuer: SICHUAN,
                value: green,
                valid_days: 7,
                rule: "CODE",
                reason: "no risk known",
                in_life: "",
            },
            Step {
                what: "Anhui: red",
                issuer: ANHUI,
                value: red,
                valid_days: 14,
                rule: "CODE",
                reason: "contact of a confirmed case",
                in_life: "11 h later not yet in Sichuan",
            },
        ],
        asks: Ask::Explain,
    }
}

fn train(person: Person) -> Story {
    Story {
        title: "A positive test in Shanghai, and a train to Fujian",
        happened: "A laboratory in Shanghai finds a sample positive while its owner boards a train for \
            Fujian. In the next batch the result may come after the train has left. The colour \
            follows the result; both must be in Fujian before the traveller is.",
        person,
        steps: vec![
            Step {
                what: "Shanghai: test positive",
                issuer: SHANGHAI,
                value: positive,
                valid_days: 14,
                rule: "TEST",
                reason: "sample positive",
                in_life: BATCH,
            },
            Step {
                what: "Shanghai: red",
                issuer: SHANGHAI,
                value: red,
                valid_days: 14,
                rule: "CODE",
                reason: "positive test",
                in_life: BATCH,
            },
        ],
        asks: Ask::Trace { to: FUJIAN },
    }
}

impl Story {
    fn needs(&self) -> impl Iterator<Item = u32> + '_ {
        let asked = match self.asks {
            Ask::Trace { to } => Some(to),
            Ask::Explain => None,
        };
        self.steps.iter().map(|s| s.issuer).chain(asked)
    }

    fn can_be_told_by(&self, places: &[Place]) -> bool {
        self.needs()
            .all(|code| places.iter().any(|p| p.code == code))
    }
}

/// Enters the registers of the stories, watched one by one.
pub fn settle(stories: &[Story], places: &[Place], registers: &mut Registers) {
    registers.watch_from_here();
    for story in stories {
        for step in &story.steps {
            if let Some(home) = places.iter().position(|p| p.code == step.issuer) {
                let issuer = Issuer::new(step.issuer).expect("the table holds valid codes");
                registers.add(issuer, &story.person.entity, home);
            }
        }
    }
}

/// Tells the stories, one after the other.
pub async fn tell(
    stories: &[Story],
    fleet: &Fleet,
    seen: &mut mpsc::Receiver<Seen>,
    address: &str,
    screen: &Screen,
) -> Result<Vec<StoryReport>, CliError> {
    let mut reports = Vec::new();
    for (number, story) in stories.iter().enumerate() {
        screen.heading(&format!("Story {}: {}", number + 1, story.title))?;
        if !story.can_be_told_by(fleet.places) {
            screen.paragraph("Not told: with so few platforms, one of its places is missing.")?;
            continue;
        }
        screen.paragraph(story.happened)?;
        screen.blank()?;
        let mut told = Vec::with_capacity(story.steps.len());
        for step in &story.steps {
            told.push(play(story, step, fleet, seen).await);
        }
        print_steps(screen, &told)?;
        let first = told[0].revision;
        match story.asks {
            Ask::Explain => print_explanation(story, fleet, address, screen).await?,
            Ask::Trace { to } => print_trace(story, first, to, fleet, address, screen).await?,
        }
        reports.push(StoryReport {
            title: story.title,
            steps: told.into_iter().map(|t| t.report).collect(),
        });
    }
    Ok(reports)
}

struct Told {
    revision: Revision,
    in_life: &'static str,
    report: StepReport,
}

/// Publishes one delta and waits until every other platform has applied it.
async fn play(story: &Story, step: &Step, fleet: &Fleet, seen: &mut mpsc::Receiver<Seen>) -> Told {
    let platform = fleet.by_code(step.issuer).expect("checked before");
    let now = times::now();
    let change = Change {
        person: story.person,
        committed_at: now,
        expires_at: match step.valid_days {
            0 => Micros::ZERO,
            days => Micros(now.0 + days * DAY_US),
        },
        because: because(platform.place, step.rule, step.reason),
        value: (step.value)(now),
    };
    let (kind, lane) = (change.value.kind(), change.value.lane());
    let outbox = fleet.outbox(platform.index, lane);
    let revision = outbox.commit(vec![change]).await;
    let key = (platform.issuer, story.person.entity, kind, revision);
    let others = fleet.platforms.len() - 1;
    let mut arrivals: Vec<(f64, &'static str)> = Vec::with_capacity(others);
    let deadline = tokio::time::Instant::now() + ARRIVES_WITHIN;
    while arrivals.len() < others {
        match tokio::time::timeout_at(deadline, seen.recv()).await {
            Ok(Some(s)) if (s.issuer, s.entity, s.kind, s.revision) == key => {
                let ms = s.applied_at.seconds_since(now) * 1e3;
                arrivals.push((ms, fleet.places[s.platform].name));
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => break,
        }
    }
    arrivals.sort_by(|a, b| a.0.total_cmp(&b.0));
    Told {
        revision,
        in_life: step.in_life,
        report: StepReport {
            what: step.what,
            lane: lane.name(),
            applied_on: arrivals.len(),
            platforms: others,
            min_ms: arrivals.first().map(|a| a.0),
            median_ms: arrivals.get(arrivals.len() / 2).map(|a| a.0),
            max_ms: arrivals.last().map(|a| a.0),
            slowest: arrivals.last().map(|a| a.1),
        },
    }
}

fn print_steps(screen: &Screen, told: &[Told]) -> Result<(), CliError> {
    let mut grid = Grid::new(&[
        "what was published",
        ">applied on",
        ">min ms",
        ">median ms",
        ">max ms",
        "slowest",
        "in life",
    ]);
    let ms = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.1}"));
    for t in told {
        let r = &t.report;
        grid.row([
            r.what.to_owned(),
            format!("{} of {}", r.applied_on, r.platforms),
            ms(r.min_ms),
            ms(r.median_ms),
            ms(r.max_ms),
            r.slowest.unwrap_or("-").to_owned(),
            t.in_life.to_owned(),
        ]);
    }
    screen.grid(&grid)
}

fn operator(address: &str) -> Endpoint {
    Endpoint::new(address.to_owned(), Identity::Operator("demo".to_owned()))
}

fn name_of(fleet: &Fleet, code: u32) -> String {
    fleet
        .by_code(code)
        .map_or_else(|| code.to_string(), |p| p.place.name.to_owned())
}

async fn print_explanation(
    story: &Story,
    fleet: &Fleet,
    address: &str,
    screen: &Screen,
) -> Result<(), CliError> {
    let mut query =
        client::query(&operator(address)).map_err(|e| CliError::from_client(address, &e))?;
    let answer = query
        .explain(api::ExplainRequest {
            entity: story.person.entity.0.to_vec().into(),
        })
        .await
        .map_err(|s| CliError::from_status(address, &s))?;
    let shape = ExplainShape::from_api(&answer.into_inner());
    screen.blank()?;
    screen.line(format!(
        "  Every platform now reads {}. The broker's reason: {}",
        screen.bold(shape.colour.unwrap_or("nothing")),
        shape.decided_by
    ))?;
    let mut grid = Grid::new(&["issuer", "colour", "because it", "reason given"]);
    for c in &shape.contenders {
        grid.row([
            name_of(fleet, c.register.issuer),
            c.register.delta.value_text(),
            match c.because.as_str() {
                "" => c.verdict.to_owned(),
                because => format!("{}: {because}", c.verdict),
            },
            c.register
                .delta
                .provenance
                .as_ref()
                .map_or_else(String::new, |p| p.reason.clone()),
        ]);
    }
    if grid.is_empty() {
        return Ok(());
    }
    screen.grid(&grid)
}

async fn print_trace(
    story: &Story,
    revision: Revision,
    to: u32,
    fleet: &Fleet,
    address: &str,
    screen: &Screen,
) -> Result<(), CliError> {
    let issuer = story.steps[0].issuer;
    let mut query =
        client::query(&operator(address)).map_err(|e| CliError::from_client(address, &e))?;
    let deadline = Instant::now() + TRACED_WITHIN;
    let shape = loop {
        let answer = query
            .trace(api::TraceRequest {
                entity: story.person.entity.0.to_vec().into(),
                issuer,
                kind: Kind::TestResult.to_api().into(),
                revision: revision.0,
            })
            .await
            .map_err(|s| CliError::from_status(address, &s))?;
        let shape = TraceShape::from_api(&answer.into_inner());
        let all = shape
            .hops
            .iter()
            .all(|h| h.applied_after_ms.is_some() || h.platform == issuer);
        if all || Instant::now() > deadline {
            break shape;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    screen.blank()?;
    screen.line(
        "  The broker's trace of the positive test, milliseconds after the laboratory's commit:",
    )?;
    screen.grid(&trace_grid(shape, to, |code| name_of(fleet, code)))
}

/// The hop of the story first, then the slowest ones.
fn trace_grid(shape: TraceShape, to: u32, name: impl Fn(u32) -> String) -> Grid {
    let after = |us: u64| us.saturating_sub(shape.committed_at_us) as f64 / 1e3;
    let mut hops: Vec<_> = shape.hops.iter().filter(|h| h.applied_at_us > 0).collect();
    hops.sort_by_key(|h| (h.platform != to, std::cmp::Reverse(h.applied_at_us)));
    let mut grid = Grid::new(&["platform", ">durable ms", ">sent ms", ">told the broker ms"]);
    for h in hops.into_iter().take(HOPS_SHOWN) {
        grid.row([
            name(h.platform),
            format!("{:.1}", after(shape.durable_at_us)),
            format!("{:.1}", after(h.sent_at_us)),
            format!("{:.1}", after(h.applied_at_us)),
        ]);
    }
    grid
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{commands::entity::HopShape, demo::platforms::first, shapes::DeltaShape};
    use hutong_connectors::pseudonym::Algorithm;

    fn stories() -> Vec<Story> {
        all(&Pseudonymiser::new(Algorithm::HmacSm3, b"any", 1))
    }

    #[test]
    fn four_platforms_are_enough_for_every_story_and_two_for_the_first_two() {
        let told = |n| {
            stories()
                .iter()
                .map(|s| s.can_be_told_by(first(n)))
                .collect::<Vec<_>>()
        };
        assert_eq!(told(4), [true, true, true]);
        assert_eq!(told(2), [true, true, false]);
    }

    #[test]
    fn every_register_of_a_story_is_watched() {
        let mut registers = Registers::default();
        let stories = stories();
        settle(&stories, first(4), &mut registers);
        for story in &stories {
            for step in &story.steps {
                let issuer = Issuer::new(step.issuer).expect("valid");
                let kind = (step.value)(Micros(1 << 50)).kind();
                let register = registers
                    .find(issuer, &story.person.entity, kind)
                    .expect("added");
                assert!(registers.is_watched(register));
            }
        }
    }

    #[test]
    fn the_place_of_the_story_comes_first_in_its_trace() {
        let hop = |platform, applied_at_us| HopShape {
            platform,
            subscription: "demo".to_owned(),
            state: "applied",
            sent_at_us: 1500,
            applied_at_us,
            applied_after_ms: None,
        };
        let shape = TraceShape {
            delta: DeltaShape::default(),
            lane: "urgent",
            shard: 0,
            offset: 1,
            committed_at_us: 1000,
            arrived_at_us: 1100,
            durable_at_us: 1400,
            applied_at_us: 1450,
            superseded: false,
            refused: false,
            hops: vec![hop(1, 3000), hop(2, 5000), hop(3, 2000), hop(4, 0)],
        };
        let text = trace_grid(shape, 3, |code| format!("P{code}")).render();
        let order: Vec<&str> = text
            .lines()
            .skip(1)
            .map(|l| l.trim().split(' ').next().unwrap_or(""))
            .collect();
        assert_eq!(order, ["P3", "P2", "P1"]);
    }
}
