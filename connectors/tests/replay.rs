//! Real lists of risk areas through everything: 32 platforms, each with its own `hutong-connect`
//! process, publish them over gRPC to a `hutong-broker` process, and two more `hutong-connect`
//! processes bring them into a PostgreSQL table and a file of JSON lines. Both must equal each list, also
//! when processes are killed all the way.

#[path = "replay/fleet.rs"]
mod fleet;
#[path = "replay/lists.rs"]
mod lists;
#[path = "replay/processes.rs"]
mod processes;
#[allow(dead_code, reason = "each test file uses its part")]
#[path = "../src/testing.rs"]
mod testing;
#[path = "replay/views.rs"]
mod views;

use fleet::Fleet;
use lists::{Change, Expected, Lists, Random};
use processes::{Connector, until};
use std::time::{Duration, Instant};
use views::{Difference, differences, table};

/// Lists that are compared on the way, besides the last one.
const SAMPLES: usize = 23;
/// Who is killed, and how often on the way.
const KILLS: [(Victim, usize); 5] = [
    (Victim::Broker, 5),
    (Victim::Sources, 5),
    (Victim::Table, 4),
    (Victim::Lines, 4),
    (Victim::All, 2),
];
/// Kills that must hit while changes are under way, or the test shows nothing.
const UNDER_WAY_MIN: usize = 10;
/// Sources that are killed at one time.
const SOURCES_AT_ONCE: usize = 4;
/// Every so many kills all is compared.
const ROUNDS_A_CHECK: usize = 5;

/// Whom SIGKILL hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Broker,
    Sources,
    Table,
    Lines,
    /// Every process, as when the machine is reset.
    All,
}

/// In a random order, each with whether it is hit again while it starts.
fn victims(random: &mut Random) -> Vec<(Victim, bool)> {
    let times = |&(victim, count)| (0..count).map(move |n| (victim, n % 3 == 1));
    let mut victims: Vec<_> = KILLS.iter().flat_map(times).collect();
    random.shuffle(&mut victims);
    victims
}

/// Another seed chooses other lists and other moments.
fn seed() -> u64 {
    let given = std::env::var("HUTONG_TEST_SEED").ok();
    let seed = given.map_or(20_220_831, |text| text.parse().expect("a number"));
    println!("seed {seed}: set HUTONG_TEST_SEED for another one");
    seed
}

#[tokio::test]
async fn every_sampled_list_is_in_the_table_and_in_the_lines() {
    let mut fleet = Fleet::start(Lists::find()).await;
    let begun = Instant::now();
    let count = fleet.lists().names.len();
    let mut random = Random::new(seed());
    let mut others: Vec<usize> = (0..count - 1).collect();
    random.shuffle(&mut others);
    let mut samples = others[..SAMPLES.min(others.len())].to_vec();
    samples.push(count - 1);
    samples.sort_unstable();

    let (mut expected, mut lines) = (Expected::default(), fleet.lines_reader());
    for sample in &samples {
        fleet.drop_lists(sample + 1);
        fleet.barrier().await;
        expected.read(fleet.lists(), sample + 1);
        fleet.check(&expected, &mut lines).await;
    }
    // Each change was published once and by its own platform, and no row was given up.
    let mut accepted = 0;
    for source in &mut fleet.sources {
        let counts = source.status().expect("it runs").counts;
        assert_eq!(counts.rows_refused, 0, "{}", source.log());
        assert_eq!(counts.dead_letters, 0, "{}", source.log());
        accepted += counts.deltas_accepted;
    }
    assert_eq!(accepted, expected.changes);
    assert!(expected.changes > 0, "the lists say something");
    println!(
        "{count} lists, {} changes of {} areas, compared after {} lists, {:.1} s",
        expected.changes,
        expected.view.len(),
        samples.len(),
        begun.elapsed().as_secs_f64()
    );
}

#[tokio::test]
async fn kills_on_the_way_lose_nothing_and_double_nothing() {
    let mut fleet = Fleet::start(Lists::find()).await;
    let begun = Instant::now();
    let count = fleet.lists().names.len();
    let mut random = Random::new(seed());
    let victims = victims(&mut random);
    let rounds = victims.len();

    let (mut expected, mut lines) = (Expected::default(), fleet.lines_reader());
    let mut under_way = 0;
    for (round, (victim, twice)) in (1..).zip(victims) {
        let before = expected.changes;
        let end = count * round / rounds;
        let most = end - (end - fleet.dropped).div_ceil(4);
        fleet.drop_lists(most);
        expected.read(fleet.lists(), most);
        // Somewhere within the changes of these lists.
        let new = usize::try_from(expected.changes - before).expect("few");
        expected.read(fleet.lists(), end);
        let moment = before + random.below(new.max(1)) as u64;
        let progress = fleet.progress();
        until("changes arrive", async || match progress.deltas() {
            enough if enough >= moment => Ok(()),
            some => Err(format!("{some} of {moment} lines")),
        })
        .await;
        // The last ones come with the kill: also where all the others are through by now, it hits.
        fleet.drop_lists(end);
        let some = progress.deltas();
        under_way += usize::from(some < expected.changes);
        println!(
            "SIGKILL for {victim:?} at {some} of {} changes, again while it starts: {twice}",
            expected.changes
        );
        strike(&mut fleet, victim, twice, &mut random);
        if round % ROUNDS_A_CHECK == 0 || end == count {
            fleet.barrier().await;
            fleet.check(&expected, &mut lines).await;
        }
    }
    assert_eq!(expected.lists, count);
    assert!(
        under_way >= UNDER_WAY_MIN,
        "only {under_way} of {rounds} kills hit while changes were under way: the test shows nothing"
    );
    println!(
        "{count} lists, {} changes, {rounds} kills, {under_way} of them under way, {:.1} s",
        expected.changes,
        begun.elapsed().as_secs_f64()
    );
}

/// SIGKILL, and a new start; with `twice`, another one while it starts.
fn strike(fleet: &mut Fleet, victim: Victim, twice: bool, random: &mut Random) {
    let after = twice.then(|| Duration::from_millis(random.below(150) as u64));
    if matches!(victim, Victim::Broker | Victim::All) {
        fleet.broker.kill();
    }
    let mut chosen: Vec<&mut Connector> = match victim {
        Victim::Broker => Vec::new(),
        Victim::Table => vec![&mut fleet.table],
        Victim::Lines => vec![&mut fleet.lines],
        Victim::All => fleet
            .sources
            .iter_mut()
            .chain([&mut fleet.table, &mut fleet.lines])
            .collect(),
        Victim::Sources => {
            let mut all: Vec<_> = fleet.sources.iter_mut().collect();
            random.shuffle(&mut all);
            all.truncate(SOURCES_AT_ONCE);
            all
        }
    };
    chosen.iter_mut().for_each(|connector| connector.kill());
    if matches!(victim, Victim::Broker | Victim::All) {
        fleet.broker.start_again(after);
    }
    chosen
        .iter_mut()
        .for_each(|connector| connector.start_again(after));
}

#[tokio::test]
async fn a_row_that_was_altered_is_reported_with_both_values() {
    // Made-up lists: so they are tried where the real ones are, too.
    let mut fleet = Fleet::start(Lists::generated(24)).await;
    let (mut expected, mut lines) = (Expected::default(), fleet.lines_reader());
    fleet.drop_lists(24);
    fleet.barrier().await;
    expected.read(fleet.lists(), 24);
    fleet.check(&expected, &mut lines).await;

    // One row altered, one away.
    let mut high = expected.view.iter().filter(|(_, s)| s.level == "high");
    let mut path = || high.next().expect("two areas at high risk").0.clone();
    let (altered, away) = (path(), path());
    let alter = "UPDATE hutong_registers SET status = 'low', \
                 value = jsonb_set(value, '{level}', '\"low\"') WHERE path = $1";
    let delete = "DELETE FROM hutong_registers WHERE path = $1";
    for (statement, path) in [(alter, &altered), (delete, &away)] {
        let changed = fleet.client.execute(statement, &[path]).await;
        assert_eq!(changed.expect("done"), 1);
    }
    let found = differences(&expected.view, &table(&fleet.client).await);
    let standing = |path: &lists::Path4, level: &str| {
        let issuer = expected.view[path].issuer;
        format!("Standing {{ issuer: {issuer}, level: {level:?} }}")
    };
    let difference = |path: &lists::Path4, found: String| Difference {
        area: path.join("/"),
        expected: standing(path, "high"),
        found,
    };
    let wrong = [
        difference(&altered, standing(&altered, "low")),
        difference(&away, "nothing".to_owned()),
    ];
    assert_eq!(found, wrong);

    // One line doubled: the state is the same, the changes are not.
    let changes = lines.history.get_mut(&altered).expect("its changes");
    let last: Change = changes.last().expect("one").clone();
    changes.push(last);
    assert_eq!(differences(&expected.view, &lines.view), []);
    let found = differences(&expected.history, &lines.history);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].area, altered.join("/"));
}
