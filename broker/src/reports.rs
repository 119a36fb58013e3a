//! What connectors say of themselves: state, and dead letters, which stay beside their source. The last report of
//! each, in memory. People look at it, and nothing else depends on it.

use crate::{
    access::{Access, Call},
    clock::Clock,
    ingress::check_name,
};
use hutong_proto::{
    Issuer, Micros, Reason, Refusal,
    api::{
        self,
        report_service_server::{ReportService, ReportServiceServer},
    },
    limits,
};
use parking_lot::{Mutex, MutexGuard};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};
use tonic::{Request, Response, Status};

/// What a browser counts exactly; nobody keeps as many rows.
const COUNT_MAX: u64 = 1 << 53;
/// They speak every few seconds.
const SILENT_AFTER: Duration = Duration::from_secs(20);
/// One that is gone for good would stand there for ever.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(86_400);

/// The last report of a connector.
#[derive(Clone, Debug)]
pub struct Kept {
    pub report: api::ConnectorReport,
    pub said_at: Micros,
    heard: Instant,
}

impl Kept {
    /// It should have said something since.
    pub fn is_silent(&self) -> bool {
        self.is_silent_at(Instant::now())
    }

    fn is_silent_at(&self, now: Instant) -> bool {
        use api::ConnectorState::{Failed, Stopped};
        let ended = matches!(self.report.state(), Failed | Stopped);
        !ended && now.duration_since(self.heard) > SILENT_AFTER
    }
}

/// A connector in a few words.
#[derive(Clone, Debug)]
pub struct Brief {
    pub platform: Issuer,
    pub connector: String,
    pub state: api::ConnectorState,
    pub since_us: u64,
    pub dead_letters: u64,
    pub silent: bool,
}

/// By platform and name.
#[derive(Debug, Default)]
pub struct Reports(Mutex<BTreeMap<(Issuer, String), Kept>>);

impl Reports {
    /// All that are known, by platform and name.
    pub fn all(&self) -> Vec<(Issuer, Kept)> {
        self.all_at(Instant::now())
    }

    fn all_at(&self, now: Instant) -> Vec<(Issuer, Kept)> {
        let kept = self.known_at(now);
        let all = kept.iter();
        all.map(|((platform, _), kept)| (*platform, kept.clone()))
            .collect()
    }

    /// The same in a few words, for those who look often.
    pub fn brief(&self) -> Vec<Brief> {
        let kept = self.known_at(Instant::now());
        let brief = |((platform, name), kept): (&(Issuer, String), &Kept)| Brief {
            platform: *platform,
            connector: name.clone(),
            state: kept.report.state(),
            since_us: kept.report.since_us,
            dead_letters: kept.report.dead_letters,
            silent: kept.is_silent(),
        };
        kept.iter().map(brief).collect()
    }

    fn known_at(&self, now: Instant) -> MutexGuard<'_, BTreeMap<(Issuer, String), Kept>> {
        let mut kept = self.0.lock();
        kept.retain(|_, kept| now.duration_since(kept.heard) < FORGOTTEN_AFTER);
        kept
    }

    fn keep(&self, platform: Issuer, report: api::ConnectorReport, now: Micros) {
        let key = (platform, report.connector.clone());
        let said = Kept {
            report,
            said_at: now,
            heard: Instant::now(),
        };
        let mut kept = self.0.lock();
        if !kept.contains_key(&key) {
            let own = || kept.iter().filter(|((of, _), _)| *of == platform);
            if own().count() >= limits::CONNECTORS_PER_PLATFORM_MAX {
                // One that failed has said so for the last time, and nobody may have looked yet.
                let oldest = own().min_by_key(|(_, kept)| {
                    let failed = kept.report.state() == api::ConnectorState::Failed;
                    (failed, kept.heard)
                });
                let oldest = oldest.map(|(key, _)| key.clone());
                oldest.map(|key| kept.remove(&key));
            }
        }
        kept.insert(key, said);
    }
}

/// What may be kept and shown to others: names, and numbers. That a reason is one of a catalogue is up to who reports.
fn check(report: &api::ConnectorReport) -> Result<(), Refusal> {
    check_name(&report.connector, "report.connector")?;
    let unspecified = |field| Err(Refusal::new(Reason::EnumUnspecified, field));
    match api::ConnectorRole::try_from(report.role) {
        Ok(api::ConnectorRole::Unspecified) => return unspecified("report.role"),
        Ok(_) => {}
        Err(_) => return Err(Refusal::new(Reason::EnumUnknown, "report.role")),
    }
    match api::ConnectorState::try_from(report.state) {
        Ok(api::ConnectorState::Unspecified) => return unspecified("report.state"),
        Ok(_) => {}
        Err(_) => return Err(Refusal::new(Reason::EnumUnknown, "report.state")),
    }
    if !(limits::TIME_US_MIN..=limits::TIME_US_MAX).contains(&report.since_us) {
        return Err(Refusal::new(Reason::ValueOutOfRange, "report.since_us"));
    }
    for (field, count) in [
        ("report.dead_letters", report.dead_letters),
        ("report.dead_letters_bytes", report.dead_letters_bytes),
    ] {
        if count > COUNT_MAX {
            return Err(Refusal::new(Reason::ValueOutOfRange, field));
        }
    }
    let added = &report.dead_letters_added;
    if added.len() > limits::REPORT_REASONS_MAX {
        let max = limits::REPORT_REASONS_MAX;
        let many = format!("{} reasons, up to {max}", added.len());
        return Err(
            Refusal::new(Reason::ValueOutOfRange, "report.dead_letters_added").detail(many),
        );
    }
    let mut known = BTreeSet::new();
    for (i, added) in added.iter().enumerate() {
        let field = |name| format!("report.dead_letters_added[{i}].{name}");
        if !hutong_proto::reason::is_code(&added.reason) {
            return Err(Refusal::new(Reason::NameInvalid, field("reason")).detail(
                "reasons begin with A-Z, and have 1 to 64 characters of A-Z, 0-9 and underscore",
            ));
        }
        if !known.insert(&added.reason) {
            return Err(Refusal::new(Reason::FieldRepeated, field("reason")));
        }
        if added.rows > COUNT_MAX {
            return Err(Refusal::new(Reason::ValueOutOfRange, field("rows")));
        }
    }
    Ok(())
}

/// The service through which they come.
#[derive(Clone)]
pub struct Reporting {
    access: Access,
    reports: Arc<Reports>,
    clock: Clock,
}

impl Reporting {
    pub fn new(access: Access, reports: Arc<Reports>, clock: Clock) -> Reporting {
        Reporting {
            access,
            reports,
            clock,
        }
    }

    pub fn server(self) -> ReportServiceServer<Reporting> {
        ReportServiceServer::new(self).max_decoding_message_size(limits::REPORT_BYTES_MAX)
    }
}

impl std::fmt::Debug for Reporting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporting").finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl ReportService for Reporting {
    async fn report(
        &self,
        request: Request<api::ReportRequest>,
    ) -> Result<Response<api::ReportResponse>, Status> {
        let identity = self.access.check(request.metadata(), Call::Report)?;
        let platform = identity.platform()?;
        let report = request.into_inner().report.unwrap_or_default();
        check(&report)?;
        self.reports.keep(platform, report, (self.clock)());
        Ok(Response::new(api::ReportResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Micros = Micros(1_650_000_000_000_000);

    fn report(connector: &str) -> api::ConnectorReport {
        api::ConnectorReport {
            connector: connector.to_owned(),
            role: api::ConnectorRole::Source.into(),
            state: api::ConnectorState::Running.into(),
            since_us: NOW.0,
            ..Default::default()
        }
    }

    fn platform(code: u32) -> Issuer {
        Issuer::new(code).expect("a code")
    }

    #[test]
    fn the_last_report_of_each_is_kept_and_no_more_of_a_platform_than_may_be() {
        let reports = Reports::default();
        reports.keep(platform(110_000), report("other"), NOW);
        let mut failed = report("failed");
        failed.state = api::ConnectorState::Failed.into();
        reports.keep(platform(340_000), failed, NOW);
        for n in 0..limits::CONNECTORS_PER_PLATFORM_MAX + 5 {
            let mut said = report(&format!("c{n:03}"));
            reports.keep(platform(340_000), said.clone(), NOW);
            said.dead_letters = 7;
            reports.keep(platform(340_000), said, NOW);
        }
        let all = reports.all();
        assert_eq!(all.len(), limits::CONNECTORS_PER_PLATFORM_MAX + 1);
        assert_eq!(all[0].1.report.connector, "other");
        // Those that were silent for longest made room, and one that failed did not.
        assert_eq!(all[1].1.report.connector, "c006");
        let last = all.last().expect("some");
        assert_eq!(last.1.report.connector, "failed");
    }

    #[test]
    fn who_should_have_said_something_is_silent_and_is_forgotten_after_a_day() {
        let reports = Reports::default();
        let began = Instant::now();
        for (name, state) in [
            ("a", api::ConnectorState::Stopped),
            ("b", api::ConnectorState::Failed),
            ("c", api::ConnectorState::Running),
        ] {
            let mut said = report(name);
            said.state = state.into();
            reports.keep(platform(340_000), said, NOW);
        }
        let silent_at = |now| {
            let all = reports.all_at(now);
            all.iter()
                .map(|(_, kept)| kept.is_silent_at(now))
                .collect::<Vec<_>>()
        };
        assert_eq!(silent_at(began), [false, false, false]);
        let later = Instant::now() + SILENT_AFTER + Duration::from_secs(1);
        assert_eq!(
            silent_at(later),
            [false, false, true],
            "one that has ended has nothing to say"
        );
        assert!(silent_at(Instant::now() + FORGOTTEN_AFTER).is_empty());
    }

    #[test]
    fn what_is_no_word_of_the_protocol_is_refused_with_its_place() {
        let of = |change: fn(&mut api::ConnectorReport)| {
            let mut report = report("a");
            change(&mut report);
            check(&report).map_err(|refusal| (refusal.reason, refusal.field.to_string()))
        };
        let added = |reason: &str| api::DeadLettersAdded {
            reason: reason.to_owned(),
            rows: 1,
        };
        assert_eq!(of(|_| {}), Ok(()));
        let reason = "report.dead_letters_added[0].reason";
        for (seen, wanted, field) in [
            (
                of(|r| r.connector.clear()),
                Reason::NameInvalid,
                "report.connector",
            ),
            (
                of(|r| r.connector = "A B".to_owned()),
                Reason::NameInvalid,
                "report.connector",
            ),
            (of(|r| r.role = 0), Reason::EnumUnspecified, "report.role"),
            (of(|r| r.role = 9), Reason::EnumUnknown, "report.role"),
            (of(|r| r.state = 0), Reason::EnumUnspecified, "report.state"),
            (of(|r| r.state = -1), Reason::EnumUnknown, "report.state"),
            (
                of(|r| r.since_us = 7),
                Reason::ValueOutOfRange,
                "report.since_us",
            ),
            (
                of(|r| r.dead_letters = u64::MAX),
                Reason::ValueOutOfRange,
                "report.dead_letters",
            ),
        ] {
            assert_eq!(seen, Err((wanted, field.to_owned())));
        }
        for bad in [
            "",
            "张三",
            "lower",
            "A B",
            "11010519491231002X",
            &"A".repeat(65),
        ] {
            let mut report = report("a");
            report.dead_letters_added.push(added(bad));
            let refusal = check(&report).expect_err(bad);
            assert_eq!(
                (refusal.reason, &*refusal.field),
                (Reason::NameInvalid, reason)
            );
        }
        let mut twice = report("a");
        twice.dead_letters_added = vec![added("A"), added("A")];
        let refusal = check(&twice).expect_err("twice");
        assert_eq!(refusal.field, "report.dead_letters_added[1].reason");
        let mut many = report("a");
        many.dead_letters_added = (0..=limits::REPORT_REASONS_MAX)
            .map(|n| added(&format!("R{n}")))
            .collect();
        assert_eq!(
            check(&many).expect_err("many").reason,
            Reason::ValueOutOfRange
        );
    }
}
