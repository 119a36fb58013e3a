//! Newtypes for every id, position and time. Units are in the names; sentinels have names.

use crate::api;
use std::{fmt, str::FromStr};

/// Declares a `u64` newtype with the usual conveniences.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Made by the issuer, strictly increasing for each register, from 1.
    Revision
}
number! {
    /// A record's position in the log: strictly increasing over the whole log, from 1, so that the
    /// records have one order. Within a partition offsets are not contiguous.
    Offset
}
number! {
    /// A producer's number of a batch, from 1 without gaps.
    Sequence
}
number! {
    /// One life of a producer process; a higher one fences the lower ones.
    Epoch
}
number! {
    /// Microseconds since the Unix epoch.
    Micros
}

impl Offset {
    /// Below every record.
    pub const NONE: Offset = Offset(0);
    /// Of the first record of a log.
    pub const FIRST: Offset = Offset(1);

    #[must_use]
    pub fn next(self) -> Offset {
        Offset(self.0 + 1)
    }

    #[must_use]
    pub fn prev(self) -> Offset {
        Offset(self.0.saturating_sub(1))
    }
}

impl Sequence {
    /// Before the first batch.
    pub const NONE: Sequence = Sequence(0);

    #[must_use]
    pub fn next(self) -> Sequence {
        Sequence(self.0 + 1)
    }
}

impl Micros {
    pub const ZERO: Micros = Micros(0);

    /// Zero when `earlier` is later.
    pub fn seconds_since(self, earlier: Micros) -> f64 {
        self.0.saturating_sub(earlier.0) as f64 / 1e6
    }
}

/// Made at random when a log is created; tells cursors of different logs apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogId(pub u64);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A platform by its six-digit GB/T 2260 code. As the writer of registers it is their issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Issuer(u32);

impl Issuer {
    /// The broker itself, in the control partition.
    pub const BROKER: Issuer = Issuer(0);

    /// `None` unless the code has six digits.
    pub fn new(code: u32) -> Option<Issuer> {
        (100_000..=999_999).contains(&code).then_some(Issuer(code))
    }

    pub fn code(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06}", self.0)
    }
}

impl FromStr for Issuer {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        s.parse()
            .ok()
            .and_then(Issuer::new)
            .ok_or_else(|| format!("{s:?} is no six-digit GB/T 2260 code"))
    }
}

/// What a status is about: a keyed pseudonym of a person, or the hash of an area's path.
/// `Debug` and `Display` show it in hexadecimal; logs and metrics must not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityId(pub [u8; 16]);

impl EntityId {
    pub fn from_slice(bytes: &[u8]) -> Option<EntityId> {
        bytes.try_into().ok().map(EntityId)
    }

    /// The shard of this entity among `shards`: FNV-1a over its bytes, modulo the count. Part of the
    /// layout of logs: it never changes.
    pub fn shard(&self, shards: u32) -> Shard {
        if shards <= 1 {
            return Shard(0);
        }
        let hash = self.0.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
            (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Shard(((hash >> 32) % u64::from(shards)) as u32)
    }
}

impl fmt::Display for EntityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for EntityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntityId({self})")
    }
}

impl FromStr for EntityId {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let digits = s.as_bytes();
        let wrong = || format!("{s:?} is not 32 hexadecimal digits");
        if digits.len() != 32 {
            return Err(wrong());
        }
        let mut id = [0; 16];
        for (byte, pair) in id.iter_mut().zip(digits.chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(EntityId(id))
    }
}

/// Part of an issuer's entities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shard(pub u32);

/// Which queue a delta travels in. The number is on disk and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Lane {
    Urgent = 1,
    Bulk = 2,
    Control = 3,
}

impl Lane {
    /// The lanes that carry deltas, the first one served first.
    pub const DELIVERED: [Lane; 2] = [Lane::Urgent, Lane::Bulk];

    pub fn from_number(n: u64) -> Option<Lane> {
        match n {
            1 => Some(Lane::Urgent),
            2 => Some(Lane::Bulk),
            3 => Some(Lane::Control),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Lane::Urgent => "urgent",
            Lane::Bulk => "bulk",
            Lane::Control => "control",
        }
    }

    /// 0 for urgent, 1 for bulk and control: for arrays by lane.
    pub fn index(self) -> usize {
        usize::from(self != Lane::Urgent)
    }

    pub fn to_api(self) -> api::Lane {
        match self {
            Lane::Urgent => api::Lane::Urgent,
            Lane::Bulk => api::Lane::Bulk,
            Lane::Control => api::Lane::Control,
        }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a register says. The number is on disk and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    HealthCode = 1,
    TestResult = 2,
    Vaccination = 3,
    AreaRisk = 4,
}

impl Kind {
    pub const ALL: [Kind; 4] = [
        Kind::HealthCode,
        Kind::TestResult,
        Kind::Vaccination,
        Kind::AreaRisk,
    ];

    pub fn from_number(n: u64) -> Option<Kind> {
        Kind::ALL.into_iter().find(|k| *k as u64 == n)
    }

    pub fn name(self) -> &'static str {
        match self {
            Kind::HealthCode => "health_code",
            Kind::TestResult => "test_result",
            Kind::Vaccination => "vaccination",
            Kind::AreaRisk => "area_risk",
        }
    }

    pub fn to_api(self) -> api::Kind {
        match self {
            Kind::HealthCode => api::Kind::HealthCode,
            Kind::TestResult => api::Kind::TestResult,
            Kind::Vaccination => api::Kind::Vaccination,
            Kind::AreaRisk => api::Kind::AreaRisk,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Kind::ALL
            .into_iter()
            .find(|k| k.name() == s)
            .ok_or_else(|| {
                format!("{s:?} is none of health_code, test_result, vaccination, area_risk")
            })
    }
}

/// A set of kinds, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct KindSet(pub u8);

impl KindSet {
    pub const ALL: KindSet = KindSet(0b1_1110);

    pub fn insert(&mut self, kind: Kind) {
        self.0 |= 1 << kind as u8;
    }

    pub fn contains(self, kind: Kind) -> bool {
        self.0 & (1 << kind as u8) != 0
    }

    pub fn is_subset_of(self, other: KindSet) -> bool {
        self.0 & !other.0 == 0
    }

    pub fn intersects(self, other: KindSet) -> bool {
        self.0 & other.0 != 0
    }
}

impl FromIterator<Kind> for KindSet {
    fn from_iter<T: IntoIterator<Item = Kind>>(kinds: T) -> Self {
        let mut set = KindSet::default();
        kinds.into_iter().for_each(|k| set.insert(k));
        set
    }
}

/// The unit of order, storage and retention: one issuer, one lane, one shard of its entities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    pub issuer: Issuer,
    pub lane: Lane,
    pub shard: Shard,
}

impl Partition {
    /// Carries the broker's own records.
    pub const CONTROL: Partition = Partition {
        issuer: Issuer::BROKER,
        lane: Lane::Control,
        shard: Shard(0),
    };

    /// For keys: 20 bits of issuer, 4 of lane, 8 of shard.
    pub fn to_number(self) -> u32 {
        (self.issuer.code() << 12) | ((self.lane as u32) << 8) | (self.shard.0 & 0xff)
    }

    pub fn from_number(n: u32) -> Option<Partition> {
        let issuer = match n >> 12 {
            0 => Issuer::BROKER,
            code => Issuer::new(code)?,
        };
        Some(Partition {
            issuer,
            lane: Lane::from_number(u64::from((n >> 8) & 0xf))?,
            shard: Shard(n & 0xff),
        })
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.issuer, self.lane, self.shard.0)
    }
}
