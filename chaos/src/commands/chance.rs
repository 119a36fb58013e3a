//! Faults by chance. Which one, when and for how long follow from a seed, so that a round can be played
//! again.

use crate::{
    clients::mix,
    drill::{BUILT_IN, Drill, Fault, What, find},
    error::ChaosError,
    play::unavailable,
    stage::machine::Machine,
};
use std::{fmt::Write, ops::Range, time::Duration};

/// How long one lasts, in milliseconds.
const LASTING_MS: Range<u64> = 2500..6000;
/// What lasts for longer in its own drill takes so long to be felt at all.
pub const LONG: Duration = Duration::from_secs(12);

/// By then somebody has said something over each line, and a broker that is to get less processor was watched.
pub const FELT_AFTER: Duration = Duration::from_millis(1500);
/// After a line is whole again: clients wait for up to 5 s before they try, and a kernel before it sends once more.
pub const SAID_AFTER: Duration = Duration::from_secs(7);

/// The drills whose faults this machine can do beside others. One that needs the broker to refuse a start
/// cannot have a second fault beside it.
pub fn known(machine: &Machine) -> Result<Vec<Drill>, ChaosError> {
    let mut known = Vec::new();
    for (name, _) in BUILT_IN {
        let drill = find(name)?;
        if unavailable(&drill, machine, None).is_empty() && !drill.hypothesis.refuses_to_start {
            known.push(drill);
        }
    }
    match known.len() {
        0 | 1 => Err(ChaosError::Usage(
            "this machine can play no two drills".to_owned(),
        )),
        _ => Ok(known),
    }
}

pub fn below(seed: u64, n: usize) -> usize {
    (mix(seed) % n.max(1) as u64) as usize
}

/// One of the faults of a drill, at a moment of its own.
pub fn fault(drill: &Drill, seed: u64, at: Range<Duration>) -> Fault {
    let within = |range: &Range<u64>, salt: u64| {
        let length = (range.end - range.start).max(1);
        Duration::from_millis(range.start + mix(seed ^ salt) % length)
    };
    let at = at.start.as_millis() as u64..at.end.as_millis() as u64;
    let like = &drill.faults[below(seed ^ 3, drill.faults.len())];
    let lasting = match like.lasting > LONG {
        true => like.lasting,
        false => within(&LASTING_MS, 2),
    };
    Fault {
        at: within(&at, 1),
        lasting,
        what: like.what.clone(),
    }
}

/// Can they be there at one time, and both be felt?
pub fn go_together(a: &Fault, b: &Fault) -> bool {
    let claim = a.what.claim().is_some() && a.what.claim() == b.what.claim();
    let process = a.what.hits_the_process() && b.what.hits_the_process();
    // On a line that is cut there is nothing to cut.
    let cuts = a.what.cuts() && b.what.cuts();
    // Of a broker that has stopped by itself nobody can say that it would have died there.
    let ended = |a: &Fault, b: &Fault| a.what.breaks_the_disk() && b.what.kills();
    !(claim || process || cuts || ended(a, b) || ended(b, a))
}

/// In which order they are felt. A broker that does nothing lacks no processor, and a line that breaks while the broker is
/// down, or takes nothing because of its disk, breaks nothing.
fn rank(what: &What) -> u8 {
    match what {
        What::CpuSqueeze { .. } => 0,
        // A broker that is down refuses no file, and does not say what time it is.
        What::ReloadExpired | What::ClockStep { .. } => 1,
        what if what.is_of_a_line() => 1,
        what if what.hits_the_process() || what.breaks_the_disk() => 2,
        _ => 3,
    }
}

/// Lets both be felt: that one happened could not be proven else, and a disk on which nobody writes fails nobody.
pub fn in_turn(faults: &mut [Fault; 2]) {
    // Their places stay: each is known by the drill that it is of.
    let [first, second] = faults;
    let (a, b) = match rank(&first.what) > rank(&second.what) {
        true => (second, first),
        false => (first, second),
    };
    // What is of no such kind is felt whenever it is there, and two of a kind are at one time.
    if rank(&a.what) == rank(&b.what) || rank(&b.what) == 3 {
        return;
    }
    let (early, late) = (a.at.min(b.at), a.at.max(b.at));
    a.at = early;
    b.at = late.max(early + FELT_AFTER);
    if a.what.cuts() && b.what.waits_for_writes() {
        let least = (a.at + a.lasting + SAID_AFTER).saturating_sub(b.at);
        b.lasting = b.lasting.max(least);
    }
}

/// A drill's file with these faults, because a history is judged by the file in it.
pub fn write(head: &str, faults: &[Fault]) -> String {
    let mut text = head.to_owned();
    for fault in faults {
        write!(
            text,
            "[[faults]]\nkind = \"{}\"\nat = \"{}ms\"\nfor = \"{}ms\"\n{}",
            fault.what.name(),
            fault.at.as_millis(),
            fault.lasting.as_millis(),
            fault.what.keys(),
        )
        .expect("a text takes all");
    }
    text
}
