//! `get`, `explain` and `trace`: what is known about one entity, why, and how it came.

use super::Context;
use crate::{
    errors::CliError,
    output::{Format, Grid, json_line},
    shapes::{DeltaShape, kind_name, lane_name},
    times::utc,
};
use clap::Args;
use hutong_connectors::client;
use hutong_proto::{EntityId, Issuer, Kind, api, area, delta::Colour, limits};
use serde::Serialize;

/// Names an entity.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub struct EntityArgs {
    /// 32 hexadecimal digits: a pseudonym, or the hash of an area's path.
    #[arg(value_name = "ENTITY")]
    pub entity: Option<EntityId>,
    /// An area by its path, widest first, with slashes: 安徽省/宿州市/泗县.
    #[arg(long, value_name = "PATH", value_parser = area_path)]
    pub path: Option<String>,
}

/// A path that cannot be would name an area that nobody knows, which reads like one without risk.
fn area_path(text: &str) -> Result<String, String> {
    let parts = text.split('/').count();
    if text.split('/').any(|part| part.trim().is_empty()) {
        return Err("a part of it is empty; write it like 安徽省/宿州市/泗县".to_owned());
    }
    if parts > limits::PATH_PARTS_MAX {
        return Err(format!(
            "it has {parts} parts, an area has up to {}",
            limits::PATH_PARTS_MAX
        ));
    }
    Ok(text.to_owned())
}

impl EntityArgs {
    fn id(&self) -> EntityId {
        match (&self.entity, &self.path) {
            (Some(id), _) => *id,
            (None, Some(path)) => area::entity(path.split('/')),
            (None, None) => unreachable!("one of the two is required by the command line"),
        }
    }
}

#[derive(Debug, Args)]
pub struct TraceArgs {
    #[command(flatten)]
    pub entity: EntityArgs,
    /// The platform that issued the delta.
    #[arg(long, value_name = "CODE")]
    pub issuer: Issuer,
    /// health_code, test_result, vaccination or area_risk.
    #[arg(long)]
    pub kind: Kind,
    /// The revision; the current one if left out.
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub revision: u64,
}

/// One register, as `get` prints it.
#[derive(Debug, Serialize)]
pub struct RegisterShape {
    pub issuer: u32,
    pub kind: &'static str,
    pub expired: bool,
    pub offset: u64,
    pub delta: DeltaShape,
}

impl RegisterShape {
    pub fn from_api(register: &api::Register) -> RegisterShape {
        RegisterShape {
            issuer: register.issuer,
            kind: kind_name(register.kind),
            expired: register.expired,
            offset: register.offset,
            delta: register
                .delta
                .as_ref()
                .map(|d| DeltaShape::from_api(d, register.provenance.as_ref()))
                .unwrap_or_default(),
        }
    }

    fn reason(&self) -> &str {
        self.delta.provenance.as_ref().map_or("", |p| &p.reason)
    }

    fn rule(&self) -> String {
        match &self.delta.provenance {
            Some(p) => format!("{} v{}", p.rule_id, p.rule_version),
            None => "-".to_owned(),
        }
    }
}

pub async fn get(context: &Context, args: &EntityArgs) -> Result<(), CliError> {
    let mut client = client::query(&context.endpoint).map_err(|e| context.failed(&e))?;
    let request = api::GetEntityRequest {
        entity: args.id().0.to_vec().into(),
    };
    let answer = client
        .get_entity(request)
        .await
        .map_err(|s| context.refused(&s))?;
    let registers: Vec<RegisterShape> = answer
        .into_inner()
        .registers
        .iter()
        .map(RegisterShape::from_api)
        .collect();
    context.show(&registers, "Nothing is known about this entity.", || {
        let mut grid = Grid::new(&[
            "issuer",
            "kind",
            "value",
            ">revision",
            "committed",
            "expires",
            "authority",
            "rule",
            "reason",
        ]);
        for r in &registers {
            grid.row([
                r.issuer.to_string(),
                r.kind.to_owned(),
                r.delta.value_text(),
                r.delta.revision.unwrap_or(0).to_string(),
                utc(r.delta.committed_at_us),
                expiry(r),
                r.delta
                    .provenance
                    .as_ref()
                    .map_or_else(|| "-".to_owned(), |p| p.authority.clone()),
                r.rule(),
                r.reason().to_owned(),
            ]);
        }
        grid
    })
}

fn expiry(register: &RegisterShape) -> String {
    match (register.delta.expires_at_us, register.expired) {
        (0, _) => "never".to_owned(),
        (at, true) => format!("{} (past)", utc(at)),
        (at, false) => utc(at),
    }
}

/// What `explain` prints.
#[derive(Debug, Serialize)]
pub struct ExplainShape {
    /// `null` when no valid code is known.
    pub colour: Option<&'static str>,
    pub decided_by: String,
    pub decided_by_zh: String,
    pub as_of_us: u64,
    pub contenders: Vec<ContenderShape>,
}

#[derive(Debug, Serialize)]
pub struct ContenderShape {
    pub verdict: &'static str,
    pub because: String,
    pub register: RegisterShape,
}

impl ExplainShape {
    pub fn from_api(answer: &api::ExplainResponse) -> ExplainShape {
        ExplainShape {
            colour: Colour::from_number(answer.colour as u64).map(Colour::name),
            decided_by: answer.decided_by.clone(),
            decided_by_zh: answer.decided_by_zh.clone(),
            as_of_us: answer.as_of_us,
            contenders: answer
                .contenders
                .iter()
                .map(|c| ContenderShape {
                    verdict: verdict_name(c.verdict()),
                    because: c.because.clone(),
                    register: c.register.as_ref().map_or_else(
                        || RegisterShape::from_api(&api::Register::default()),
                        RegisterShape::from_api,
                    ),
                })
                .collect(),
        }
    }

    /// The contenders, strongest first.
    pub fn grid(&self) -> Grid {
        let mut grid = Grid::new(&[
            "issuer",
            "colour",
            "committed",
            "verdict",
            "because",
            "reason",
        ]);
        for c in &self.contenders {
            grid.row([
                c.register.issuer.to_string(),
                c.register.delta.value_text(),
                utc(c.register.delta.committed_at_us),
                c.verdict.to_owned(),
                c.because.clone(),
                c.register.reason().to_owned(),
            ]);
        }
        grid
    }
}

fn verdict_name(verdict: api::Verdict) -> &'static str {
    match verdict {
        api::Verdict::Unspecified => "?",
        api::Verdict::Won => "won",
        api::Verdict::LessSevere => "less_severe",
        api::Verdict::Older => "older",
        api::Verdict::HigherIssuerCode => "higher_issuer_code",
        api::Verdict::Expired => "expired",
    }
}

pub async fn explain(context: &Context, args: &EntityArgs) -> Result<(), CliError> {
    let mut client = client::query(&context.endpoint).map_err(|e| context.failed(&e))?;
    let request = api::ExplainRequest {
        entity: args.id().0.to_vec().into(),
    };
    let answer = client
        .explain(request)
        .await
        .map_err(|s| context.refused(&s))?;
    let shape = ExplainShape::from_api(&answer.into_inner());
    if context.format == Format::Json {
        return json_line(&shape);
    }
    let screen = &context.screen;
    screen.line(format!(
        "{} as of {} UTC",
        screen.bold(shape.colour.unwrap_or("no valid health code is known")),
        utc(shape.as_of_us)
    ))?;
    if shape.contenders.is_empty() {
        return Ok(());
    }
    screen.line(format!(
        "Decided by: {} ({})",
        shape.decided_by, shape.decided_by_zh
    ))?;
    screen.grid(&shape.grid())
}

/// What `trace` prints.
#[derive(Debug, Serialize)]
pub struct TraceShape {
    pub delta: DeltaShape,
    pub lane: &'static str,
    pub shard: u32,
    pub offset: u64,
    pub committed_at_us: u64,
    /// At the broker, as `applied_at_us`; 0 when the broker does not remember.
    pub arrived_at_us: u64,
    pub durable_at_us: u64,
    pub applied_at_us: u64,
    /// A later revision of the same register is in force.
    pub superseded: bool,
    /// It was not newer than what its register had, and went nowhere.
    pub refused: bool,
    pub hops: Vec<HopShape>,
}

#[derive(Debug, Serialize)]
pub struct HopShape {
    pub platform: u32,
    pub subscription: String,
    pub state: &'static str,
    /// 0 when not yet, or longer ago than the broker remembers.
    pub sent_at_us: u64,
    pub applied_at_us: u64,
    /// From the commit at the source until applied; `null` when either is not known.
    pub applied_after_ms: Option<f64>,
}

impl TraceShape {
    pub fn from_api(answer: &api::TraceResponse) -> TraceShape {
        TraceShape {
            delta: answer
                .delta
                .as_ref()
                .map(|d| DeltaShape::from_api(d, answer.provenance.as_ref()))
                .unwrap_or_default(),
            lane: lane_name(answer.lane),
            shard: answer.shard,
            offset: answer.offset,
            committed_at_us: answer.committed_at_us,
            arrived_at_us: answer.arrived_at_us,
            durable_at_us: answer.durable_at_us,
            applied_at_us: answer.applied_at_us,
            superseded: answer.superseded,
            refused: answer.refused,
            hops: answer
                .hops
                .iter()
                .map(|h| HopShape {
                    platform: h.platform,
                    subscription: h.subscription.clone(),
                    state: state_name(h.state()),
                    sent_at_us: h.sent_at_us,
                    applied_at_us: h.applied_at_us,
                    applied_after_ms: after_ms(answer.committed_at_us, h.applied_at_us),
                })
                .collect(),
        }
    }

    /// Where it was until it went to the platforms.
    fn at_the_broker(&self) -> String {
        let after = |at| match after_ms(self.committed_at_us, at) {
            Some(ms) => format!("{ms:.1}"),
            None => "?".to_owned(),
        };
        let (arrived, durable) = (after(self.arrived_at_us), after(self.durable_at_us));
        let applied = match self.refused {
            true => String::new(),
            false => format!(", applied {}", after(self.applied_at_us)),
        };
        format!("at the broker: arrived {arrived}, durable {durable}{applied}")
    }

    pub fn grid(&self) -> Grid {
        let mut grid = Grid::new(&[
            "platform",
            "subscription",
            "state",
            ">sent ms",
            ">applied ms",
        ]);
        let text = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
        for h in &self.hops {
            grid.row([
                h.platform.to_string(),
                h.subscription.clone(),
                h.state.to_owned(),
                text(after_ms(self.committed_at_us, h.sent_at_us)),
                text(h.applied_after_ms),
            ]);
        }
        grid
    }
}

/// Clocks of source and broker may differ a little: a negative difference is shown as it is.
fn after_ms(from_us: u64, to_us: u64) -> Option<f64> {
    (from_us != 0 && to_us != 0).then(|| (to_us as i64 - from_us as i64) as f64 / 1e3)
}

fn state_name(state: api::TraceState) -> &'static str {
    match state {
        api::TraceState::Unspecified => "?",
        api::TraceState::NotSubscribed => "not_subscribed",
        api::TraceState::Waiting => "waiting",
        api::TraceState::Sent => "sent",
        api::TraceState::Applied => "applied",
        api::TraceState::BeforeStart => "before_start",
    }
}

pub async fn trace(context: &Context, args: &TraceArgs) -> Result<(), CliError> {
    let mut client = client::query(&context.endpoint).map_err(|e| context.failed(&e))?;
    let request = api::TraceRequest {
        entity: args.entity.id().0.to_vec().into(),
        issuer: args.issuer.code(),
        kind: args.kind.to_api().into(),
        revision: args.revision,
    };
    let answer = client
        .trace(request)
        .await
        .map_err(|s| context.refused(&s))?;
    let shape = TraceShape::from_api(&answer.into_inner());
    if context.format == Format::Json {
        return json_line(&shape);
    }
    let screen = &context.screen;
    screen.line(format!(
        "{} {} of {}, revision {}{}",
        args.kind,
        screen.bold(&shape.delta.value_text()),
        args.issuer,
        shape.delta.revision.unwrap_or(0),
        match (shape.refused, shape.superseded) {
            (true, _) => ", refused: REVISION_NOT_NEWER",
            (false, true) => ", superseded by a later one",
            (false, false) => "",
        }
    ))?;
    screen.line(format!(
        "committed {} UTC, at offset {} ({} lane, shard {}); milliseconds below count from the commit",
        utc(shape.committed_at_us),
        shape.offset,
        shape.lane,
        shape.shard
    ))?;
    screen.line(shape.at_the_broker())?;
    if shape.refused {
        return screen.line("It was sent to no platform.");
    }
    if shape.hops.is_empty() {
        return screen.line("No platform subscribes to it.");
    }
    screen.grid(&shape.grid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_cannot_be_is_a_mistake_and_no_area_without_risk() {
        for wrong in ["", "/", "a//b", "安徽省/", "a/b/c/d/e/f/g"] {
            assert!(area_path(wrong).is_err(), "{wrong:?}");
        }
        assert!(area_path("安徽省/宿州市/泗县").is_ok());
    }

    #[test]
    fn a_path_names_the_same_area_as_its_parts() {
        let args = EntityArgs {
            entity: None,
            path: Some("安徽省/宿州市/泗县".to_owned()),
        };
        assert_eq!(args.id(), area::entity(["安徽省", "宿州市", "泗县"]));
    }

    #[test]
    fn a_hop_counts_from_the_commit_at_the_source() {
        let answer = api::TraceResponse {
            committed_at_us: 1_000_000,
            arrived_at_us: 1_001_200,
            durable_at_us: 1_002_000,
            hops: vec![api::TraceHop {
                platform: 510_000,
                subscription: "main".to_owned(),
                state: api::TraceState::Applied.into(),
                sent_at_us: 1_002_500,
                applied_at_us: 1_003_500,
            }],
            ..Default::default()
        };
        let shape = TraceShape::from_api(&answer);
        assert_eq!(shape.hops[0].applied_after_ms, Some(3.5));
        let text = shape.grid().render();
        assert!(
            text.contains("510000") && text.contains("2.5") && text.contains("3.5"),
            "{text}"
        );
        let told = "at the broker: arrived 1.2, durable 2.0, applied ?";
        assert_eq!(shape.at_the_broker(), told);
        let refused = TraceShape {
            refused: true,
            ..shape
        };
        let told = "at the broker: arrived 1.2, durable 2.0";
        assert_eq!(refused.at_the_broker(), told);
    }

    #[test]
    fn an_explanation_without_codes_has_no_colour() {
        let shape = ExplainShape::from_api(&api::ExplainResponse::default());
        let json = serde_json::to_value(&shape).expect("json");
        assert!(json["colour"].is_null());
        assert_eq!(json["contenders"], serde_json::json!([]));
    }
}
