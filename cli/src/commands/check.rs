//! `check`: whether every subscription keeps up, in the form that monitoring systems run and read: one line, figures
//! behind a bar, and an exit code.

use super::{
    Context,
    connectors::{self, ConnectorShape},
    lag,
};
use crate::{
    errors::CliError,
    output::{Format, Screen, json_line, seconds_text},
};
use clap::Args;
use lag::LagShape;
use serde::Serialize;
use std::time::Duration;

pub const WELL: u8 = 0;
pub const WARNING: u8 = 1;
pub const CRITICAL: u8 = 2;
pub const UNKNOWN: u8 = 3;
/// In the order of the exit codes.
const STATES: [&str; 4] = ["OK", "WARNING", "CRITICAL", "UNKNOWN"];
/// Named in the text behind the first line, at most.
const NAMED_MAX: usize = 10;

#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Exit codes:
  0  every subscription keeps up
  1  something urgent has waited longer than --warn, a subscription is not connected, or a connector failed
  2  something urgent has waited longer than --crit, or a subscription fell behind what the log keeps
  3  unknown: no broker, no answer, no subscription, or a wrong command line")]
pub struct CheckArgs {
    /// Urgent changes that have waited longer than this are a warning: 3s, 500ms, 2m.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = duration)]
    pub warn: f64,
    /// Urgent changes that have waited longer than this are critical.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub crit: f64,
    /// The same for bulk.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub bulk_warn: f64,
    #[arg(long, value_name = "DURATION", default_value = "300s", value_parser = duration)]
    pub bulk_crit: f64,
    /// Only this platform, or these; one without a subscription is unknown.
    #[arg(long, value_name = "CODE")]
    pub platform: Vec<u32>,
    /// A broker that has not answered by then is unknown.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub timeout: f64,
}

/// Seconds, of a number with `ms`, `s`, `m` or `h` behind it; without one it means seconds.
fn duration(text: &str) -> Result<f64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => f64::NAN,
    };
    match digits.parse::<f64>().map(|n| n * unit) {
        Ok(seconds) if seconds.is_finite() && seconds >= 0.0 => Ok(seconds),
        _ => Err("a duration is expected, such as 3s, 500ms or 2m".to_owned()),
    }
}

pub async fn run(context: &Context, args: &CheckArgs) -> Result<(), CliError> {
    let answer = match limits(args) {
        Ok(()) => asked(context, args).await,
        Err(why) => Answer::unknown(why),
    };
    answer.say(context.format)?;
    match answer.exit_code {
        WELL => Ok(()),
        code => Err(CliError::Status(code)),
    }
}

/// What is known, for monitoring systems and for other programs.
#[derive(Debug, Serialize)]
pub struct Answer {
    state: &'static str,
    exit_code: u8,
    /// The worst first.
    messages: Vec<String>,
    /// In the form of monitoring plugins; others read them from `hutong lag`.
    #[serde(skip)]
    figures: Option<String>,
}

impl Answer {
    fn new(exit_code: u8, messages: Vec<String>, figures: Option<String>) -> Answer {
        Answer {
            state: STATES[usize::from(exit_code)],
            exit_code,
            messages,
            figures,
        }
    }

    /// Of what cannot be answered.
    pub fn unknown(why: impl std::fmt::Display) -> Answer {
        Answer::new(UNKNOWN, vec![why.to_string()], None)
    }

    pub fn say(&self, format: Format) -> Result<(), CliError> {
        match format {
            Format::Json => json_line(self),
            Format::Table => Screen::stdout().line(self.text()),
        }
    }

    fn text(&self) -> String {
        let mut messages = self.messages.iter();
        let mut text = format!("HUTONG {} - ", self.state);
        text += messages.next().map_or("", String::as_str);
        let more = messages.len();
        if more > 0 {
            text += &format!(", and {more} more");
        }
        if let Some(figures) = &self.figures {
            text += " | ";
            text += figures;
        }
        for message in messages.take(NAMED_MAX) {
            text.push('\n');
            text += message;
        }
        text
    }
}

async fn asked(context: &Context, args: &CheckArgs) -> Answer {
    // More than a duration can be is as good as none.
    let limit = Duration::try_from_secs_f64(args.timeout).unwrap_or(Duration::MAX);
    let read = async {
        let lags = lag::read(context).await?;
        Ok::<_, CliError>((lags, connectors::read_if_known(context).await?))
    };
    match tokio::time::timeout(limit, read).await {
        Ok(Ok((lags, connectors))) => judge(args, &lags, &connectors),
        Ok(Err(error)) => Answer::unknown(error),
        Err(_) => {
            let limit = seconds_text(args.timeout);
            let why = format!(
                "the broker at {} did not answer in {limit}",
                context.address
            );
            Answer::unknown(why)
        }
    }
}

/// A warning that comes after the critical state would never be seen.
fn limits(args: &CheckArgs) -> Result<(), String> {
    for (warn, crit, names) in [
        (args.warn, args.crit, "--warn and --crit"),
        (
            args.bulk_warn,
            args.bulk_crit,
            "--bulk-warn and --bulk-crit",
        ),
    ] {
        if warn > crit {
            return Err(format!(
                "of {names} the first must not be larger: {warn}s and {crit}s"
            ));
        }
    }
    Ok(())
}

/// What is wrong with one subscription.
fn problem(args: &CheckArgs, lag: &LagShape) -> Option<(u8, String)> {
    let who = format!("{}/{}", lag.platform, lag.subscription);
    let lanes = [
        ("urgent", &lag.urgent, args.warn, args.crit),
        ("bulk", &lag.bulk, args.bulk_warn, args.bulk_crit),
    ];
    let late = lanes.into_iter().filter_map(|(name, lane, warn, crit)| {
        let code = match lane.seconds {
            s if s > crit => CRITICAL,
            s if s > warn => WARNING,
            _ => return None,
        };
        let text = format!(
            "{who} has not applied {} {name} records, the oldest of {} for {} (offset {})",
            lane.records,
            lane.oldest_issuer,
            seconds_text(lane.seconds),
            lane.oldest_offset
        );
        Some((code, text))
    });
    let other = match lag.state {
        "compacted" => Some((CRITICAL, format!("{who} fell behind what the log keeps"))),
        "away" => Some((WARNING, format!("{who} is not connected"))),
        _ => None,
    };
    // Of the same weight, the lag says more.
    late.chain(other)
        .reduce(|worst, next| if next.0 > worst.0 { next } else { worst })
}

fn judge(args: &CheckArgs, lags: &[LagShape], connectors: &[ConnectorShape]) -> Answer {
    let asked = |platform: u32| args.platform.is_empty() || args.platform.contains(&platform);
    let lags: Vec<&LagShape> = lags.iter().filter(|lag| asked(lag.platform)).collect();
    if lags.is_empty() {
        return Answer::unknown("there is no such subscription, so nobody is known to keep up");
    }
    let missing = args.platform.iter();
    let mut missing = missing.filter(|code| !lags.iter().any(|lag| lag.platform == **code));
    if let Some(code) = missing.next() {
        return Answer::unknown(format!(
            "platform {code} has no subscription, so nobody knows whether it keeps up"
        ));
    }
    let mut problems: Vec<(u8, f64, String)> = lags
        .iter()
        .filter_map(|lag| {
            let (code, text) = problem(args, lag)?;
            Some((code, lag.urgent.seconds.max(lag.bulk.seconds), text))
        })
        .collect();
    let failed = connectors
        .iter()
        .filter(|c| asked(c.platform) && c.has_failed());
    problems.extend(failed.map(|c| {
        let text = format!("{}/{}, a connector, has failed", c.platform, c.connector);
        (WARNING, 0.0, text)
    }));
    problems.sort_by(|a, b| b.0.cmp(&a.0).then(b.1.total_cmp(&a.1)));
    let code = problems.first().map_or(WELL, |p| p.0);
    let messages = match problems.is_empty() {
        true => vec![format!("{} subscriptions keep up", lags.len())],
        false => problems.into_iter().map(|(_, _, text)| text).collect(),
    };
    Answer::new(code, messages, Some(figures(args, &lags)))
}

/// `label=value;warn;crit;min`, with the units of monitoring plugins.
fn figures(args: &CheckArgs, lags: &[&LagShape]) -> String {
    let worst = |of: fn(&LagShape) -> f64| lags.iter().map(|l| of(l)).fold(0.0, f64::max);
    let records = |of: fn(&LagShape) -> u64| lags.iter().map(|l| of(l)).sum::<u64>();
    let away = lags.iter().filter(|l| l.state == "away").count();
    format!(
        "urgent_lag={:.3}s;{};{};0 bulk_lag={:.3}s;{};{};0 urgent_records={};;;0 bulk_records={};;;0 \
         subscriptions={};;;0 away={away};;;0",
        worst(|l| l.urgent.seconds),
        args.warn,
        args.crit,
        worst(|l| l.bulk.seconds),
        args.bulk_warn,
        args.bulk_crit,
        records(|l| l.urgent.records),
        records(|l| l.bulk.records),
        lags.len(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use hutong_proto::api;
    use lag::LaneLagShape;

    const ARGS: CheckArgs = CheckArgs {
        warn: 3.0,
        crit: 10.0,
        bulk_warn: 30.0,
        bulk_crit: 300.0,
        platform: Vec::new(),
        timeout: 5.0,
    };

    fn lag(platform: u32, state: &'static str, urgent: f64, bulk: f64) -> LagShape {
        let lane = |seconds: f64| LaneLagShape {
            records: u64::from(seconds > 0.0) * 2,
            seconds,
            oldest_at_us: 1,
            oldest_offset: 17,
            oldest_issuer: 340_000,
        };
        LagShape {
            platform,
            subscription: "main".to_owned(),
            state,
            urgent: lane(urgent),
            bulk: lane(bulk),
        }
    }

    #[test]
    fn a_platform_that_nobody_knows_is_unknown_also_beside_others_that_are_well() {
        let lags = [
            lag(310_000, "live", 0.0, 0.0),
            lag(510_000, "live", 9.0, 0.0),
        ];
        let of = |platform: &[u32]| {
            let platform = platform.to_vec();
            let answer = judge(&CheckArgs { platform, ..ARGS }, &lags, &[]);
            (answer.exit_code, answer.text())
        };
        assert_eq!(of(&[310_000]).0, WELL);
        assert_eq!(of(&[510_000, 310_000]).0, WARNING);
        let (code, text) = of(&[310_000, 510_001]);
        assert_eq!(code, UNKNOWN, "{text}");
        assert!(
            text.contains("platform 510001 has no subscription"),
            "{text}"
        );
    }

    #[test]
    fn a_warning_after_the_critical_state_is_refused() {
        assert!(limits(&ARGS).is_ok());
        let swapped = CheckArgs { warn: 11.0, ..ARGS };
        let why = limits(&swapped).expect_err("never seen");
        assert!(why.contains("--warn and --crit"), "{why}");
        let bulk = CheckArgs {
            bulk_warn: 301.0,
            ..ARGS
        };
        assert!(limits(&bulk).is_err());
    }

    #[test]
    fn each_state_has_its_code_and_the_worst_is_named_first() {
        let good = || lag(310_000, "live", 0.2, 1.0);
        for (lags, code, begins) in [
            (
                vec![good()],
                WELL,
                "HUTONG OK - 1 subscriptions keep up | urgent_lag=0.200s;3;10;0",
            ),
            (
                vec![good(), lag(510_000, "live", 4.0, 0.0)],
                WARNING,
                "HUTONG WARNING - 510000/main has not applied 2 urgent records, the oldest of 340000 \
                 for 4.0 s (offset 17) | urgent_lag=4.000s",
            ),
            (
                vec![
                    lag(420_000, "away", 0.0, 0.0),
                    lag(510_000, "away", 11.0, 0.0),
                ],
                CRITICAL,
                "HUTONG CRITICAL - 510000/main has not applied 2 urgent records, the oldest of 340000 \
                 for 11.0 s (offset 17), and 1 more | ",
            ),
            (
                vec![lag(510_000, "away", 0.0, 0.0)],
                WARNING,
                "HUTONG WARNING - 510000/main is not connected | ",
            ),
            (
                vec![lag(510_000, "compacted", 4.0, 0.0)],
                CRITICAL,
                "HUTONG CRITICAL - 510000/main fell behind what the log keeps | ",
            ),
            (
                vec![lag(510_000, "live", 0.0, 301.0)],
                CRITICAL,
                "HUTONG CRITICAL - 510000/main has not applied 2 bulk records",
            ),
            (Vec::new(), UNKNOWN, "HUTONG UNKNOWN - "),
        ] {
            let answer = judge(&ARGS, &lags, &[]);
            let text = answer.text();
            assert_eq!(answer.exit_code, code, "{text}");
            assert!(text.starts_with(begins), "{text}");
        }
    }

    #[test]
    fn a_program_reads_the_same_answer() {
        let lags = [
            lag(420_000, "away", 0.0, 0.0),
            lag(510_000, "live", 11.0, 0.0),
        ];
        let answer = serde_json::to_value(judge(&ARGS, &lags, &[])).expect("JSON");
        let oldest = "510000/main has not applied 2 urgent records, the oldest of 340000 for 11.0 s (offset 17)";
        let expected = serde_json::json!({
            "state": "CRITICAL", "exit_code": 2,
            "messages": [oldest, "420000/main is not connected"],
        });
        assert_eq!(answer, expected);
        let nothing = serde_json::to_value(Answer::unknown("no | broker")).expect("JSON");
        assert_eq!(nothing["messages"][0], "no | broker");
    }

    #[test]
    fn only_the_platforms_that_were_asked_for_count() {
        let args = CheckArgs {
            platform: vec![310_000],
            ..ARGS
        };
        let lags = [
            lag(310_000, "live", 0.0, 0.0),
            lag(510_000, "live", 99.0, 0.0),
        ];
        assert_eq!(judge(&args, &lags, &[]).exit_code, WELL);
        assert_eq!(judge(&ARGS, &lags, &[]).exit_code, CRITICAL);
        assert_eq!(judge(&args, &lags[1..], &[]).exit_code, UNKNOWN);
    }

    #[test]
    fn a_connector_that_failed_is_a_warning_behind_what_lags() {
        let connector = |platform, state: api::ConnectorState| {
            ConnectorShape::from_api(api::Connector {
                platform,
                report: Some(api::ConnectorReport {
                    connector: "registry".to_owned(),
                    state: state.into(),
                    ..Default::default()
                }),
                ..Default::default()
            })
        };
        let connectors = [
            connector(310_000, api::ConnectorState::Degraded),
            connector(510_000, api::ConnectorState::Failed),
        ];
        let lags = [
            lag(310_000, "live", 0.0, 0.0),
            lag(510_000, "live", 0.0, 0.0),
        ];
        let answer = judge(&ARGS, &lags, &connectors);
        assert_eq!(answer.exit_code, WARNING);
        assert_eq!(
            answer.messages,
            ["510000/registry, a connector, has failed"]
        );
        let args = CheckArgs {
            platform: vec![310_000],
            ..ARGS
        };
        assert_eq!(judge(&args, &lags, &connectors).exit_code, WELL);
        let lags = [
            lag(310_000, "live", 0.0, 31.0),
            lag(510_000, "live", 0.0, 0.0),
        ];
        let answer = judge(&ARGS, &lags, &connectors);
        assert!(answer.messages[0].contains("31"), "{:?}", answer.messages);
        assert_eq!(answer.messages.len(), 2);
    }

    #[test]
    fn durations_are_read_or_explained() {
        assert_eq!(duration("3s"), Ok(3.0));
        assert_eq!(duration("500ms"), Ok(0.5));
        assert_eq!(duration("2m"), Ok(120.0));
        assert_eq!(duration("1.5"), Ok(1.5));
        for wrong in ["", "s", "-1s", "NaN", "3 days", "inf"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
