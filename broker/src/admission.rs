//! Stage 2: may these deltas come in? Each is checked on its own; a bad one is refused with its
//! index, reason and field, and the rest goes on. Pure: no IO, no clock of its own.

use hutong_proto::{
    Issuer, KindSet, Lane, Micros, Reason, Refusal, Shard, TraceContext, area,
    batch::{BatchView, DeltaView, ValueView},
    limits,
};

/// Deltas of one batch whose way through the broker is traced.
const TRACES_PER_BATCH_MAX: usize = 16;

/// A batch whose good deltas are known. Only [`admit`] makes one: a field that is private here keeps
/// everybody else from writing one down.
#[derive(Debug)]
pub struct Admitted<'a> {
    pub batch: BatchView<'a>,
    pub issuer: Issuer,
    pub accepted: Vec<Place>,
    pub refused: Vec<(u32, Refusal)>,
    /// Of the accepted deltas that are traced, some.
    pub traces: Vec<TraceContext>,
    _made_here: Made,
}

#[derive(Debug)]
struct Made;

impl Admitted<'_> {
    /// Refuses every delta that refers to one of these provenance entries.
    pub fn refuse_provenances(&mut self, entries: &[(u32, Reason)]) {
        let refused = &mut self.refused;
        self.accepted.retain(|place| {
            let Some((entry, reason)) = entries.iter().find(|(e, _)| *e == place.provenance) else {
                return true;
            };
            let field = format!("provenance[{entry}]");
            refused.push((place.index, Refusal::new(*reason, field)));
            false
        });
    }
}

/// Where an accepted delta belongs.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Index in the batch.
    pub index: u32,
    pub lane: Lane,
    pub shard: Shard,
    pub kinds: KindSet,
    /// Index in the batch's table.
    pub provenance: u32,
    pub committed_at: Micros,
}

/// What admission has to know besides the batch.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Of the connection: the only issuer it may publish for.
    pub issuer: Issuer,
    pub shards: u32,
    pub now: Micros,
}

/// Checks a batch. An error is about the batch as a whole.
pub fn admit<'a>(bytes: &'a [u8], rules: &Rules) -> Result<Admitted<'a>, Refusal> {
    let batch = BatchView::parse(bytes)?;
    if batch.issuer != rules.issuer.code() {
        return Err(
            Refusal::new(Reason::IssuerNotYours, "issuer").detail(format!(
                "issuer {} in a batch of platform {}",
                batch.issuer, rules.issuer
            )),
        );
    }
    let table: Vec<Option<Refusal>> = (0..batch.provenance.len())
        .map(|i| {
            let refusal = batch.provenance(i).err()?;
            Some(refusal.within(&format!("provenance[{i}]")))
        })
        .collect();
    let mut accepted = Vec::with_capacity(batch.deltas.len());
    let mut refused = Vec::new();
    let mut traces = Vec::new();
    for i in 0..batch.deltas.len() {
        let index = i as u32;
        match admit_delta(&batch, i, &table, rules) {
            Ok(delta) => {
                if let Some(trace) = delta.trace
                    && traces.len() < TRACES_PER_BATCH_MAX
                {
                    traces.push(trace);
                }
                accepted.push(Place {
                    index,
                    lane: delta.lane(),
                    shard: delta.entity.shard(rules.shards),
                    kinds: KindSet::from_iter([delta.kind()]),
                    provenance: delta.provenance,
                    committed_at: delta.committed_at,
                });
            }
            Err(refusal) => refused.push((index, refusal)),
        }
    }
    Ok(Admitted {
        batch,
        issuer: rules.issuer,
        accepted,
        refused,
        traces,
        _made_here: Made,
    })
}

#[inline]
fn admit_delta<'a>(
    batch: &BatchView<'a>,
    index: usize,
    table: &[Option<Refusal>],
    rules: &Rules,
) -> Result<DeltaView<'a>, Refusal> {
    let delta = batch
        .delta(index)
        .and_then(|delta| check(&delta, rules).map(|()| delta))
        .map_err(|refusal| refusal.within(&format!("deltas[{index}]")))?;
    match table.get(delta.provenance as usize) {
        None => Err(Refusal::new(
            Reason::ProvenanceMissing,
            format!("deltas[{index}].provenance"),
        )
        .detail(format!(
            "entry {} of a table of {}",
            delta.provenance,
            table.len()
        ))),
        // The entry itself is at fault; its own field is the place to mend.
        Some(Some(refusal)) => Err(refusal.clone()),
        Some(None) => Ok(delta),
    }
}

#[inline]
fn check(delta: &DeltaView<'_>, rules: &Rules) -> Result<(), Refusal> {
    time(delta.committed_at, "committed_at_us", rules.now)?;
    if delta.expires_at != Micros::ZERO {
        if delta.expires_at.0 > limits::TIME_US_MAX {
            return Err(Refusal::new(Reason::TimeImplausible, "expires_at_us"));
        }
        if delta.expires_at <= delta.committed_at && !planted!(AdmitsUnchecked) {
            return Err(Refusal::new(Reason::ExpiryBeforeCommit, "expires_at_us"));
        }
    }
    match delta.value {
        ValueView::TestResult { sampled_at, .. } if sampled_at != Micros::ZERO => {
            time(sampled_at, "test_result.sampled_at_us", rules.now)
        }
        ValueView::Vaccination { vaccinated_at, .. } if vaccinated_at != Micros::ZERO => {
            time(vaccinated_at, "vaccination.vaccinated_at_us", rules.now)
        }
        ValueView::AreaRisk { path, .. } if area::entity(path.parts()) != delta.entity => {
            Err(Refusal::new(Reason::AreaEntityMismatch, "entity"))
        }
        _ => Ok(()),
    }
}

#[inline]
fn time(at: Micros, field: &str, now: Micros) -> Result<(), Refusal> {
    if !(limits::TIME_US_MIN..=limits::TIME_US_MAX).contains(&at.0) {
        return Err(Refusal::new(Reason::TimeImplausible, field).detail(format!("value {at}")));
    }
    if at.0 > now.0 + limits::FUTURE_US_MAX {
        return Err(Refusal::new(Reason::TimeInFuture, field)
            .detail(format!("{:.0} s ahead", at.seconds_since(now))));
    }
    Ok(())
}
