//! Who else filters, translates and marks packets on the node, and which containers cannot be guarded.

use std::collections::BTreeSet;

use bulkhead_dataplane::check::{Facts, Firewall, Process};

use super::{AS_ROOT, Line};

pub(super) fn judge(facts: &Facts) -> Vec<Line> {
    let mut lines = vec![nft(&facts.firewall)];
    lines.extend(facts.firewall.unread.iter().map(|why| Line::warning("iptables", why, UNREAD)));
    lines.push(proxy(facts));
    lines.extend(engines(facts));
    lines.extend(marks(facts));
    lines.extend(rootless(facts));
    lines
}

const UNREAD: &str = "run it as root, with what it names installed; else look by hand for policies of others and for rules that set marks";

fn nft(firewall: &Firewall) -> Line {
    const TOPIC: &str = "nftables";
    match &firewall.nft {
        Ok(()) => {
            Line::ok(TOPIC, "`nft` lists the rules, and so can keep unchecked tunnel packets from the VXLAN socket")
        }
        Err(why) => Line::problem(
            TOPIC,
            why,
            "install the package `nftables`, use a kernel with nf_tables, and run as root: without its rule unchecked tunnel packets reach the \
             VXLAN socket",
        ),
    }
}

/// kube-proxy's mode, as its rules tell it.
fn proxy(facts: &Facts) -> Line {
    const TOPIC: &str = "kube-proxy";
    let firewall = &facts.firewall;
    let mut modes = Vec::new();
    if firewall.tables.iter().any(|(_, name)| name == "kube-proxy") {
        modes.push("nftables (table kube-proxy)".to_owned());
    }
    let services = firewall.chains.iter().filter(|chain| chain.starts_with("KUBE-SVC-")).count();
    if services > 0 || firewall.chains.contains("KUBE-SERVICES") {
        modes.push(format!("iptables (chains KUBE-SVC-*: {services})"));
    }
    let device = links(facts).any(|link| link == "kube-ipvs0");
    let ipvs = match &firewall.ipvs {
        Ok(0) if !device => false,
        Ok(services) => {
            modes.push(format!("IPVS ({services} services)"));
            true
        }
        Err(why) => return Line::warning(TOPIC, format!("its mode is not known: {why}"), AS_ROOT),
    };
    let found = modes.join(" and ");
    if firewall.nft.is_err() || !firewall.unread.is_empty() {
        let found = if found.is_empty() { "none seen".to_owned() } else { found };
        return Line::warning(TOPIC, format!("{found}, but not all rules could be read"), "see the lines above");
    }
    if ipvs {
        return Line::warning(
            TOPIC,
            format!("{found}: how calls to service addresses are judged was not tried with IPVS"),
            "kube-proxy's mode `nftables` (`mode: nftables` in its configuration, then `kube-proxy --cleanup` once)",
        );
    }
    match modes.len() {
        0 => Line::ok(TOPIC, "none"),
        1 => Line::ok(TOPIC, found),
        _ => Line::warning(
            TOPIC,
            format!("{found}: one of them is left over"),
            "`kube-proxy --cleanup`, then start kube-proxy again",
        ),
    }
}

fn links(facts: &Facts) -> impl Iterator<Item = &str> {
    facts.network.iter().flat_map(|survey| survey.links.iter().map(|link| link.name.as_str()))
}

/// A program that has policies of its own, and by what it is known.
struct Engine {
    name: &'static str,
    /// Beginnings of names.
    chains: &'static [&'static str],
    tables: &'static [&'static str],
    links: &'static [&'static str],
    programs: &'static [&'static str],
    /// What it does beside Bulkhead.
    beside: Beside,
    remedy: &'static str,
}

enum Beside {
    /// Both have to allow a packet.
    Both,
    /// It moves packets past the programs of Bulkhead.
    Past,
}

const ENGINES: [Engine; 7] = [
    Engine {
        name: "kube-router",
        // Without policies it has chains KUBE-ROUTER-SERVICES and others.
        chains: &["KUBE-ROUTER-INPUT", "KUBE-ROUTER-FORWARD", "KUBE-ROUTER-OUTPUT", "KUBE-POD-FW-", "KUBE-NWPLCY-"],
        tables: &[],
        links: &[],
        programs: &[],
        beside: Beside::Both,
        remedy: "when Bulkhead enforces: in k3s `disable-network-policy: true` in /etc/rancher/k3s/config.yaml and a restart of k3s, elsewhere \
                 kube-router `--run-firewall=false`; then its rules, which stay, on each node: `iptables-save --table filter | grep -vE \
                 'KUBE-(ROUTER-(INPUT|FORWARD|OUTPUT)|POD-FW|NWPLCY)' | iptables-restore`, and the same with ip6tables",
    },
    Engine {
        name: "kube-network-policies",
        chains: &[],
        tables: &["kube-network-policies", "kindnet-network-policies"],
        links: &[],
        programs: &[],
        beside: Beside::Both,
        remedy: "when Bulkhead enforces: its table on each node (`nft delete table inet kube-network-policies`), which drops what it would ask about \
                 once nobody answers, then its DaemonSet (`kubectl -n kube-system delete daemonset kube-network-policies`), then the table again \
                 where it came back",
    },
    Engine {
        name: "Calico",
        chains: &["cali-"],
        tables: &["calico"],
        links: &["cali", "vxlan.calico"],
        programs: &[],
        beside: Beside::Both,
        remedy: "leave policies to one of the two; Bulkhead is made for bridges and VXLAN overlays as flannel and Docker lay them",
    },
    Engine {
        name: "Calico's eBPF data plane",
        chains: &[],
        tables: &[],
        links: &[],
        programs: &["cali_", "calico_"],
        beside: Beside::Past,
        remedy: "use Calico's own policies, or its data plane of iptables or nftables",
    },
    Engine {
        name: "Cilium",
        chains: &["CILIUM_"],
        tables: &[],
        links: &["cilium_", "lxc_health"],
        programs: &["cil_"],
        beside: Beside::Past,
        remedy: "use Cilium's own policies, or remove Cilium (`cilium uninstall`) and give the cluster flannel",
    },
    Engine {
        name: "Antrea",
        chains: &["ANTREA-"],
        tables: &["antrea"],
        links: &["antrea-"],
        programs: &[],
        beside: Beside::Both,
        remedy: "leave policies to one of the two; Bulkhead is made for bridges and VXLAN overlays as flannel and Docker lay them",
    },
    Engine {
        name: "Weave Net",
        chains: &["WEAVE-NPC"],
        tables: &[],
        links: &[],
        programs: &[],
        beside: Beside::Both,
        remedy: "run it without its policy controller (`EXPECT_NPC=0`)",
    },
];

impl Engine {
    /// By what it shows here.
    fn traces(&self, facts: &Facts) -> Vec<String> {
        let begins = |name: &str, with: &[&str]| with.iter().any(|with| name.starts_with(with));
        let programs = facts.hanging.iter().flat_map(|hanging| hanging.foreign.iter().flatten());
        let of = |what: &str, names: BTreeSet<&str>| -> Option<String> {
            let first = names.first()?;
            let more = if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
            Some(format!("{what} {first}{more}"))
        };
        let chains = facts.firewall.chains.iter().map(String::as_str);
        let tables = facts.firewall.tables.iter().map(|(_, name)| name.as_str());
        [
            of("chain", chains.filter(|name| begins(name, self.chains)).collect()),
            of("table", tables.filter(|name| begins(name, self.tables)).collect()),
            of("link", links(facts).filter(|name| begins(name, self.links)).collect()),
            of(
                "program",
                programs.map(|foreign| foreign.name.as_str()).filter(|name| begins(name, self.programs)).collect(),
            ),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

fn engines(facts: &Facts) -> Vec<Line> {
    const TOPIC: &str = "policies";
    let mut lines = Vec::new();
    for engine in &ENGINES {
        let traces = engine.traces(facts);
        if traces.is_empty() {
            continue;
        }
        let found = format!("{} is here ({})", engine.name, traces.join(", "));
        lines.push(match engine.beside {
            Beside::Both => Line::warning(
                TOPIC,
                format!("{found}: what it drops no policy of Bulkhead opens, only `agent --direct` passes it by"),
                engine.remedy,
            ),
            Beside::Past => {
                Line::problem(TOPIC, format!("{found}: it moves packets past the programs of Bulkhead"), engine.remedy)
            }
        });
    }
    // Of those above the tables are known.
    let known = |table: &str| ENGINES.iter().any(|engine| engine.tables.iter().any(|of| table.starts_with(of)));
    for (family, table) in facts.firewall.queues.iter().filter(|(_, table)| !known(table)) {
        lines.push(Line::warning(
            TOPIC,
            format!("the nftables table {family} {table} asks a program about packets (queue): what that drops no policy of Bulkhead opens, only `agent --direct` passes it by"),
            format!("find out whose it is: `nft list table {family} {table}`"),
        ));
    }
    if lines.is_empty() {
        let firewall = &facts.firewall;
        let blind = facts.network.is_err() || facts.hanging.iter().any(|hanging| hanging.foreign.is_err());
        lines.push(if blind || firewall.nft.is_err() || !firewall.unread.is_empty() {
            Line::warning(TOPIC, "nobody else's seen, but not everything could be read", "see the lines above")
        } else {
            Line::ok(TOPIC, "no other program that enforces some was found")
        });
    }
    lines
}

fn marks(facts: &Facts) -> Vec<Line> {
    const TOPIC: &str = "marks";
    let (marks, mask) = (&facts.marks, facts.mark_mask);
    let mut lines: Vec<Line> = marks.unread.iter().map(|why| Line::warning(TOPIC, why, UNREAD)).collect();
    for user in &marks.users {
        let (reads, writes) = (user.reads & mask, user.writes & mask);
        lines.push(Line::warning(
            TOPIC,
            format!("{}: reads {reads:#010x} and writes {writes:#010x} of Bulkhead's bits {mask:#010x}", user.rule),
            &marks.remedy,
        ));
    }
    if lines.is_empty() {
        lines.push(Line::ok(TOPIC, format!("no rule of others uses Bulkhead's bits {mask:#010x}")));
    }
    lines
}

fn rootless(facts: &Facts) -> Vec<Line> {
    const TOPIC: &str = "rootless";
    const REMEDY: &str = "not enforceable: to the node they are a process of that user, and trusted; run them by a runtime of root, in a network of \
                          bridges";
    let rootless = match &facts.rootless {
        Ok(rootless) => rootless,
        Err(why) => return vec![Line::warning(TOPIC, why, "mount /proc (`mount -t proc proc /proc`)")],
    };
    let mut lines = Vec::new();
    let list = |processes: &[Process]| {
        let listed: Vec<String> = processes
            .iter()
            .map(|Process { pid, uid, program }| format!("{program} (process {pid} of user {uid})"))
            .collect();
        listed.join(", ")
    };
    if !rootless.carriers.is_empty() {
        lines.push(Line::warning(TOPIC, format!("containers by way of {}", list(&rootless.carriers)), REMEDY));
    }
    if !rootless.namespaces.is_empty() {
        lines.push(Line::warning(
            TOPIC,
            format!(
                "network namespaces that users have made, for containers or sandboxes: {}",
                list(&rootless.namespaces)
            ),
            REMEDY,
        ));
    }
    if rootless.unseen > 0 {
        let processes = match rootless.unseen {
            1 => "1 process".to_owned(),
            number => format!("{number} processes"),
        };
        lines.push(Line::warning(
            TOPIC,
            format!("{processes} could not be asked for the network namespace, and by whom that was made"),
            "run it as root with all capabilities that process 1 has, in the host's namespaces",
        ));
    }
    if lines.is_empty() {
        lines.push(Line::ok(TOPIC, "no containers of users without rights"));
    }
    lines
}
