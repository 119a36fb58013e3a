//! One colour for a person of whom several issuers say something. Pure, and the same everywhere:
//!
//! 1. Expired codes do not count.
//! 2. The most severe colour wins: red, then yellow, then green.
//! 3. Among equals, the one committed last at its source.
//! 4. Among those, the lowest issuer code.

use hutong_proto::{Issuer, Micros, api::Verdict, delta::Colour};
use std::cmp::Reverse;

/// What one issuer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub issuer: Issuer,
    pub colour: Colour,
    pub committed_at: Micros,
    /// Zero: never.
    pub expires_at: Micros,
}

impl Claim {
    pub fn expired(&self, now: Micros) -> bool {
        self.expires_at != Micros::ZERO && self.expires_at <= now
    }
}

/// The claims in their order, each with what became of it against the winner.
pub fn resolve(claims: &[Claim], now: Micros) -> Vec<(Claim, Verdict)> {
    let mut ordered = claims.to_vec();
    ordered.sort_by_key(|c| {
        (
            c.expired(now),
            Reverse(c.colour),
            Reverse(c.committed_at),
            c.issuer,
        )
    });
    let winner = ordered.first().copied();
    ordered
        .into_iter()
        .map(|claim| (claim, verdict(&claim, winner.as_ref(), now)))
        .collect()
}

fn verdict(claim: &Claim, winner: Option<&Claim>, now: Micros) -> Verdict {
    match winner {
        _ if claim.expired(now) => Verdict::Expired,
        Some(w) if w.issuer == claim.issuer => Verdict::Won,
        Some(w) if claim.colour < w.colour => Verdict::LessSevere,
        Some(w) if claim.committed_at < w.committed_at => Verdict::Older,
        _ => Verdict::HigherIssuerCode,
    }
}

/// Why, in English and Chinese.
pub fn because(verdict: Verdict) -> (&'static str, &'static str) {
    match verdict {
        Verdict::Won => (
            "most severe colour among the codes that have not expired",
            "在未过期的健康码中颜色最严重",
        ),
        Verdict::LessSevere => ("a more severe colour is in force", "存在更严重的有效颜色"),
        Verdict::Older => (
            "same colour, but committed earlier at its source",
            "颜色相同，但在来源处提交更早",
        ),
        Verdict::HigherIssuerCode => (
            "same colour and time; the lower issuer code decides",
            "颜色和时间相同；以较小的签发方代码为准",
        ),
        Verdict::Expired => ("expired", "已过期"),
        Verdict::Unspecified => ("", ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claim(code: u32, colour: Colour, at: u64, expires: u64) -> Claim {
        Claim {
            issuer: Issuer::new(code).expect("a code"),
            colour,
            committed_at: Micros(at),
            expires_at: Micros(expires),
        }
    }

    #[test]
    fn severity_then_time_then_code_decide_among_the_unexpired() {
        use Colour::{Green, Red, Yellow};
        let claims = [
            claim(510_000, Green, 90, 0),
            claim(340_000, Red, 10, 50),
            claim(310_000, Yellow, 20, 0),
            claim(350_000, Yellow, 30, 0),
            claim(360_000, Yellow, 30, 0),
        ];
        let verdicts: Vec<_> = resolve(&claims, Micros(100))
            .iter()
            .map(|(c, v)| (c.issuer.code(), *v))
            .collect();
        assert_eq!(
            verdicts,
            [
                (350_000, Verdict::Won),
                (360_000, Verdict::HigherIssuerCode),
                (310_000, Verdict::Older),
                (510_000, Verdict::LessSevere),
                (340_000, Verdict::Expired),
            ]
        );
        assert_eq!(resolve(&claims, Micros(40))[0].0.issuer.code(), 340_000);
        assert!(resolve(&[], Micros(0)).is_empty());
    }

    fn claims() -> impl Strategy<Value = Vec<Claim>> {
        let one = (0..3usize, 1..5u64, 0..6u64);
        proptest::collection::vec(one, 0..8).prop_map(|list| {
            list.into_iter()
                .enumerate()
                .map(|(i, (c, at, expires))| {
                    claim(110_000 + i as u32 * 10_000, Colour::ALL[c], at, expires)
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn the_answer_does_not_depend_on_the_order_of_arrival(
            claims in claims().prop_shuffle(),
            now in 0..6u64,
        ) {
            let mut sorted = claims.clone();
            sorted.sort_by_key(|c| c.issuer);
            prop_assert_eq!(resolve(&claims, Micros(now)), resolve(&sorted, Micros(now)));
        }

        #[test]
        fn nothing_unexpired_is_more_severe_than_the_winner(claims in claims(), now in 0..6u64) {
            let now = Micros(now);
            let resolved = resolve(&claims, now);
            prop_assert_eq!(resolved.len(), claims.len());
            let live: Vec<_> = claims.iter().filter(|c| !c.expired(now)).collect();
            match resolved.first() {
                Some((winner, Verdict::Won)) => {
                    prop_assert!(!winner.expired(now));
                    prop_assert!(live.iter().all(|c| c.colour <= winner.colour));
                }
                _ => prop_assert!(live.is_empty()),
            }
        }

        #[test]
        fn a_more_severe_claim_always_takes_over(claims in claims(), now in 0..6u64) {
            let mut with = claims;
            with.push(claim(990_000, Colour::Red, 9, 0));
            let won = resolve(&with, Micros(now))[0].0;
            prop_assert_eq!(won.colour, Colour::Red);
        }
    }
}
