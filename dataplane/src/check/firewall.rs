//! Who filters and translates packets: what nftables, iptables and IPVS hold, of which names of tables and chains tell whose it is.

use std::{collections::BTreeSet, fs, io};

use serde::Serialize;
use serde_json::Value;

use super::Probe;
use crate::{iptables_save, nft};

/// Tables, chains and services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Firewall {
    /// Whether nftables could be listed: the agent needs `nft`.
    pub nft: Probe<()>,
    /// Tables of nftables: family and name; those that iptables has made by way of nftables are among them.
    pub tables: BTreeSet<(String, String)>,
    /// Names of chains, of nftables and of both kinds of iptables.
    pub chains: BTreeSet<String>,
    /// Tables of nftables that ask a program about packets (`queue`).
    pub queues: BTreeSet<(String, String)>,
    /// Services that IPVS translates.
    pub ipvs: Probe<usize>,
    /// What could not be looked at, `nft` and IPVS left out, and why.
    pub unread: Vec<String>,
}

impl Firewall {
    /// Lists what there is.
    #[must_use]
    pub fn look() -> Self {
        let mut found = Self { ipvs: ipvs(), ..Self::empty() };
        match nft::objects(&["-j", "-n", "list", "ruleset"]) {
            Ok(objects) => found.add(&objects),
            Err(error) => found.nft = Err(error.to_string()),
        }
        for prefix in ["ip", "ip6"] {
            match iptables_save::legacy(prefix) {
                Ok(saved) => found.chains.extend(saved.iter().flat_map(|(_, text)| chains(text))),
                Err(why) => found.unread.push(why),
            }
        }
        found
    }

    /// A node without any rule.
    #[must_use]
    pub const fn empty() -> Self {
        Self {
            nft: Ok(()),
            tables: BTreeSet::new(),
            chains: BTreeSet::new(),
            queues: BTreeSet::new(),
            ipvs: Ok(0),
            unread: Vec::new(),
        }
    }

    /// What a listing of nft tells.
    fn add(&mut self, objects: &[Value]) {
        let text = |object: &Value, field: &str| object[field].as_str().unwrap_or_default().to_owned();
        for object in objects {
            if let Some(table) = object.get("table") {
                self.tables.insert((text(table, "family"), text(table, "name")));
            } else if let Some(chain) = object.get("chain") {
                self.chains.insert(text(chain, "name"));
            } else if let Some(rule) = object.get("rule")
                && rule["expr"].as_array().into_iter().flatten().any(asks)
            {
                self.queues.insert((text(rule, "family"), text(rule, "table")));
            }
        }
    }
}

/// Whether a statement asks a program; by iptables' `NFQUEUE` too.
fn asks(statement: &Value) -> bool {
    statement.get("queue").is_some() || statement["xt"]["name"] == "NFQUEUE"
}

/// Chains in what `iptables-save` writes: `:KUBE-SERVICES - [0:0]`.
fn chains(saved: &str) -> impl Iterator<Item = String> {
    saved.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next().map(str::to_owned))
}

/// Services that IPVS has in this network namespace; none without the module.
fn ipvs() -> Probe<usize> {
    let path = "/proc/thread-self/net/ip_vs";
    match fs::read_to_string(path) {
        Ok(text) => Ok(services(&text)),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(format!("read {path}: {error}")),
    }
}

/// A service has a line that begins with its protocol; its servers' begin with an arrow, as does one of the headings.
fn services(text: &str) -> usize {
    text.lines().filter(|line| ["TCP ", "UDP ", "SCTP ", "FWM "].iter().any(|kind| line.starts_with(kind))).count()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn chains_of_iptables_are_read() {
        let saved =
            "# x\n*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SVC-ABC - [0:0]\n-A PREROUTING -j KUBE-SVC-ABC\nCOMMIT\n";
        assert_eq!(chains(saved).collect::<Vec<_>>(), ["PREROUTING", "KUBE-SVC-ABC"]);
    }

    /// Not every kernel has queues.
    #[test]
    fn tables_that_ask_a_program_are_read() {
        let mut found = Firewall::empty();
        let rule = |table: &str, expr: &Value| json!({ "rule": { "family": "inet", "table": table, "chain": "c", "handle": 1, "expr": [expr] } });
        found.add(&[rule("asks", &json!({ "queue": { "num": 100 } })), rule("drops", &json!({ "drop": null }))]);
        assert_eq!(found.queues, [("inet".to_owned(), "asks".to_owned())].into());
    }

    #[test]
    fn services_of_ipvs_are_counted() {
        let text = "IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A600001:01BB rr
  -> AC120003:192B      Masq    1      0          0
UDP  0A60000A:0035 rr
";
        assert_eq!(services(text), 2);
        assert_eq!(services("IP Virtual Server version 1.2.1 (size=4096)\n"), 0);
    }
}
