//! Packets that the kernel drops, on their way between the proxy and the broker.

use crate::{
    drill::Direction,
    error::ChaosError,
    faults::{Undone, share},
    history::Proof,
    stage::{
        Stage,
        shell::{run, try_run},
    },
};

const FAMILY: &str = "inet";

/// A table of the packet filter, removed when dropped.
pub struct Filter {
    table: String,
    percent: u32,
}

impl Filter {
    pub async fn begin(
        stage: &Stage,
        direction: Direction,
        percent: u32,
    ) -> Result<Filter, ChaosError> {
        let table = format!("hutong_chaos_{}_{}", std::process::id(), stage.serial());
        // From here on it is removed, whatever fails.
        let filter = Filter { table, percent };
        let table = filter.table.as_str();
        run("nft", &["add", "table", FAMILY, table]).await?;
        let hook = "{ type filter hook output priority 0; }";
        run("nft", &["add", "chain", FAMILY, table, "out", hook]).await?;
        let (ip, port) = (stage.grpc.ip(), stage.grpc.port());
        let share = match percent {
            100 => String::new(),
            percent => format!("numgen random mod 100 < {percent}"),
        };
        let to_broker = format!("ip daddr {ip} tcp dport {port}");
        let from_broker = format!("ip saddr {ip} tcp sport {port}");
        let packets = match direction {
            Direction::Both => vec![to_broker, from_broker],
            Direction::ToBroker => vec![to_broker],
            Direction::FromBroker => vec![from_broker],
        };
        for packets in packets {
            for rule in [
                format!("{packets} counter"),
                format!("{packets} {share} counter drop"),
            ] {
                run("nft", &["add", "rule", FAMILY, table, "out", &rule]).await?;
            }
        }
        Ok(filter)
    }

    pub async fn heal(self) -> Result<Undone<'static>, ChaosError> {
        let list = run("nft", &["list", "table", FAMILY, &self.table]).await?;
        let (dropped, all) = packets(&list);
        Ok(Undone::proof(vec![Proof::new(
            "packets that the kernel dropped, and which share of all that is",
            "内核丢弃的数据包数及其占比",
            share(dropped, all, self.percent.into()),
            dropped > 0,
        )]))
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        try_run("nft", &["delete", "table", FAMILY, &self.table]);
    }
}

/// Dropped ones and all, over the rules of a table as `nft` lists it.
fn packets(list: &str) -> (u64, u64) {
    let counted = list.lines().filter_map(|line| {
        let (_, rest) = line.split_once("counter packets ")?;
        let packets: u64 = rest.split_whitespace().next()?.parse().ok()?;
        Some((line.trim_end().ends_with(" drop"), packets))
    });
    counted.fold((0, 0), |(dropped, all), (drops, packets)| match drops {
        true => (dropped + packets, all),
        false => (dropped, all + packets),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_all_rules_are_added_up() {
        let list = "table inet t {\n\tchain out {\n\t\ttcp dport 1 counter packets 120 bytes 9\n\
                    \t\ttcp dport 1 numgen random mod 100 < 20 counter packets 12 bytes 900 drop\n\
                    \t\ttcp sport 1 counter packets 80 bytes 9\n\
                    \t\ttcp sport 1 counter packets 30 bytes 1 drop\n\t}\n}\n";
        assert_eq!(packets(list), (42, 200));
        assert_eq!(packets("table inet t {\n}\n"), (0, 0));
    }
}
