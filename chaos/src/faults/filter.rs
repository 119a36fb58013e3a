//! Packets that the kernel drops, on their way between the proxy and the broker.

use crate::{
    drill::Direction,
    error::ChaosError,
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
}

impl Filter {
    pub async fn begin(
        stage: &Stage,
        direction: Direction,
        percent: u32,
    ) -> Result<Filter, ChaosError> {
        let table = format!("hutong_chaos_{}", std::process::id());
        // From here on it is removed, whatever fails.
        let filter = Filter { table };
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
            let rule = format!("{packets} {share} counter drop");
            run("nft", &["add", "rule", FAMILY, table, "out", &rule]).await?;
        }
        Ok(filter)
    }

    pub async fn heal(self) -> Result<Vec<Proof>, ChaosError> {
        let list = run("nft", &["list", "table", FAMILY, &self.table]).await?;
        let dropped = dropped(&list);
        Ok(vec![Proof::new(
            "packets that the kernel dropped",
            "内核丢弃的数据包数",
            dropped,
            dropped > 0,
        )])
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        try_run("nft", &["delete", "table", FAMILY, &self.table]);
    }
}

/// Over all rules of a table as `nft` lists it.
fn dropped(list: &str) -> u64 {
    let packets = list.split("counter packets ").skip(1);
    packets
        .filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_all_rules_are_added_up() {
        let list = "table inet t {\n\tchain out {\n\t\ttcp dport 1 counter packets 12 bytes 900 drop\n\
                    \t\ttcp sport 1 counter packets 30 bytes 1 drop\n\t}\n}\n";
        assert_eq!(dropped(list), 42);
        assert_eq!(dropped("table inet t {\n}\n"), 0);
    }
}
